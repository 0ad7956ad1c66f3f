"""The mesh that the tests of this folder share, and what they ask of it.

Two public regions, so that there is a second hub, and two behind NAT that meet through one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents
from ravenvpn.lab.host import Node

ROOT = Path(__file__).parent.parent.parent
REGIONS = (
    Region("cloud", pods=2),
    Region("harbour", pods=1),
    Region("factory", pods=2, nat=Nat.PORT_RESTRICTED),
    Region("ship", pods=2, nat=Nat.SYMMETRIC),
)
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

    def well(self, *nodes: str) -> None:
        self.agents.wait_until_well([self.node(name) for name in nodes], PATIENCE)

    def start(self, name: str, *arguments: str) -> None:
        self.agents.start(self.node(name), *arguments)

    def hub(self) -> str:
        """The node of the region through which factory and ship meet now."""
        paths = {r["name"]: str(r["path"]) for r in self.agents.status(self.node("factory-1"))["regions"]}
        return paths["ship"].removeprefix("via ") + "-1"
