"""Meshes of regions with several nodes, and the check that `raven-vpn cleanup` restores every host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from lab.host_dumps import differences
from lab.lab_mesh import LabMesh
from region_dumps import dump

from ravenvpn.lab import LabNode
from ravenvpn.lab.agents import RAVEN_VPN

TOOLS = ("ip", "nft", "nsenter", "unshare", "sysctl", "ping", "tcpdump", "ss", "conntrack")
IPTABLES = tuple(
    f"{ip}tables-{kind}{what}" for ip in ("ip", "ip6") for kind in ("nft", "legacy") for what in ("-save", "-restore")
)
TIMEOUT = 90.0  # seconds; nine agents that start at the same time take longer than four


@dataclass
class Mesh(LabMesh):
    """A lab with agents, and its nodes by region."""

    PATIENCE: ClassVar[float] = TIMEOUT

    def region(self, name: str) -> list[LabNode]:
        return [node for node in self.lab.nodes if node.region.name == name]


def assert_clean(mesh: Mesh) -> None:
    """Stop all agents, run `raven-vpn cleanup`, and assert that each host is as it was before the first start."""
    names = [node.name for node in mesh.lab.nodes]
    running = {name: dump(mesh.node(name)) for name in names}
    for name in names:
        seen = str(differences(mesh.before[name], running[name]))
        for ours in ("raven0", "'table': '9127'", "ip -j rule", "'name': 'ravenvpn'", "conf.raven0.rp_filter"):
            assert ours in seen, f"{name}: the dump does not show {ours}, which a running agent makes"
    for name in names:
        mesh.agents.process(mesh.node(name)).terminate()
    for name in names:
        mesh.agents.end(mesh.node(name))
    with ThreadPoolExecutor(max_workers=4) as workers:
        list(workers.map(lambda name: mesh.node(name).run([*RAVEN_VPN, "cleanup"], timeout=TIMEOUT), names))
    left = {name: differences(mesh.before[name], dump(mesh.node(name))) for name in names}
    assert {name: found for name, found in left.items() if found} == {}
