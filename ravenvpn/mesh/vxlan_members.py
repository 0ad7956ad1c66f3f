"""Members of a region's VXLAN, and the part one node plays in it.

Derived from the Gateway and the Peers alone, so that every node of the region derives the same members without an
allocator. A node is no member if its derived addresses are another's (`mesh.conflict_index`), or if it has no address
of the family that carries the VXLAN; it keeps its fail-closed routes and the routes of the CNI.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ravenvpn.mesh import identity
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.hubs import carrier_order
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import Gateway, NodeInfo, PeerObject, lan_addresses
from ravenvpn.mesh.resolved_region import ResolvedRegion


@dataclass(frozen=True, slots=True)
class VxlanMember:
    """One node on the VXLAN."""

    node: str
    underlay: Address  # outer destination of frames to it
    mac: str
    v4: IPv4Address | None  # its address on the VXLAN; None: no InternalIP of that family to derive it from
    v6: IPv6Address


@dataclass(frozen=True, slots=True)
class Overlay:
    """The VXLAN as one node uses it."""

    own: VxlanMember
    # Nodes it has neighbour and FDB entries for, sorted by name: all members on a gateway or standby; gateways and
    # standbys on a plain node, so that a role moves without a new entry.
    others: tuple[VxlanMember, ...]
    uplink: (
        VxlanMember | None
    )  # the active gateway for our packets to other regions; None: we are active, or no one is


def ipv4_of(info: NodeInfo, peer: PeerObject | None) -> IPv4Address | None:
    """Return the IPv4 address from which a node's VXLAN addresses are derived; None: from its name."""
    return next((a for a in lan_addresses(info, peer) if isinstance(a, IPv4Address)), None)


def vxlan_members(
    gateway: Gateway, peers: Mapping[str, PeerObject], mesh: str, refused: RefusedClaims
) -> dict[str, VxlanMember]:
    """Return every member by node name, sorted.

    A VXLAN device sends over one family, so one family carries the whole region: IPv4, unless every node has IPv6
    and some have no IPv4.
    """
    nodes = {i.node: i for i in gateway.status.nodes if i.node not in refused.nodes | refused.vxlan}
    addresses = {node: lan_addresses(info, peers.get(node)) for node, info in nodes.items()}

    def all_have(version: int) -> bool:
        return all(any(a.version == version for a in some) for some in addresses.values())

    version = 6 if all_have(6) and not all_have(4) else 4
    found: dict[str, VxlanMember] = {}
    for node, info in sorted(nodes.items()):
        underlay = next((a for a in addresses[node] if a.version == version), None)
        if underlay is not None:
            v4 = ipv4_of(info, peers.get(node))
            found[node] = VxlanMember(
                node,
                underlay,
                identity.vxlan_mac(node, v4),
                None if v4 is None else identity.vxlan_address(v4),
                identity.vxlan_next_hop(mesh, node),
            )
    return found


def overlay_of(
    me: str,
    region: ResolvedRegion,
    members: Mapping[str, VxlanMember],
    present: Set[Address] | None,
    liveness: Liveness,
) -> Overlay | None:
    """Return the VXLAN as `me` uses it; None if it is no member, or the only one.

    Its frames must leave with the address the others send to. If that one is not `present` on this host (None: the
    addresses were not read), the node takes no part: it is behind a cloud's address translation, for example.
    """
    own = members.get(me)
    if own is None or len(members) < 2 or not (present is None or own.underlay in present):
        return None
    able = {g.node for g in region.gateways}
    active = {g.node for g in region.active}
    others = tuple(member for node, member in members.items() if node != me and (me in able or node in able))
    uplink = None
    if me not in active:
        uplink = next(iter(carrier_order(me, [node for node in active if node in members], liveness)), None)
    return Overlay(own, others, None if uplink is None else members[uplink])
