"""`Context`: the facts about this node that its plan of every other region depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.hubs import Hub
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import Gateway, World, host_prefix, lan_addresses
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.region_index import RegionIndex
from ravenvpn.mesh.resolved_region import GatewayNode, ResolvedRegion
from ravenvpn.mesh.situation import Situation
from ravenvpn.mesh.sources import preferred_sources
from ravenvpn.mesh.vxlan_members import Overlay, overlay_of, vxlan_members
from ravenvpn.prefixes import PrefixSet


@dataclass(frozen=True, slots=True)
class Context:
    """This node in one situation. Equal contexts and equal regions make equal plans of those regions."""

    node: str
    mesh: str
    role: NodeRole
    region: ResolvedRegion | None  # the own one, with standbys in the place of dead gateways
    own_gateway: GatewayNode | None  # this node's entry in `region.gateways`; None on a plain node
    sources: Mapping[int, Address]  # preferred source by IP version
    shadowed: frozenset[Prefix]  # prefixes of other regions that overlap prefixes our own region lost to them
    # Prefixes of our own LAN, with forwardNodeIP: no route is installed for a remote node whose address is in one.
    own_network: frozenset[Prefix]
    facts: LocalFacts
    forward_node_ip: bool  # node addresses of other regions are routed and accepted, as pod prefixes are
    hubs: tuple[Hub, ...]
    overlay: Overlay | None = None  # the node's part in its region's VXLAN; None: it takes no part
    _own_network: PrefixSet = field(init=False, compare=False, repr=False)  # `own_network`, for look-ups

    def __post_init__(self) -> None:
        """Build the look-up structure of `own_network`."""
        object.__setattr__(self, "_own_network", PrefixSet(self.own_network))

    @property
    def dialable(self) -> bool:
        """Whether other regions can start a handshake with this node."""
        return self.own_gateway is not None and self.own_gateway.dialable

    @property
    def is_gateway(self) -> bool:
        """Whether this node is a gateway or a standby: only these hold sessions with other regions."""
        return self.role in (NodeRole.ACTIVE, NodeRole.STANDBY)

    @property
    def relays(self) -> bool:
        """Whether packets between two other regions may pass through this node."""
        return (
            self.role is NodeRole.ACTIVE
            and self.region is not None
            and any(self.node in hub.active for hub in self.hubs if hub.region == self.region.name)
        )

    def differs_beyond_hubs(self, other: Context) -> bool:
        """Return whether any field but `hubs` differs: then the plan of every remote region may be another."""
        return any(getattr(self, name) != getattr(other, name) for name in _FIELDS_BUT_HUBS)

    def in_own_network(self, address: Address) -> bool:
        """Return whether the address lies in a prefix of our own LAN."""
        return self._own_network.covers(address)


# Hubs are compared apart: if they alone differ, only regions that are reached through hubs are planned anew.
_FIELDS_BUT_HUBS = tuple(f.name for f in fields(Context) if f.compare and f.name != "hubs")


def make_context(situation: Situation, regions: RegionIndex) -> Context:
    """Return the context of the node `regions.me`. `regions` must hold the world of `situation` already."""
    me, world, liveness, facts = regions.me, situation.world, situation.liveness, situation.facts
    forward_node_ip = situation.intent.forward_node_ip
    region = regions.own_region(liveness)
    gateway = world.gateways[region.name] if region else None
    info = next((i for i in gateway.status.nodes if i.node == me), None) if gateway else None
    role, own_gateway = _role(me, region)
    return Context(
        node=me,
        mesh=world.mesh,
        role=role,
        region=region,
        own_gateway=own_gateway,
        sources=preferred_sources(info, world.peers.get(me), facts),
        shadowed=regions.refused(region.name).shadowed if region else frozenset(),
        own_network=_own_network(gateway, world, facts) if gateway and forward_node_ip else frozenset(),
        facts=facts,
        forward_node_ip=forward_node_ip,
        hubs=regions.hubs(liveness),
        overlay=_overlay(region, situation, regions) if region else None,
    )


def _role(node: str, region: ResolvedRegion | None) -> tuple[NodeRole, GatewayNode | None]:
    """Return the node's role in its region, and its own entry if it is a gateway or a standby."""
    if region is None:
        return NodeRole.NONE, None
    for gateway in region.gateways:
        if gateway.node == node:
            return (NodeRole.ACTIVE if gateway.active else NodeRole.STANDBY), gateway
    return NodeRole.PLAIN, None


def _own_network(gateway: Gateway, world: World, facts: LocalFacts) -> frozenset[Prefix]:
    """Return the on-link prefixes of this host, and the pods and node addresses of its region."""
    found = set(facts.networks)
    for info in gateway.status.nodes:
        found.update(info.subnets)
        found.update(host_prefix(a) for a in lan_addresses(info, world.peers.get(info.node)))
    return frozenset(found)


def _overlay(region: ResolvedRegion, situation: Situation, regions: RegionIndex) -> Overlay | None:
    """Return the node's part in its region's VXLAN."""
    world = situation.world
    members = vxlan_members(world.gateways[region.name], world.peers, world.mesh, regions.refused(region.name))
    return overlay_of(regions.me, region, members, situation.facts.addresses, situation.liveness)
