"""Hosts of a lab, as whoever uses it sees them: run something there, read a file, listen on a wire."""

from __future__ import annotations

import ctypes
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from ravenvpn import atomic_file
from ravenvpn.errors import HostError
from ravenvpn.lab.capture import Capture
from ravenvpn.lab.command import TIMEOUT
from ravenvpn.lab.ownership import MARK, NAMESPACES, OwnershipRecord
from ravenvpn.lab.topology import Cni, LabNetworks, LabNodePlan, LabRegion, LabRegionPlan, Pair

CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def setns(descriptor: int, kind: int) -> None:
    """setns(2), which Python has only from 3.12 on."""
    if _libc.setns(descriptor, kind):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class LabHost:
    """Anything with a network namespace: the internet, routers, nodes, pods. `namespace` is its name for ip(8)."""

    def __init__(self, name: str, record: OwnershipRecord) -> None:
        self.name = name
        self.namespace = f"{record.prefix}-{name}"
        self.children: list[subprocess.Popen[Any]] = []  # to be reaped when the lab goes
        self._mark = {MARK: record.prefix}
        self._folder = record.folder

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def enter(self) -> list[str]:
        """What to put before a command so that it runs here; also what a person types."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", "--"]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002
        check: bool = True,
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end, with `env` added to our own environment. HostError if it fails (unless not `check`)
        or takes more than `timeout` seconds."""
        try:
            done = subprocess.run(
                [*self.enter, *argv],
                input="" if input is None else input,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=self._environment(env),
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name}: {shlex.join(argv)}: no end within {timeout:g} s") from None
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
            raise HostError(f"{self.name}: {shlex.join(argv)}: {said}")
        return done

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **arguments: Any
    ) -> subprocess.Popen[Any]:
        """Start and leave running, in a session of its own so that Ctrl-C is ours to handle. Its pid is the
        program's; `arguments` are Popen's. The lab ends it when it goes, if nobody did before."""
        arguments.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(
            [*self.enter, *argv], env=self._environment(env), start_new_session=True, **arguments
        )
        self.children.append(process)
        return process

    def socket(
        self,
        family: socket.AddressFamily = socket.AF_INET,
        kind: socket.SocketKind = socket.SOCK_DGRAM,
        protocol: int = 0,
    ) -> socket.socket:
        """A socket of ours that lives in this host's network. The caller closes it."""
        made: Future[socket.socket] = Future()

        def make() -> None:
            # A namespace is entered by a thread, not by a process; this thread ends in it, and is ours alone.
            try:
                with (NAMESPACES / self.namespace).open() as namespace:
                    setns(namespace.fileno(), CLONE_NEWNET)
                made.set_result(socket.socket(family, kind, protocol))
            except OSError as error:
                made.set_exception(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made.result()

    def ip(self, command: str) -> str:
        """Standard output of ip(8) here, as in `host.ip("-6 route show table all")`."""
        return self.run(["ip", *command.split()]).stdout

    def capture(self, device: str = "any", expression: str = "") -> Capture:
        """Record what passes `device` (pcap-filter(7) `expression`): `with host.capture() as seen: …`."""
        return Capture(self.popen, self._folder, device, expression)

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **(more or {}), **self._mark}


class Router(LabHost):
    """Of one region. `v4` and `v6` are its addresses on the internet; NAT puts them on what leaves."""

    UPLINK = "uplink"
    LAN = "lan0"

    def __init__(self, record: OwnershipRecord, plan: LabRegionPlan) -> None:
        super().__init__(f"{plan.region.name}-router", record)
        self.plan = plan
        self.v4, self.v6 = plan.uplink.host(2)


class Pod(LabHost):
    """A network namespace that hangs on a node, as its region's CNI has it."""

    def __init__(self, name: str, record: OwnershipRecord, node: LabNode, addresses: Pair) -> None:
        super().__init__(name, record)
        self.node = node
        self.v4: IPv4Address = addresses.v4
        self.v6: IPv6Address = addresses.v6


class Machine(LabHost):
    """Has, besides its network, a host name, /run, /etc/ravenvpn, /etc/wireguard, /var/lib/ravenvpn of its own."""

    pid = 0  # of the process that holds the namespaces open; whoever builds the machine starts it

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--"]

    def path(self, path: str | Path) -> Path:
        """Where a file of this host's own folders is for us outside."""
        # Links met on the way are followed outside, so the usual one is taken here.
        inside = str(path).replace("/var/run/", "/run/", 1) if str(path).startswith("/var/run/") else str(path)
        return Path(f"/proc/{self.pid}/root{inside}")

    def read(self, path: str | Path) -> str:
        return self.path(path).read_text()

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        """Folders on the way are made; a file appears whole."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.replace(target, text.encode(), mode=mode, durable=False)


class LabNode(Machine):
    """Of one region. `v4` and `v6` are its addresses on the region's LAN, its InternalIPs."""

    DEVICE = "eth0"
    BRIDGE = "cni0"

    def __init__(self, record: OwnershipRecord, region: LabRegion, plan: LabNodePlan, addresses: Pair) -> None:
        super().__init__(plan.name, record)
        self.region = region
        self.v4: IPv4Address = addresses.v4
        self.v6: IPv6Address = addresses.v6
        self.pod_cidrs = plan.pod_cidrs
        self.blocks: tuple[LabNetworks, ...] = plan.blocks
        self.pods = tuple(Pod(name, record, self, plan.pod_address(i)) for i, name in enumerate(plan.pods))

    @property
    def bridge_addresses(self) -> Pair:
        """Its own addresses inside its podCIDRs, on the bridge; there is one only where there are pods."""
        return self.pod_cidrs.host(1)

    @property
    def source(self) -> Pair:
        """What its own traffic to other regions leaves with: an address inside its podCIDRs where it has one."""
        if self.pods and self.region.cni is Cni.BRIDGE:
            return self.bridge_addresses
        return Pair(self.v4, self.v6)
