"""Hosts in network namespaces, tunnel programs on them, and the commands to set them up."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PYTHON = sys.executable
UAPI_FOLDER = Path("/var/run/wireguard")
# WG_PROCESS_FOREGROUND spares wireguard-go its banner about kernels.
ENVIRONMENT = {**os.environ, "LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"}
WAIT = 15.0  # seconds anything may take to come about


def until(condition: Callable[[], object], what: str, within: float = WAIT) -> None:
    """Poll until the condition holds, since another process makes it true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)


class Host:
    """A network namespace, and the processes in it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def command(self, *arguments: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]

    def run(self, *arguments: str | Path, stdin: str | None = None, check: bool = True, within: float = 60) -> str:
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, timeout=within, check=False
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run a command that must fail; return its standard error."""
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0, f"{arguments} did not fail:\n{done.stdout}"
        return done.stderr

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.namespace, *arguments], check=True, timeout=10)

    def sysctl(self, key: str, value: str) -> None:
        self.run("sysctl", "-qw", f"{key}={value}")

    def pings(self, address: str, count: int = 1, within: float = WAIT) -> None:
        """Wait for one reply; then all of `count` pings must be answered."""
        until(lambda: self.reaches(address), f"{self.namespace} reaches {address}", within)
        out = self.run("ping", "-n", "-c", str(count), "-i", "0.01", "-W", "2", address)
        assert f" {count} received" in out, out

    def reaches(self, address: str, wait: float = 0.3, size: int = 56) -> bool:
        """Whether one ping with `size` bytes of payload is answered within `wait` seconds."""
        done = subprocess.run(
            self.command("ping", "-n", "-c", "1", "-W", str(wait), "-s", str(size), address),
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode == 0


class End:
    """One end of a tunnel: a program (ours or wireguard-go) with its device, and wg(8) to configure it."""

    def __init__(self, host: Host, program: Sequence[str | Path], prefix: str) -> None:
        self.host = host
        self.program = program
        self.device = f"{prefix}{secrets.token_hex(3)}"
        self.process: subprocess.Popen[bytes] | None = None
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 closed by `running`
        self.private = wg("genkey")
        self.public = wg("pubkey", stdin=self.private)

    @property
    def socket(self) -> Path:
        return UAPI_FOLDER / f"{self.device}.sock"

    def start(self, *addresses: str, mtu: int = 1420) -> None:
        self.launch()
        self.up(*addresses, mtu=mtu)

    def launch(self) -> None:
        """Start the program only: its device exists, down and without addresses."""
        assert self.process is None
        self.process = subprocess.Popen(
            self.host.command(*self.program, self.device),
            stdin=subprocess.DEVNULL,
            stderr=self.said,
            env=ENVIRONMENT,
        )
        until(self.answers, f"{self.device} answers wg")

    def up(self, *addresses: str, mtu: int = 1420) -> None:
        for address in addresses:
            self.host.ip("address", "add", address, "dev", self.device, *(["nodad"] if ":" in address else []))
        self.host.ip("link", "set", self.device, "mtu", str(mtu), "up")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.device}: its program ended with {self.process.returncode}"
        if not self.socket.exists():
            return False
        done = subprocess.run(
            self.host.command("wg", "show", self.device), capture_output=True, timeout=10, check=False
        )
        return done.returncode == 0

    def stop(self, how: int = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(how)
        return process.wait(WAIT)

    def wg(self, *arguments: str, stdin: str | None = None) -> str:
        """Run `wg VERB DEVICE …`, for instance `wg set DEVICE …`."""
        return self.host.run("wg", arguments[0], self.device, *arguments[1:], stdin=stdin)

    def show(self, what: str) -> str:
        """Return one field of the only peer."""
        (line,) = self.wg("show", what).splitlines()
        return line.split("\t", 1)[1]

    def handshake(self) -> int:
        """Return the time of the last handshake with the only peer in Unix seconds, 0 for never."""
        return int(self.show("latest-handshakes"))

    def setconf(self, text: str) -> None:
        self.wg("setconf", "/dev/stdin", stdin=text)

    def configure(
        self, *, port: int, peer: End, allowed: str, endpoint: str = "", psk: str = "", keepalive: int = 0
    ) -> None:
        """Configure everything again: key, port, and `peer` as the only peer."""
        lines = ["[Interface]", f"PrivateKey = {self.private}", f"ListenPort = {port}"]
        lines += ["[Peer]", f"PublicKey = {peer.public}", f"AllowedIPs = {allowed}"]
        lines += [f"Endpoint = {endpoint}"] if endpoint else []
        lines += [f"PresharedKey = {psk}"] if psk else []
        lines += [f"PersistentKeepalive = {keepalive}"] if keepalive else []
        self.setconf("\n".join(lines) + "\n")

    def new_key(self) -> None:
        self.private = wg("genkey")
        self.public = wg("pubkey", stdin=self.private)


def wg(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["wg", *arguments], input=stdin, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def ours(**timing: float) -> list[str | Path]:
    """Return the command of our end; `timing` shortens its constants."""
    if not timing:
        return [PYTHON, "-m", "ravenvpn.cli.tun", "--foreground"]
    return [PYTHON, HERE / "tun_with_timing.py", json.dumps(timing)]


def transfer(sender: Host, receiver: Host, address: str, size: int) -> None:
    """Send `size` bytes by TCP and compare what arrived by SHA-256."""
    script = HERE / "tcp_checksum.py"
    listening = subprocess.Popen(
        receiver.command(PYTHON, script, "receive", address), stdout=subprocess.PIPE, text=True
    )
    try:
        assert listening.stdout is not None
        port = listening.stdout.readline().strip()
        sent = sender.run(PYTHON, script, "send", address, port, str(size), within=90).strip()
        received, _ = listening.communicate(timeout=WAIT)
        assert received.strip() == sent
        assert sent.startswith(f"{size} ")
    finally:
        listening.kill()
        listening.wait()


@contextlib.contextmanager
def running(*ends: End) -> Iterator[None]:
    """Run the ends; at exit kill their processes, remove their sockets, and fail if one logged a traceback."""
    try:
        yield
    finally:
        said = ""
        for end in ends:
            if end.process is not None:
                end.stop(signal.SIGKILL)
            end.socket.unlink(missing_ok=True)
            with end.said:
                end.said.seek(0)
                said += end.said.read().decode()
        print(said, file=sys.stderr)
    assert "Traceback" not in said


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Host]]:
    """Make namespaces with loopback up, and remove them at exit."""
    names = [f"rv-{secrets.token_hex(4)}" for _ in range(count)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=10)
        yield [Host(name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=10)


def wire(one: Host, other: Host, device: str, *addresses: tuple[str, str]) -> None:
    """Join two hosts by a veth pair, with one address of each pair at each host."""
    one.ip("link", "add", device, "type", "veth", "peer", "name", device, "netns", other.namespace)
    for host, side in ((one, 0), (other, 1)):
        # Without it, deleting the first address of a subnet takes the others along.
        host.sysctl(f"net.ipv4.conf.{device}.promote_secondaries", "1")
        for pair in addresses:
            host.ip("address", "add", pair[side], "dev", device, *(["nodad"] if ":" in pair[side] else []))
        host.ip("link", "set", device, "up")


class Pair(NamedTuple):
    us: End
    them: End


# Outer addresses of (us, them), inner ones likewise.
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
INNER = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}
PORTS = (51820, 51821)


def start(us: End, them: End) -> None:
    us.start(f"{INNER[4][0]}/24", f"{INNER[6][0]}/64")
    them.start(f"{INNER[4][1]}/24", f"{INNER[6][1]}/64")
