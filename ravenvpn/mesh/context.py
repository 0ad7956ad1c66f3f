"""What a node's plan depends on beside the other regions: who it is, what its host is like, how it is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ravenvpn.mesh.claims import NetworkSet
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.topology import GatewayNode, Hub, Region
from ravenvpn.mesh.vxlan_members import Overlay


@dataclass(frozen=True, slots=True)
class Context:
    """Who this node is in this world. Equal contexts make equal fragments of equal regions."""

    node: str
    mesh: str
    role: NodeRole
    region: Region | None
    me: GatewayNode | None  # this node as a gateway of its region, where it is one
    sources: Mapping[int, Address]  # own source by family
    shadowed: frozenset[Prefix]  # others' prefixes that are our own network's here
    near: NetworkSet  # our own network: no node of another region is looked for elsewhere at an address in here
    facts: LocalFacts
    forward_node_ip: bool  # node addresses of other regions are routed and accepted, as pod prefixes are
    hubs: tuple[Hub, ...]
    overlay: Overlay | None = None  # its part in its region's VXLAN

    @property
    def dialable(self) -> bool:
        return self.me is not None and self.me.dialable

    @property
    def is_gateway(self) -> bool:
        return self.role in (NodeRole.ACTIVE, NodeRole.STANDBY)

    @property
    def relays(self) -> bool:
        """Whether packets between two other regions may pass here."""
        return (
            self.role is NodeRole.ACTIVE
            and self.region is not None
            and any(self.node in hub.active for hub in self.hubs if hub.region == self.region.name)
        )
