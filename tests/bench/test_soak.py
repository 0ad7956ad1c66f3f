"""A tunnel at full rate while peers come and go, keys change and an end moves: what it holds does not grow.

Twenty-five seconds in the usual run, ten minutes with `make soak`.
"""

from __future__ import annotations

import statistics
import time
from itertools import count
from pathlib import Path

import pytest

from bench.candidates import Tunnel, ravenvpn
from bench.conditions import crowd_key
from bench.room import Room
from bench.workloads import bulk
from ravenvpn import dataplane
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.lab.host import Machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("wg", "iperf3", "ping"),
    pytest.mark.skipif(bool(dataplane.native_absence()), reason="THE NATIVE BODY IS NOT BUILT"),
]

OUTER = 14 + 20 + 8  # bytes before a datagram: Ethernet, IPv4, UDP
MOVE = 5_000  # bytes that may be under way when an end moves, beyond half a percent
CROWD = 20  # peers that come and go at once


class Soak:
    """`near` is the end to which things happen; `far` hears of them."""

    def __init__(self, room: Room, tunnel: Tunnel) -> None:
        self.room, self.tunnel = room, tunnel
        self.keys = [crowd_key(number) for number in range(2000, 2010)]
        self.strangers = [str(crowd_key(3000 + number).public) for number in range(CROWD)]
        self.far_key = self.shown(room.far, "public-key")
        self.near_key = self.shown(room.near, "public-key")
        self.turn = 0

    def shown(self, machine: Machine, what: str) -> str:
        return machine.run(["wg", "show", self.tunnel.device, what]).stdout.strip()

    def set(self, machine: Machine, *words: str) -> None:
        machine.run(["wg", "set", self.tunnel.device, *words])

    def happen(self) -> None:
        """Peers come, peers go, an end moves; every third time our key is another one."""
        self.turn += 1
        for machine in self.room.both:
            come = [word for n, key in enumerate(self.strangers) for word in self.stranger(n, key)]
            self.set(machine, *come)
            self.set(machine, *(word for key in self.strangers for word in ("peer", key, "remove")))
        self.set(self.room.near, "listen-port", str(40_000 + self.turn % 1000))
        if self.turn % 3 == 0:
            self.change_key(self.keys[self.turn % len(self.keys)])

    @staticmethod
    def stranger(number: int, key: str) -> list[str]:
        return ["peer", key, "allowed-ips", f"10.99.{number}.0/24", "endpoint", f"192.0.2.{100 + number}:5000"]

    def change_key(self, key: PrivateKey) -> None:
        """The far end learns of the new one before it hears it; a new handshake follows."""
        self.set(self.room.far, "peer", str(key.public), "allowed-ips", f"{self.tunnel.near}/32")
        self.room.near.write("/etc/wireguard/soak.key", key.to_base64() + "\n", mode=0o600)
        self.set(self.room.near, "private-key", "/etc/wireguard/soak.key")
        self.set(self.room.far, "peer", self.near_key, "remove")
        self.near_key = str(key.public)

    def transferred(self) -> tuple[int, int]:
        """Bytes of the near end's datagrams, (received, sent), by its own count."""
        rows = (row.split("\t") for row in self.shown(self.room.near, "transfer").splitlines())
        return next((int(received), int(sent)) for key, received, sent in rows if key == self.far_key)

    def on_the_wire(self) -> tuple[int, int]:
        """The same by the kernel's count of the wire below, which has next to nothing else to carry. What UDP_SEGMENT
        sends as one has one header there."""
        rows = self.room.near.run(["cat", "/proc/net/dev"]).stdout.splitlines()
        fields = [int(word) for word in next(row for row in rows if "eth0:" in row).split(":")[1].split()]
        return fields[0] - fields[1] * OUTER, fields[8] - fields[9] * OUTER


def resident(pid: int) -> float:
    """MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def soak(seconds: float) -> None:
    with Room() as room:
        tunnel = ravenvpn("native", "chacha20poly1305", 9)
        tunnel.start(room)
        soak = Soak(room, tunnel)
        memory: dict[int, list[float]] = {pid: [] for pid in tunnel.pids()}
        files: dict[int, list[int]] = {pid: [] for pid in tunnel.pids()}
        ours_before, wire_before = soak.transferred(), soak.on_the_wire()
        end = time.monotonic() + seconds
        with bulk(room, tunnel.far, seconds):
            for _ in count():
                soak.happen()
                for pid in tunnel.pids():
                    memory[pid].append(resident(pid))
                    files[pid].append(descriptors(pid))
                if time.monotonic() > end:
                    break
                time.sleep(0.3)
        ours, wire = soak.transferred(), soak.on_the_wire()
        assert ours[1] - ours_before[1] > 1e6 * seconds, "traffic flowed all the time"
        for name, own, before, kernel, kernel_before in zip(
            ("received", "sent"), ours, ours_before, wire, wire_before, strict=True
        ):
            said, carried = own - before, kernel - kernel_before
            # What was on its way to a port that was just left, and ARP, is the kernel's alone.
            assert carried * 0.995 - MOVE * soak.turn <= said <= carried, name
        for pid in tunnel.pids():
            third = len(memory[pid]) // 3
            middle, last = statistics.median(memory[pid][third : 2 * third]), statistics.median(memory[pid][-third:])
            assert last <= middle * 1.02 + 1, f"memory grew from {middle:.1f} to {last:.1f} MB"
            assert max(files[pid][-third:]) <= max(files[pid][:third]) + 1, f"descriptors: {files[pid]}"


def test_nothing_grows_within_half_a_minute():
    soak(25)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nothing_grows_within_ten_minutes():
    soak(600)
