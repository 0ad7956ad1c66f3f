"""The mesh that the tests of this folder share, and what they ask of it.

Two public regions, so that there is a second hub, and two behind NAT that meet through one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ravenvpn.agent.report import StatusReport
from ravenvpn.cli.client import ask
from ravenvpn.errors import AgentUnreachableError, HostError
from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents, wait_until
from ravenvpn.lab.host import Node

ROOT = Path(__file__).parent.parent.parent
REGIONS = (
    Region("cloud", pods=2),
    Region("harbour", pods=1),
    Region("factory", pods=2, nat=Nat.PORT_RESTRICTED),
    Region("ship", pods=2, nat=Nat.SYMMETRIC),
)
SOCKET = "/run/ravenvpn/agent.sock"
Measured = Callable[[str, float], None]
PATIENCE = 60.0  # seconds to get well; four agents that start at once on a busy machine take most of them


@dataclass
class Mesh:
    lab: Lab
    agents: Agents
    before: dict[str, dict[str, object]]  # dumps of each node from before its agent's first start
    preshared_key: str

    def node(self, name: str) -> Node:
        return self.lab.node(name)

    def status(self, name: str) -> StatusReport:
        """As `raven-vpn status` gets it, without the time a new process takes. HostError where no agent answers."""
        try:
            report = ask(self.node(name).path(SOCKET), "/v1/status", StatusReport)
        except AgentUnreachableError as error:
            raise HostError(str(error)) from error
        assert isinstance(report, StatusReport)
        return report

    def complaint(self, name: str) -> str:
        """Everything that is wrong with a node, or why it does not say; empty when it is well and all are met."""
        try:
            report = self.status(name)
        except HostError as error:
            return str(error)
        if report.sessions_up < report.sessions_wanted:
            return f"{report.sessions_up} of {report.sessions_wanted} sessions are up"
        return " ".join(report.reasons)

    def is_well(self, name: str) -> bool:
        return not self.complaint(name)

    def well(self, *names: str) -> None:
        """Wait until these nodes, or all, are well; HostError with what is wrong and the end of the log if not."""
        for name in names or [node.name for node in self.lab.nodes]:
            try:
                wait_until(
                    functools.partial(lambda name: not self.complaint(name), name), f"{name} is well", PATIENCE
                )
            except HostError as error:
                log = self.agents.log(self.node(name))
                raise HostError(f"{error}: {self.complaint(name)}\n{log}") from error

    def start(self, name: str, *arguments: str) -> None:
        self.agents.start(self.node(name), *arguments)

    def hub(self) -> str:
        """The node of the region through which factory and ship meet now."""
        paths = {region.name: region.path for region in self.status("factory-1").regions}
        return paths["ship"].removeprefix("via ") + "-1"
