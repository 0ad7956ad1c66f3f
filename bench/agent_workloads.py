"""Workloads for a mesh of agents: traffic during a flood of handshakes and in a cluster that changes constantly."""

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

from bench.large_world import large_world
from bench.mesh import Mesh
from bench.workloads import Figures, bulk, iperf, ping
from ravenvpn.errors import HostError
from ravenvpn.lab.manifests import LISTEN_PORT
from ravenvpn.overhead import ETHERNET_MTU

ROOT = Path(__file__).parents[1]


class AgentWorkload(Protocol):
    """A workload that runs in a mesh instead of a pair of machines, see `bench.workloads.Measured`."""

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
    """Flood of spoofed initiations, at ten times the rate that a responder can answer.

    That rate is below 2,000 a second (workload "handshakes"). The flood is sent to the port of the tunnel, and for
    comparison to a closed port of the same node.
    """

    name: str = "agent-flood"
    title: str = "agents, 20,000 spoofed handshakes a second to one of them"
    headline: str = field(default="Gbit/s, × closed port", init=False)
    underlay_mtu: int = field(default=ETHERNET_MTU, init=False)

    RATE = 20_000  # initiations per second
    CLOSED_PORT = 9  # discard, RFC 863

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
            time.sleep(1.5)  # until the flood is at its rate
            with _probed_health(mesh) as durations:
                tcp = iperf(mesh, str(mesh.far.v4), seconds, [])["sum_received"]
                udp = iperf(mesh, str(mesh.far.v4), seconds, ["-u", "-l", "200", "-b", str(1000 * 200 * 8)])["sum"]
            sent, _ = flood.communicate(timeout=seconds * 4 + 30)
        finally:
            flood.kill()
            flood.wait()
        return {
            "Gbit/s": tcp["bits_per_second"] / 1e9,
            "lost %": 100 * udp["lost_packets"] / max(1, udp["packets"]),
            "health ms": max(durations) * 1e3,
            "flood kpps": float(sent) / 1e3,
        }


@contextmanager
def _probed_health(mesh: Mesh) -> Iterator[list[float]]:
    """Probe the health endpoint ten times a second. Yields the growing list of durations in seconds."""
    durations: list[float] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.1):
            durations.append(mesh.health())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield durations
    finally:
        end.set()
        watcher.join()


@dataclass(frozen=True, slots=True)
class ControlStorm:
    """Cluster that grows by a thousand Gateways and shrinks again every six seconds.

    Meanwhile there are one TCP flow and 1,000 pings a second. Both agents read the manifests, on the same cores.
    """

    name: str = "agent-storm"
    title: str = "agents, the world rewritten to 1,000 gateways and back ten times a minute"
    headline: str = field(default="p99, × calm", init=False)
    underlay_mtu: int = field(default=ETHERNET_MTU, init=False)

    GATEWAYS = 1000
    HALF = 3.0  # seconds from growing to shrinking, and from shrinking to growing
    INTERVAL = 0.001  # seconds between pings

    def run(self, mesh: Mesh, seconds: float) -> Figures:
        seconds = max(seconds, 4 * self.HALF)
        far = str(mesh.far.v4)
        with bulk(mesh, far, 2 * seconds):
            calm = ping(mesh, far, seconds, self.INTERVAL)
            with self._storm(mesh) as rewritten:
                stormy = ping(mesh, far, seconds, self.INTERVAL)
        if len(rewritten) < 2:
            raise HostError("the manifests were not rewritten during the measurement")
        mesh.wait_until_healthy()
        return {
            "p99, × calm": stormy["p99 µs"] / calm["p99 µs"],
            **stormy,
            "p99 µs, calm": calm["p99 µs"],
            "lost %, calm": calm["lost %"],
            "worlds": len(rewritten),
        }

    @contextmanager
    def _storm(self, mesh: Mesh) -> Iterator[list[float]]:
        """Rewrite the manifests all the time. Yields the growing list of times at which they were written."""
        text = large_world(self.GATEWAYS)
        written: list[float] = []
        end = threading.Event()

        def rewrite() -> None:
            while not end.is_set():
                for folder in mesh.manifest_folders():
                    self._replace(folder, text)
                written.append(time.monotonic())
                end.wait(self.HALF)
                for folder in mesh.manifest_folders():
                    (folder / "storm.json").unlink()
                written.append(time.monotonic())
                end.wait(self.HALF)

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            yield written
        finally:
            end.set()
            writer.join()

    @staticmethod
    def _replace(folder: Path, text: str) -> None:
        """Write the file in one step, so that an agent never reads half of it."""
        scratch = folder / ".storm.json.new"
        scratch.write_text(text)
        scratch.rename(folder / "storm.json")


AGENT_WORKLOADS: tuple[AgentWorkload, ...] = (HandshakeFlood(), ControlStorm())
