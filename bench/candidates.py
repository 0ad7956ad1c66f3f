"""What is compared. Each can be started in a room beside the others; it idles while they are measured."""

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

from bench.room import FAR, NEAR, Room
from ravenvpn.errors import HostError
from ravenvpn.lab.host import Machine
from ravenvpn.overhead import TUNNEL_OVERHEAD

START = 15.0  # seconds a tunnel may take from its start to its first answered ping


class Candidate(Protocol):
    name: str
    device: str
    far: str  # the address of the far end, inside
    near: str

    def start(self, room: Room) -> None:
        """Until both ends talk. HostError, with what it said, if they do not."""

    def pids(self) -> list[int]:
        """The processes whose time counts, both ends."""


class PlainVeth:
    """No tunnel: what the machine can move at all."""

    name = "plain veth"
    device = "eth0"
    near, far = NEAR, FAR

    def start(self, room: Room) -> None:
        pass  # a room has it

    def pids(self) -> list[int]:
        return []


class End(NamedTuple):
    """Of a tunnel: its key and its addresses."""

    private_key: str
    inside: str
    outside: str


class Tunnel:
    """Anything that makes a device and is configured by wg(8). `number` keeps devices, ports and networks apart."""

    def __init__(self, name: str, number: int, argv: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self.device = f"wg{number}"
        self.near, self.far = f"10.77.{number}.1", f"10.77.{number}.2"
        self.port = 51820 + number
        self._argv, self._env = argv, env or {}
        self._ends: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, room: Room) -> None:
        self._ends = []
        ends = (End(_wg("genkey"), self.near, NEAR), End(_wg("genkey"), self.far, FAR))
        for machine in room.both:
            log = room.folder / f"{self.device}-{machine.name}.log"
            with log.open("wb") as output:
                process = machine.popen([*self._argv, self.device], env=self._env, stdout=output, stderr=output)
            self._ends.append((process, log))
        deadline = time.monotonic() + START
        try:
            for machine in room.both:
                while not machine.path(f"/run/wireguard/{self.device}.sock").exists():
                    self._check(deadline)
                    time.sleep(0.02)
            for machine, end, other in zip(room.both, ends, reversed(ends), strict=True):
                self._configure(machine, end, other, room.mtu - TUNNEL_OVERHEAD)
            while room.near.run(["ping", "-c", "1", "-W", "1", self.far], check=False).returncode:
                self._check(deadline)
        except HostError as error:
            self._stop()
            raise HostError(f"{self.name} does not start: {self._said() or error}") from None

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise HostError(f"not within {START:g} s")
        if any(process.poll() is not None for process, _ in self._ends):
            raise HostError("it ended")

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

    def _said(self) -> str:
        """The last line either end wrote."""
        lines = [log.read_text(errors="replace").strip().rpartition("\n")[2] for _, log in self._ends]
        return " / ".join(dict.fromkeys(filter(None, lines)))

    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._ends]


class Ravenvpn(Tunnel):
    """Ours, which can be told what to do without."""

    @contextmanager
    def without(self, room: Room, offload: str) -> Iterator[None]:
        """Ends it and starts it without that, and back."""
        usual = self._argv
        self._restart(room, [*usual, "--without", offload])
        try:
            yield
        finally:
            self._restart(room, usual)

    def _restart(self, room: Room, argv: list[str]) -> None:
        self._stop()
        self._argv = argv
        self.start(room)


def _wg(*argv: str) -> str:
    command, *rest = argv
    return subprocess.run(
        ["wg", command], input="".join(rest), capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def wireguard_go(program: Path, number: int) -> Tunnel:
    return Tunnel("wireguard-go", number, [str(program), "-f"], {"LOG_LEVEL": "error"})


def ravenvpn(body: str, suite: str, number: int) -> Ravenvpn:
    """`body` as RAVENVPN_DATAPLANE takes it, `suite` as `raven-vpn tun --suite`."""
    short = {"chacha20poly1305": "ChaCha", "aes256gcm": "AES"}[suite]
    beside = Path(sys.executable).with_name("raven-vpn")
    program = str(beside) if beside.exists() else shutil.which("raven-vpn") or "raven-vpn"
    environment = {**os.environ, "RAVENVPN_DATAPLANE": body}
    argv = [program, "tun", "--foreground", "--suite", suite]
    return Ravenvpn(f"ravenvpn {body} {short}", number, argv, environment)


def all_of(wireguard_go_program: Path | None) -> list[Candidate]:
    """In the order in which reports show them."""
    tunnels: list[Candidate] = [PlainVeth()]
    if wireguard_go_program:
        tunnels.append(wireguard_go(wireguard_go_program, 1))
    bodies = [(body, suite) for body in ("pure", "native") for suite in ("chacha20poly1305", "aes256gcm")]
    tunnels += [ravenvpn(body, suite, number) for number, (body, suite) in enumerate(bodies, 2)]
    return tunnels
