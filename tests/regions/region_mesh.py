"""Meshes of regions with several nodes: real agents in a lab, and that their hosts are in the end what they were."""

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
PATIENCE = 90.0  # seconds; nine agents that start at once take longer than a lab's four


@dataclass
class Mesh(LabMesh):
    PATIENCE: ClassVar[float] = PATIENCE

    def region(self, name: str) -> list[LabNode]:
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
        mesh.agents.stop(mesh.node(name))
    with ThreadPoolExecutor(max_workers=4) as workers:
        list(workers.map(lambda name: mesh.node(name).run([*RAVEN_VPN, "cleanup"], timeout=PATIENCE), names))
    left = {name: differences(mesh.before[name], dump(mesh.node(name))) for name in names}
    assert {name: found for name, found in left.items() if found} == {}
