"""The host's part of a region's VXLAN: device, addresses, neighbours, FDB entries and routes (docs/architecture).

Packets to other regions go from a plain node or a standby to the active gateway and into the tunnel there. Packets
out of the tunnel go from the gateway to the node they are meant for. Traffic inside the region stays with the CNI.

A role moves while packets are under way, and nodes learn of it at different instants. So a packet that arrives on a
gateway node by one of our devices never goes to another gateway: a standby puts it into its own tunnel (table 9129),
and the far ends accept it. Nothing can loop, and nothing has to wait for an agreement.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface

from ravenvpn.mesh.claims import Announced
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import (
    TABLE_LOCAL,
    TABLE_REMOTE,
    VXLAN_DEVICE,
    Address,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Prefix,
    Route,
    VxlanDevice,
)
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.vxlan_members import VxlanMember
from ravenvpn.overhead import MIN_IPV6_MTU, vxlan_mtu

VNI = 200  # OpenYurt's, so that a region can be moved to this agent node by node
PORT = 4472  # OpenYurt's as well; IANA's 4789 is in use by flannel and others


def mtu(context: Context) -> int:
    """Return the MTU of the VXLAN device: what the tunnel and the region's own network carry, at least 1280."""
    assert context.overlay is not None
    hosts = tuple(str(member.underlay) for member in context.overlay.others)
    lan = vxlan_mtu(context.facts.path_mtu(hosts), context.overlay.own.underlay.version)
    return max(min(context.facts.tunnel_mtu(), lan), MIN_IPV6_MTU)


def device(context: Context) -> VxlanDevice | None:
    """Return the VXLAN device; None on a node that is no member."""
    overlay = context.overlay
    if overlay is None or context.region is None:
        return None
    return VxlanDevice(
        VXLAN_DEVICE,
        VNI,
        PORT,
        mtu(context),
        overlay.own.mac,
        overlay.own.underlay,
        reason=Reason(ReasonCode.VXLAN_DEVICE, context.region.name),
    )


def addresses(context: Context) -> Iterable[DeviceAddress]:
    """Yield the device's addresses, with prefixes that make every next hop on the VXLAN on-link."""
    if context.overlay is None:
        return
    own, reason = context.overlay.own, Reason(ReasonCode.VXLAN_ADDRESS, context.node)
    if own.v4 is not None:
        yield DeviceAddress(VXLAN_DEVICE, IPv4Interface((own.v4, 8)), reason)
    if context.facts.ipv6:
        yield DeviceAddress(VXLAN_DEVICE, IPv6Interface((own.v6, 64)), reason)


def neighbours(context: Context) -> Iterable[Neighbour]:
    """Yield the MAC of each VXLAN address this node sends to: nothing is resolved by ARP or ND."""
    for member in context.overlay.others if context.overlay else ():
        reason = Reason(ReasonCode.VXLAN_MEMBER, member.node)
        if member.v4 is not None:
            yield Neighbour(VXLAN_DEVICE, member.v4, member.mac, reason)
        if context.facts.ipv6:
            yield Neighbour(VXLAN_DEVICE, member.v6, member.mac, reason)


def forwarding(context: Context) -> Iterable[ForwardingEntry]:
    """Yield the outer destination of each MAC: nothing is learned or flooded."""
    for member in context.overlay.others if context.overlay else ():
        yield ForwardingEntry(VXLAN_DEVICE, member.mac, member.underlay, Reason(ReasonCode.VXLAN_MEMBER, member.node))


def frame_sources(context: Context) -> tuple[Address, ...]:
    """Return the outer sources whose frames this node accepts: gateways' and standbys', on these every node's."""
    if context.overlay is None:
        return ()
    return tuple(sorted((member.underlay for member in context.overlay.others), key=lambda a: (a.version, int(a))))


def local_routes(context: Context) -> Iterable[Route]:
    """Yield, on gateways and standbys, the routes of packets out of the tunnel to other nodes of the region.

    A prefix that contains one of this node's own is left out: its route would also take packets for this node. Such
    nesting comes from the CNI, which then routes it.
    """
    overlay, region = context.overlay, context.region
    if overlay is None or region is None or not context.is_gateway:
        return
    own = [a.prefix for a in region.announced if a.node == context.node]
    members, limit = {member.node: member for member in overlay.others}, mtu(context)
    for announced in region.announced:
        member = members.get(announced.node)
        if member is not None and not any(_contains(announced.prefix, one) for one in own):
            via = next_hop(member, announced.prefix, context)
            if via is not None:
                yield Route(
                    announced.prefix,
                    TABLE_LOCAL,
                    device=VXLAN_DEVICE,
                    via=via,
                    mtu=limit,
                    reason=announced.reason(ReasonCode.OWN_PREFIX_OUT_OF_TUNNEL),
                )


def remote_route(announced: Announced, context: Context, mtu: int) -> Route | None:
    """Return the route to another region from a node that is not active; None if no active gateway is a member."""
    uplink = context.overlay.uplink if context.overlay else None
    via = next_hop(uplink, announced.prefix, context) if uplink else None
    if uplink is None or via is None:
        return None
    return Route(
        announced.prefix,
        TABLE_REMOTE,
        device=VXLAN_DEVICE,
        via=via,
        source=context.sources.get(announced.prefix.version),
        mtu=mtu,
        reason=announced.reason(ReasonCode.REMOTE_PREFIX_BY_GATEWAY, uplink.node),
    )


def next_hop(member: VxlanMember, prefix: Prefix, context: Context) -> Address | None:
    """Return the next hop for a prefix, None if there is none.

    It has the prefix's own family if both ends have IPv4, else IPv6 also for IPv4 prefixes (RFC 8950): a node may
    have no IPv4 address at all.
    """
    if prefix.version == 4 and member.v4 is not None and context.overlay and context.overlay.own.v4 is not None:
        return member.v4
    return member.v6 if context.facts.ipv6 else None


def _contains(prefix: Prefix, inner: Prefix) -> bool:
    return prefix.version == inner.version and prefix.prefixlen <= inner.prefixlen and inner.network_address in prefix
