"""Where each node of a region sits on the region's VXLAN, and whom a node talks to there.

Derived from the Gateway and the Peers alone, so that every node of the region arrives at the same: nobody hands
anything out. A node has no seat where its addresses are another's (`mesh.conflict_index`) or where it has none of the
family that carries the VXLAN; it keeps its fail-closed routes and whatever the CNI does.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ravenvpn.mesh import identity
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import Gateway, NodeInfo, PeerObject, lan_addresses
from ravenvpn.mesh.topology import Region, carrier_order


@dataclass(frozen=True, slots=True)
class VxlanMember:
    """One node on the VXLAN: `underlay` is where its frames are sent, `v4` its address there if it has one."""

    node: str
    underlay: Address
    mac: str
    v4: IPv4Address | None
    v6: IPv6Address


@dataclass(frozen=True, slots=True)
class Overlay:
    """The VXLAN as one node has to know it.

    `others` are those it has entries for: every node for a gateway, the gateways alone for a plain node, standbys
    among them, so that a role moves without a new entry. `uplink` is the active gateway that takes what this node
    sends to other regions; None on an active gateway, and where there is none.
    """

    own: VxlanMember
    others: tuple[VxlanMember, ...]  # sorted by node
    uplink: VxlanMember | None


def basis(info: NodeInfo, peer: PeerObject | None) -> IPv4Address | None:
    """The IPv4 address that a node's place on the VXLAN is derived from; None: from its name."""
    return next((a for a in lan_addresses(info, peer) if isinstance(a, IPv4Address)), None)


def seats(
    gateway: Gateway, peers: Mapping[str, PeerObject], mesh: str, refused: RefusedClaims
) -> dict[str, VxlanMember]:
    """Every node that has a seat, sorted by name.

    A VXLAN device sends over one family, so one carries the whole region: IPv4, unless every node has IPv6 and some
    have no IPv4.
    """
    members = {i.node: i for i in gateway.status.nodes if i.node not in refused.nodes | refused.vxlan}
    addresses = {node: lan_addresses(info, peers.get(node)) for node, info in members.items()}

    def everybody_has(version: int) -> bool:
        return all(any(a.version == version for a in some) for some in addresses.values())

    version = 6 if everybody_has(6) and not everybody_has(4) else 4
    found: dict[str, VxlanMember] = {}
    for node, info in sorted(members.items()):
        underlay = next((a for a in addresses[node] if a.version == version), None)
        if underlay is not None:
            v4 = basis(info, peers.get(node))
            found[node] = VxlanMember(
                node,
                underlay,
                identity.vxlan_mac(node, v4),
                None if v4 is None else identity.vxlan_address(v4),
                identity.vxlan_next_hop(mesh, node),
            )
    return found


def overlay(
    me: str, region: Region, everybody: Mapping[str, VxlanMember], present: Set[Address] | None, liveness: Liveness
) -> Overlay | None:
    """How `me` takes part; None where it has no seat, or nobody else has.

    Its frames leave with the address the others send to; it has no seat where that is not `present` on this host
    (None: nobody looked), as behind a cloud's address translation.
    """
    own = everybody.get(me)
    if own is None or len(everybody) < 2 or not (present is None or own.underlay in present):
        return None
    able = {g.node for g in region.gateways}
    active = {g.node for g in region.active}
    others = tuple(seat for node, seat in everybody.items() if node != me and (me in able or node in able))
    uplink = None
    if me not in active:
        seated = [node for node in active if node in everybody]
        uplink = next(iter(carrier_order(me, seated, liveness)), None)
    return Overlay(own, others, None if uplink is None else everybody[uplink])
