"""What agents are put through while traffic flows: a flood of handshakes, a world that does not come to rest."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.mesh import Mesh
from bench.workloads import Figures, bulk, iperf, ping
from bench.worlds import world
from ravenvpn.errors import HostError
from ravenvpn.lab.manifests import LISTEN_PORT

ROOT = Path(__file__).parents[1]


class Scene(Protocol):
    """As a `Workload`, but in a mesh, which it needs whole."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def headline(self) -> str: ...

    @property
    def underlay_mtu(self) -> int: ...

    def run(self, mesh: Mesh, seconds: float) -> Figures: ...


@dataclass(frozen=True, slots=True)
class HandshakeFlood:
    """Spoofed initiations at ten times what the responder can answer (below 2,000 a second: workload "handshakes"),
    to the tunnel's port, and for comparison to a closed one of the same node."""

    name: str = "agent-flood"
    title: str = "agents, 20,000 spoofed handshakes a second to one of them"
    headline: str = field(default="Gbit/s, × closed port", init=False)
    underlay_mtu: int = field(default=1500, init=False)

    RATE = 20_000
    CLOSED_PORT = 9

    def run(self, mesh: Mesh, seconds: float) -> Figures:
        closed = self._under(mesh, self.CLOSED_PORT, seconds)
        flooded = self._under(mesh, LISTEN_PORT, seconds)
        return {
            "Gbit/s, × closed port": flooded["Gbit/s"] / closed["Gbit/s"],
            **flooded,
            "Gbit/s, port closed": closed["Gbit/s"],
            "lost %, port closed": closed["lost %"],
        }

    def _under(self, mesh: Mesh, port: int, seconds: float) -> Figures:
        key = mesh.agents.public_keys[mesh.gateway.name]
        argv = [str(mesh.gateway.v4), str(port), key, str(self.RATE), str(2 * seconds + 4)]
        flood = mesh.internet.popen(
            [sys.executable, "-m", "bench.flood", *argv], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
        )
        try:
            time.sleep(1.5)  # until it is under way
            with _health_watched(mesh) as slowest:
                tcp = iperf(mesh, str(mesh.far.v4), seconds, [])["sum_received"]
                udp = iperf(mesh, str(mesh.far.v4), seconds, ["-u", "-l", "200", "-b", str(1000 * 200 * 8)])["sum"]
            sent, _ = flood.communicate(timeout=seconds * 4 + 30)
        finally:
            flood.kill()
            flood.wait()
        return {
            "Gbit/s": tcp["bits_per_second"] / 1e9,
            "lost %": 100 * udp["lost_packets"] / max(1, udp["packets"]),
            "health ms": max(slowest) * 1e3,
            "flood kpps": float(sent) / 1e3,
        }


@contextmanager
def _health_watched(mesh: Mesh) -> Iterator[list[float]]:
    """Ten times a second; yields how long each answer took, in seconds."""
    took: list[float] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.1):
            took.append(mesh.health())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield took
    finally:
        end.set()
        watcher.join()


@dataclass(frozen=True, slots=True)
class ControlStorm:
    """The world grows to a thousand Gateways and shrinks again every six seconds, beside one TCP flow and 1,000 pings
    a second. Both agents read it, on the same cores."""

    name: str = "agent-storm"
    title: str = "agents, the world rewritten to 1,000 gateways and back ten times a minute"
    headline: str = field(default="p99, × calm", init=False)
    underlay_mtu: int = field(default=1500, init=False)

    GATEWAYS = 1000
    HALF = 3.0  # seconds from growing to shrinking, and on to growing again
    INTERVAL = 0.001  # seconds between pings

    def run(self, mesh: Mesh, seconds: float) -> Figures:
        seconds = max(seconds, 4 * self.HALF)
        far = str(mesh.far.v4)
        with bulk(mesh, far, 2 * seconds):
            calm = ping(mesh, far, seconds, self.INTERVAL)
            with self._storm(mesh) as rewritten:
                stormy = ping(mesh, far, seconds, self.INTERVAL)
        if len(rewritten) < 2:
            raise HostError("the storm did not begin")
        mesh.until_well()
        return {
            "p99, × calm": stormy["p99 µs"] / calm["p99 µs"],
            **stormy,
            "p99 µs, calm": calm["p99 µs"],
            "lost %, calm": calm["lost %"],
            "worlds": len(rewritten),
        }

    @contextmanager
    def _storm(self, mesh: Mesh) -> Iterator[list[float]]:
        """Yields when each world was written."""
        text = world(self.GATEWAYS)
        written: list[float] = []
        end = threading.Event()

        def blow() -> None:
            while not end.is_set():
                for folder in mesh.worlds():
                    self._replace(folder, text)
                written.append(time.monotonic())
                end.wait(self.HALF)
                for folder in mesh.worlds():
                    (folder / "storm.json").unlink()
                written.append(time.monotonic())
                end.wait(self.HALF)

        wind = threading.Thread(target=blow)
        wind.start()
        try:
            yield written
        finally:
            end.set()
            wind.join()

    @staticmethod
    def _replace(folder: Path, text: str) -> None:
        """A watcher never reads half of it."""
        scratch = folder / ".storm.json.new"
        scratch.write_text(text)
        scratch.rename(folder / "storm.json")


SCENES: tuple[Scene, ...] = (HandshakeFlood(), ControlStorm())
