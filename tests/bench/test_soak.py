"""Memory and descriptors of a tunnel do not grow at full rate, while peers are added and removed, keys change and one
end roams.

25 seconds in the usual run, ten minutes with `make soak`.
"""

from __future__ import annotations

import statistics
import time
from itertools import count
from pathlib import Path

import pytest

from bench.candidates import Tunnel, ravenvpn
from bench.conditions import peer_key
from bench.machine_pair import MachinePair
from bench.workloads import bulk
from ravenvpn import dataplane
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.lab.host import Machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("wg", "iperf3", "ping"),
    pytest.mark.skipif(bool(dataplane.native_absence()), reason="THE NATIVE BODY IS NOT BUILT"),
]

OUTER = 14 + 20 + 8  # bytes of headers before a datagram: Ethernet, IPv4, UDP
ROAM = 5_000  # bytes in flight when an end roams, in addition to half a percent
ADDED = 20  # peers that are added and removed together


class Soak:
    """Changes of a running tunnel at its near end, and the counters of both ends."""

    def __init__(self, machines: MachinePair, tunnel: Tunnel) -> None:
        self.machines, self.tunnel = machines, tunnel
        self.keys = [peer_key(number) for number in range(2000, 2010)]
        self.added = [str(peer_key(3000 + number).public) for number in range(ADDED)]
        self.far_key = self.shown(machines.far, "public-key")
        self.near_key = self.shown(machines.near, "public-key")
        self.turn = 0

    def shown(self, machine: Machine, what: str) -> str:
        return machine.run(["wg", "show", self.tunnel.device, what]).stdout.strip()

    def set(self, machine: Machine, *words: str) -> None:
        machine.run(["wg", "set", self.tunnel.device, *words])

    def change(self) -> None:
        """Add peers, remove them, and change the port of the near end; every third time change its key too."""
        self.turn += 1
        for machine in self.machines.both:
            words = [word for n, key in enumerate(self.added) for word in self.peer(n, key)]
            self.set(machine, *words)
            self.set(machine, *(word for key in self.added for word in ("peer", key, "remove")))
        self.set(self.machines.near, "listen-port", str(40_000 + self.turn % 1000))
        if self.turn % 3 == 0:
            self.change_key(self.keys[self.turn % len(self.keys)])

    @staticmethod
    def peer(number: int, key: str) -> list[str]:
        return ["peer", key, "allowed-ips", f"10.99.{number}.0/24", "endpoint", f"192.0.2.{100 + number}:5000"]

    def change_key(self, key: PrivateKey) -> None:
        """Add the new key at the far end, use it at the near end, remove the old one. A new handshake follows."""
        self.set(self.machines.far, "peer", str(key.public), "allowed-ips", f"{self.tunnel.near}/32")
        self.machines.near.write("/etc/wireguard/soak.key", key.to_base64() + "\n", mode=0o600)
        self.set(self.machines.near, "private-key", "/etc/wireguard/soak.key")
        self.set(self.machines.far, "peer", self.near_key, "remove")
        self.near_key = str(key.public)

    def transferred(self) -> tuple[int, int]:
        """Return the bytes of datagrams that the near end counts: (received, sent)."""
        rows = (row.split("\t") for row in self.shown(self.machines.near, "transfer").splitlines())
        return next((int(received), int(sent)) for key, received, sent in rows if key == self.far_key)

    def on_the_wire(self) -> tuple[int, int]:
        """Return the same as the kernel counts it on the veth pair, which carries almost nothing else.

        A train that UDP_SEGMENT sends is one packet with one header in these counters.
        """
        rows = self.machines.near.run(["cat", "/proc/net/dev"]).stdout.splitlines()
        fields = [int(word) for word in next(row for row in rows if "eth0:" in row).split(":")[1].split()]
        return fields[0] - fields[1] * OUTER, fields[8] - fields[9] * OUTER


def resident(pid: int) -> float:
    """Return the resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def soak(seconds: float) -> None:
    with MachinePair() as machines:
        tunnel = ravenvpn("native", "chacha20poly1305", 9)
        tunnel.start(machines)
        soak = Soak(machines, tunnel)
        memory: dict[int, list[float]] = {pid: [] for pid in tunnel.pids()}
        files: dict[int, list[int]] = {pid: [] for pid in tunnel.pids()}
        ours_before, wire_before = soak.transferred(), soak.on_the_wire()
        end = time.monotonic() + seconds
        with bulk(machines, tunnel.far, seconds):
            for _ in count():
                soak.change()
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
            counted, carried = own - before, kernel - kernel_before
            # Datagrams in flight to the previous port, and ARP, are counted by the kernel alone.
            assert carried * 0.995 - ROAM * soak.turn <= counted <= carried, name
        for pid in tunnel.pids():
            third = len(memory[pid]) // 3
            middle, last = statistics.median(memory[pid][third : 2 * third]), statistics.median(memory[pid][-third:])
            assert last <= middle * 1.02 + 1, f"memory grew from {middle:.1f} to {last:.1f} MB"
            assert max(files[pid][-third:]) <= max(files[pid][:third]) + 1, f"descriptors: {files[pid]}"


def test_memory_and_descriptors_do_not_grow_in_25_seconds():
    soak(25)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_memory_and_descriptors_do_not_grow_in_ten_minutes():
    soak(600)
