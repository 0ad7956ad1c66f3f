"""Meshes of regions with several nodes: real agents in a lab, and what their hosts looked like before them."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from region_dumps import differences, dump

from ravenvpn.agent.report import StatusReport
from ravenvpn.cli.client import ask
from ravenvpn.errors import AgentUnreachableError, HostError
from ravenvpn.lab import Lab, Node
from ravenvpn.lab.agents import RAVEN_VPN, Agents, wait_until

SOCKET = "/run/ravenvpn/agent.sock"
PATIENCE = 90.0  # seconds to get well; nine agents that start at once on a busy machine take most of them
TOOLS = ("ip", "nft", "nsenter", "unshare", "sysctl", "ping", "tcpdump", "ss", "conntrack")
IPTABLES = tuple(
    f"{ip}tables-{kind}{what}" for ip in ("ip", "ip6") for kind in ("nft", "legacy") for what in ("-save", "-restore")
)


@dataclass
class Mesh:
    lab: Lab
    agents: Agents
    before: dict[str, dict[str, object]] = field(default_factory=dict)  # dumps from before the first start

    def node(self, name: str) -> Node:
        return self.lab.node(name)

    def status(self, name: str) -> StatusReport:
        """Without the time a new process takes. HostError where no agent answers."""
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
        for name in names or [node.name for node in self.lab.nodes]:
            try:
                wait_until(
                    functools.partial(lambda name: not self.complaint(name), name), f"{name} is well", PATIENCE
                )
            except HostError as error:
                raise HostError(f"{error}: {self.complaint(name)}\n{self.agents.log(self.node(name))}") from error

    def region(self, name: str) -> list[Node]:
        return [node for node in self.lab.nodes if node.region.name == name]


def assert_clean(mesh: Mesh) -> None:
    """End all agents and clean up after them: each host is then as it was before the first start."""
    names = [node.name for node in mesh.lab.nodes]
    running = {name: dump(mesh.node(name)) for name in names}
    for name in names:
        seen = str(differences(mesh.before[name], running[name]))
        for ours in ("raven0", "'table': '9127'", "ip -j rule", "'name': 'ravenvpn'", "conf.raven0.rp_filter"):
            assert ours in seen, f"{name}: a dump must show what an agent leaves"
    for name in names:
        mesh.agents.process(mesh.node(name)).terminate()
    for name in names:
        mesh.agents.end(mesh.node(name))
    with ThreadPoolExecutor(max_workers=4) as workers:
        list(workers.map(lambda name: mesh.node(name).run([*RAVEN_VPN, "cleanup"], timeout=PATIENCE), names))
    left = {name: differences(mesh.before[name], dump(mesh.node(name))) for name in names}
    assert {name: found for name, found in left.items() if found} == {}
