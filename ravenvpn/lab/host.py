"""Hosts of a lab: run a program there, open a socket there, read a file, capture packets."""

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
from ravenvpn.lab.topology import AddressPair, Cni, LabNetworks, LabNodePlan, LabRegionPlan, Region

CLONE_NEWNET = 0x40000000  # linux/sched.h: the namespace given to setns(2) is a network namespace
_libc = ctypes.CDLL(None, use_errno=True)


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into a namespace: setns(2), in `os` only since Python 3.12. OSError if refused."""
    if _libc.setns(descriptor, kind):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class LabHost:
    """A host with a network namespace: the internet, a router, a node, a pod."""

    def __init__(self, name: str, record: OwnershipRecord) -> None:
        """Describe the host; `Lab` makes its namespace."""
        self.name = name  # within the lab
        self.namespace = f"{record.prefix}-{name}"  # name of the namespace for ip(8)
        self.children: list[subprocess.Popen[Any]] = []  # started here; `Lab.remove` waits for them
        # Environment of every program started here, by which `ownership` finds it.
        self._mark = {MARK: record.prefix}
        self._folder = record.folder

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def enter(self) -> list[str]:
        """Command prefix that runs a program on this host, for `subprocess` and for a person to paste."""
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
        """Run a program here to its end and return its outputs as text.

        `input` is its standard input, empty by default. `env` is added to this process's environment. HostError if
        the program takes more than `timeout` seconds or, with `check`, if its exit status is not 0.
        """
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
            raise HostError(f"{self.name}: {shlex.join(argv)}: did not end within {timeout:g} s") from None
        if check and done.returncode:
            output = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
            raise HostError(f"{self.name}: {shlex.join(argv)}: {output}")
        return done

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **arguments: Any
    ) -> subprocess.Popen[Any]:
        """Start a program here and leave it running; `arguments` are those of `subprocess.Popen`.

        nsenter replaces itself with the program, so `pid` is the program's. It has a session of its own, so Ctrl-C at
        the terminal reaches this process only. A program that still runs when the lab is removed is killed then.
        """
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
        """Return a socket of this process in the network namespace of this host. The caller closes it.

        OSError if the namespace or the socket cannot be opened. A socket keeps the namespace in which it was made.
        """
        made: Future[socket.socket] = Future()

        def make() -> None:
            # setns(2) moves one thread. This thread ends afterwards, so nothing else ever runs in the namespace.
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
        """Return the output of ip(8) here, as in `host.ip("-6 route show table all")`. HostError if it fails."""
        return self.run(["ip", *command.split()]).stdout

    def capture(self, device: str = "any", expression: str = "") -> Capture:
        """Return a capture of packets on `device` that match `expression` (pcap-filter(7)), to be used in `with`."""
        return Capture(self.popen, self._folder, device, expression)

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **(more or {}), **self._mark}


class Router(LabHost):
    """Router of one region. `v4` and `v6` are its addresses on the internet, to which NAT translates."""

    UPLINK = "uplink"  # device towards the internet
    LAN = "lan0"  # bridge towards the nodes

    def __init__(self, record: OwnershipRecord, plan: LabRegionPlan) -> None:
        super().__init__(f"{plan.region.name}-router", record)
        self.plan = plan
        self.v4, self.v6 = plan.uplink.host(2)


class Pod(LabHost):
    """A pod: a network namespace attached to a node as the region's CNI model has it."""

    def __init__(self, name: str, record: OwnershipRecord, node: LabNode, addresses: AddressPair) -> None:
        super().__init__(name, record)
        self.node = node  # on which it runs
        self.v4: IPv4Address = addresses.v4
        self.v6: IPv6Address = addresses.v6


class Machine(LabHost):
    """A host that has, besides its network, its own host name, /run, /etc/ravenvpn, /etc/wireguard and
    /var/lib/ravenvpn."""

    pid = 0  # of the process that holds the namespaces (`lab.holder`), set once it is started

    @property
    def enter(self) -> list[str]:
        """Command prefix that runs a program on this host, with its files and host name."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--"]

    def path(self, path: str | Path) -> Path:
        """Return the path outside of the lab of a file in one of this host's own folders."""
        # A link on the way is followed outside, in the wrong file system, so the usual one is resolved here.
        inside = str(path).replace("/var/run/", "/run/", 1) if str(path).startswith("/var/run/") else str(path)
        return Path(f"/proc/{self.pid}/root{inside}")

    def read(self, path: str | Path) -> str:
        """Return the text of a file on this host. OSError if it cannot be read."""
        return self.path(path).read_text()

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        """Write a file on this host in one step, so that a reader never sees half of it. Make missing folders."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.replace(target, text.encode(), mode=mode, durable=False)


class LabNode(Machine):
    """Node of one region. `v4` and `v6` are its addresses on the LAN: the InternalIPs of its Node object."""

    DEVICE = "eth0"  # device on the LAN
    BRIDGE = "cni0"  # bridge of the pods, with the bridge model

    def __init__(self, record: OwnershipRecord, region: Region, plan: LabNodePlan, addresses: AddressPair) -> None:
        super().__init__(plan.name, record)
        self.region = region
        self.v4: IPv4Address = addresses.v4
        self.v6: IPv6Address = addresses.v6
        self.pod_cidrs = plan.pod_cidrs
        self.blocks: tuple[LabNetworks, ...] = plan.blocks  # the part of them that the node uses
        self.pods = tuple(Pod(name, record, self, plan.pod_address(i)) for i, name in enumerate(plan.pods))

    @property
    def bridge_addresses(self) -> AddressPair:
        """The node's addresses on the bridge, inside its podCIDRs. The bridge exists only on nodes with pods."""
        return self.pod_cidrs.host(1)

    @property
    def source(self) -> AddressPair:
        """Source addresses of the node's own traffic to other regions: inside its podCIDRs where it has such ones.

        Other regions have routes to podCIDRs, but not to the LAN."""

        if self.pods and self.region.cni is Cni.BRIDGE:
            return self.bridge_addresses
        return AddressPair(self.v4, self.v6)
