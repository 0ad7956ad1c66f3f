"""Mesh of two regions with an agent each: measures manifests, planning, tunnels and host network together."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import WORLD, Agents, wait_until
from ravenvpn.lab.host import LabHost, LabNode

HEALTH = ("127.0.0.1", 10275)  # default listen address of the health endpoints
HEALTH_TIMEOUT = 1.0  # seconds; a kubelet's default for a probe


class Mesh:
    """A running mesh. `near` and `far` are pods, each behind a gateway whose agent reads its manifests from files."""

    name = "ravenvpn agents"

    def __enter__(self) -> Self:
        self._lab = Lab(Region("cloud"), Region("factory", nat=Nat.PORT_RESTRICTED))
        self._lab.__enter__()
        try:
            self.gateway, self._caller = self._lab.node("cloud-1"), self._lab.node("factory-1")
            self.near, self.far = self._lab.pod("factory-1-pod-1"), self._lab.pod("cloud-1-pod-1")
            self.agents = Agents(self._lab)
            self.agents.prepare()
            self.agents.start_all()
            self.wait_until_healthy()
        except BaseException:
            self._lab.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lab.__exit__(kind, error, trace)

    @property
    def internet(self) -> LabHost:
        """The host between the regions, from which a flood is sent."""
        return self._lab.internet

    @property
    def nodes(self) -> tuple[LabNode, LabNode]:
        return self.gateway, self._caller

    def pids(self) -> list[int]:
        return [self.agents.process(node).pid for node in self.nodes]

    def wait_until_healthy(self) -> None:
        """Wait until both agents are healthy and a ping between the pods is answered. HostError otherwise."""
        self.agents.wait_until_well(patience=60)
        ping = ["ping", "-c", "1", "-W", "1", str(self.far.v4)]
        wait_until(
            lambda: not self.near.run(ping, check=False).returncode, "a ping from one pod to the other is answered"
        )

    def manifest_folders(self) -> tuple[Path, Path]:
        """Return the folders of manifests that the agents watch."""
        return self.gateway.path(WORLD), self._caller.path(WORLD)

    def health(self) -> float:
        """Return the seconds until the gateway's agent answers a readiness probe; HEALTH_TIMEOUT if it does not."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(*HEALTH)
        connection.sock = self.gateway.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(HEALTH_TIMEOUT)
            connection.sock.connect(HEALTH)
            connection.request("GET", "/readyz")
            connection.getresponse().read()
        except OSError:
            return HEALTH_TIMEOUT
        finally:
            connection.close()
        return time.monotonic() - began
