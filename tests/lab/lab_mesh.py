"""A lab with agents on its nodes. Test folders derive their own class for what only they need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

from lab.host_dumps import Dump

from ravenvpn.agent.reports import StatusReport
from ravenvpn.cli.client import ask
from ravenvpn.errors import AgentUnreachableError, HostError
from ravenvpn.lab import Lab, LabNode
from ravenvpn.lab.agents import Agents, wait_until

SOCKET = "/run/ravenvpn/agent.sock"


def status_of(node: LabNode) -> StatusReport:
    """Return the report that `raven-vpn status` prints, without a new process.

    AgentUnreachableError if no agent answers."""
    report = ask(node.path(SOCKET), "/v1/status", StatusReport)
    assert isinstance(report, StatusReport)
    return report


@dataclass
class LabMesh:
    """Agents of a lab. `before` has a dump of each node, by name, from before the first start of its agent."""

    lab: Lab
    agents: Agents
    before: dict[str, Dump] = field(default_factory=dict)

    # Seconds until a node is healthy. Agents that start all at the same time on a loaded machine take most of them.
    PATIENCE: ClassVar[float] = 60.0

    @classmethod
    def prepared(cls, lab: Lab, dump: Callable[[LabNode], Dump] | None = None) -> Self:
        """Return a mesh with keys and manifests, in which no agent runs yet. `dump` fills `before`."""
        before = {} if dump is None else {node.name: dump(node) for node in lab.nodes}
        mesh = cls(lab, Agents(lab), before)
        mesh.agents.prepare()
        return mesh

    def start_all(self) -> None:
        """Start all agents, and wait until all nodes are healthy."""
        self.agents.start_all()
        self.wait_until_healthy()

    def node(self, name: str) -> LabNode:
        """Return a node of the lab. KeyError if there is none."""
        return self.lab.node(name)

    def status(self, name: str) -> StatusReport:
        """Return the status of a node's agent. HostError if no agent answers."""
        try:
            return status_of(self.node(name))
        except AgentUnreachableError as error:
            raise HostError(str(error)) from error

    def fault(self, name: str) -> str:
        """Return why a node is not healthy or does not answer; empty if it is and all sessions are up."""
        try:
            report = self.status(name)
        except HostError as error:
            return str(error)
        if report.sessions_up < report.sessions_wanted:
            return f"{report.sessions_up} of {report.sessions_wanted} sessions are up"
        return " ".join(report.reasons)

    def is_healthy(self, name: str) -> bool:
        """Return whether a node has no fault."""
        return not self.fault(name)

    def wait_until_healthy(self, *names: str) -> None:
        """Wait until these nodes, or all, are healthy. HostError with the fault and the end of the log otherwise."""
        for name in names or [node.name for node in self.lab.nodes]:
            try:
                wait_until(functools.partial(self.is_healthy, name), f"{name} is healthy", self.PATIENCE)
            except HostError as error:
                log = self.agents.log(self.node(name))
                raise HostError(f"{error}: {self.fault(name)}\n{log}") from error
