"""A lab with agents on its nodes: how they are made ready, and when they are well. Folders add what only they ask."""

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
    """As `raven-vpn status` gets it, but at once; AgentUnreachableError where no agent answers."""
    report = ask(node.path(SOCKET), "/v1/status", StatusReport)
    assert isinstance(report, StatusReport)
    return report


@dataclass
class LabMesh:
    """Names are those of the lab's nodes. `before` has a dump of each from before its agent's first start."""

    lab: Lab
    agents: Agents
    before: dict[str, Dump] = field(default_factory=dict)

    # Seconds to get well; agents that start all at once on a busy machine take most of them.
    PATIENCE: ClassVar[float] = 60.0

    @classmethod
    def prepared(cls, lab: Lab, dump: Callable[[LabNode], Dump] | None = None) -> Self:
        """Keys and manifests are there, and no agent runs yet. Without `dump` nobody will ask how a host was."""
        before = {} if dump is None else {node.name: dump(node) for node in lab.nodes}
        mesh = cls(lab, Agents(lab), before)
        mesh.agents.prepare()
        return mesh

    def start_all(self) -> None:
        """All agents, and until all are well."""
        self.agents.start_all()
        self.wait_until_healthy()

    def node(self, name: str) -> LabNode:
        return self.lab.node(name)

    def status(self, name: str) -> StatusReport:
        """HostError where no agent answers."""
        try:
            return status_of(self.node(name))
        except AgentUnreachableError as error:
            raise HostError(str(error)) from error

    def fault(self, name: str) -> str:
        """Everything that is wrong with a node, or why it does not say; empty when it is well and all are met."""
        try:
            report = self.status(name)
        except HostError as error:
            return str(error)
        if report.sessions_up < report.sessions_wanted:
            return f"{report.sessions_up} of {report.sessions_wanted} sessions are up"
        return " ".join(report.reasons)

    def is_healthy(self, name: str) -> bool:
        return not self.fault(name)

    def wait_until_healthy(self, *names: str) -> None:
        """Wait until these nodes, or all, are well; HostError with what is wrong and the end of the log if not."""
        for name in names or [node.name for node in self.lab.nodes]:
            try:
                wait_until(functools.partial(self.is_healthy, name), f"{name} is well", self.PATIENCE)
            except HostError as error:
                log = self.agents.log(self.node(name))
                raise HostError(f"{error}: {self.fault(name)}\n{log}") from error
