"""The mesh that the tests of this folder share.

Two regions are public, so that there is a second hub. Two regions are behind NAT and reach each other through one of
the hubs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.lab_mesh import LabMesh

from ravenvpn.lab import Nat, Region

ROOT = Path(__file__).parent.parent.parent
REGIONS = (
    Region("cloud", pods=2),
    Region("harbour", pods=1),
    Region("factory", pods=2, nat=Nat.PORT_RESTRICTED),
    Region("ship", pods=2, nat=Nat.SYMMETRIC),
)
Measured = Callable[[str, float], None]
PATIENCE = LabMesh.PATIENCE


@dataclass
class Mesh(LabMesh):
    preshared_key: str = ""

    def start(self, name: str, *arguments: str) -> None:
        self.agents.start(self.node(name), *arguments)

    def hub(self) -> str:
        """Return the node of the region that relays between factory and ship at the moment."""
        paths = {region.name: region.path for region in self.status("factory-1").regions}
        return paths["ship"].removeprefix("via ") + "-1"
