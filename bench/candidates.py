"""Candidates of the comparison. All are started on one pair of machines and are idle while another is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.machine_pair import FAR, NEAR, MachinePair
from ravenvpn.errors import HostError
from ravenvpn.lab.host import Machine
from ravenvpn.overhead import TUNNEL_OVERHEAD

START_TIMEOUT = 15.0  # seconds from the start of a tunnel to its first answered ping


class Candidate(Protocol):
    """One way to get packets from near to far."""

    name: str  # in reports and on the command line
    device: str  # at both ends
    far: str  # address of the far end, inside of the tunnel
    near: str  # address of the near end

    def start(self, machines: MachinePair) -> None:
        """Start both ends and wait until a ping is answered. HostError with their last output otherwise."""

    def pids(self) -> list[int]:
        """Return the pids of both ends, whose processor time is counted."""


class PlainVeth:
    """No tunnel: the upper limit of this machine."""

    name = "plain veth"
    device = "eth0"
    near, far = NEAR, FAR

    def start(self, machines: MachinePair) -> None:
        pass  # the veth pair exists already

    def pids(self) -> list[int]:
        return []


class End(NamedTuple):
    """One end of a tunnel."""

    private_key: str  # base64
    inside: str  # address in the tunnel
    outside: str  # address on the veth pair


class Tunnel:
    """A program that makes a tunnel device and is configured by wg(8).

    `number` is part of device, port and network, so that several tunnels can run on one pair of machines.
    """

    def __init__(self, name: str, number: int, argv: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self.device = f"wg{number}"
        self.near, self.far = f"10.77.{number}.1", f"10.77.{number}.2"
        self.port = 51820 + number
        self._argv, self._env = argv, env or {}
        self._ends: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, machines: MachinePair) -> None:
        self._ends = []
        ends = (End(_wg("genkey"), self.near, NEAR), End(_wg("genkey"), self.far, FAR))
        for machine in machines.both:
            log = machines.folder / f"{self.device}-{machine.name}.log"
            with log.open("wb") as output:
                process = machine.popen([*self._argv, self.device], env=self._env, stdout=output, stderr=output)
            self._ends.append((process, log))
        deadline = time.monotonic() + START_TIMEOUT
        try:
            for machine in machines.both:
                while not machine.path(f"/run/wireguard/{self.device}.sock").exists():
                    self._check(deadline)
                    time.sleep(0.02)
            for machine, end, other in zip(machines.both, ends, reversed(ends), strict=True):
                self._configure(machine, end, other, machines.mtu - TUNNEL_OVERHEAD)
            while machines.near.run(["ping", "-c", "1", "-W", "1", self.far], check=False).returncode:
                self._check(deadline)
        except HostError as error:
            self._stop()
            raise HostError(f"{self.name} does not start: {self._last_output() or error}") from None

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise HostError(f"no ping was answered within {START_TIMEOUT:g} s")
        if any(process.poll() is not None for process, _ in self._ends):
            raise HostError("a process ended")

    def _stop(self) -> None:
        for process, _ in self._ends:
            process.terminate()
        for process, _ in self._ends:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    def _configure(self, machine: Machine, own: End, other: End, mtu: int) -> None:
        machine.write("/etc/wireguard/private.key", own.private_key, mode=0o600)
        peer = ["peer", _wg("pubkey", other.private_key), "allowed-ips", f"{other.inside}/32"]
        interface = ["listen-port", str(self.port), "private-key", "/etc/wireguard/private.key"]
        machine.run(["wg", "set", self.device, *interface, *peer, "endpoint", f"{other.outside}:{self.port}"])
        machine.run(["ip", "address", "add", f"{own.inside}/24", "dev", self.device])
        machine.run(["ip", "link", "set", self.device, "mtu", str(mtu), "up"])

    def _last_output(self) -> str:
        """Return the last line that each end wrote."""
        lines = [log.read_text(errors="replace").strip().rpartition("\n")[2] for _, log in self._ends]
        return " / ".join(dict.fromkeys(filter(None, lines)))

    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._ends]


class Ravenvpn(Tunnel):
    """ravenvpn, which can be started without one of its offloads."""

    @contextmanager
    def without(self, machines: MachinePair, offload: str) -> Iterator[None]:
        """Restart both ends without this offload, and restart them as before when the block ends."""
        usual = self._argv
        self._restart(machines, [*usual, "--without", offload])
        try:
            yield
        finally:
            self._restart(machines, usual)

    def _restart(self, machines: MachinePair, argv: list[str]) -> None:
        self._stop()
        self._argv = argv
        self.start(machines)


def _wg(*argv: str) -> str:
    command, *rest = argv
    return subprocess.run(
        ["wg", command], input="".join(rest), capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def wireguard_go(program: Path, number: int) -> Tunnel:
    """Return wireguard-go as a candidate."""
    return Tunnel("wireguard-go", number, [str(program), "-f"], {"LOG_LEVEL": "error"})


def ravenvpn(body: str, suite: str, number: int) -> Ravenvpn:
    """Return ravenvpn as a candidate.

    `body` is a value of RAVENVPN_DATAPLANE, `suite` one of `raven-vpn tun --suite`.
    """
    short = {"chacha20poly1305": "ChaCha", "aes256gcm": "AES"}[suite]
    beside = Path(sys.executable).with_name("raven-vpn")
    program = str(beside) if beside.exists() else shutil.which("raven-vpn") or "raven-vpn"
    environment = {**os.environ, "RAVENVPN_DATAPLANE": body}
    argv = [program, "tun", "--foreground", "--suite", suite]
    return Ravenvpn(f"ravenvpn {body} {short}", number, argv, environment)


def all_of(wireguard_go_program: Path | None) -> list[Candidate]:
    """Return all candidates in the order of the reports."""
    tunnels: list[Candidate] = [PlainVeth()]
    if wireguard_go_program:
        tunnels.append(wireguard_go(wireguard_go_program, 1))
    bodies = [(body, suite) for body in ("pure", "native") for suite in ("chacha20poly1305", "aes256gcm")]
    tunnels += [ravenvpn(body, suite, number) for number, (body, suite) in enumerate(bodies, 2)]
    return tunnels
