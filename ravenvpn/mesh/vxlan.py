"""What a node's part in its region's VXLAN asks of the host (docs/architecture/host-network.md).

The way to other regions: from a plain node or a standby to the active gateway, and into the tunnel there. The way
back: out of the tunnel to the node it is meant for. Traffic inside the region stays the CNI's.

A role moves while packets are under way, and nodes learn of it at different instants. So what arrives on a gateway
node by one of our devices never goes back to another gateway: a standby puts it into its own tunnel (table 9129),
which the far ends accept. That leaves nothing to loop, and nothing to wait for.
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

VNI = 200  # upstream's, so that a region can be moved node by node
PORT = 4472  # upstream's too; not IANA's 4789, which flannel and others have


def mtu(context: Context) -> int:
    """No more than the tunnel carries, or than the region's own network does; never below IPv6's minimum."""
    assert context.overlay is not None
    hosts = tuple(str(seat.underlay) for seat in context.overlay.others)
    lan = vxlan_mtu(context.facts.path_mtu(hosts), context.overlay.own.underlay.version)
    return max(min(context.facts.tunnel_mtu(), lan), MIN_IPV6_MTU)


def device(context: Context) -> VxlanDevice | None:
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
    """Wide prefixes, so that every next hop on the VXLAN is on-link by them as well."""
    if context.overlay is None:
        return
    own, reason = context.overlay.own, Reason(ReasonCode.VXLAN_ADDRESS, context.node)
    if own.v4 is not None:
        yield DeviceAddress(VXLAN_DEVICE, IPv4Interface((own.v4, 8)), reason)
    if context.facts.ipv6:
        yield DeviceAddress(VXLAN_DEVICE, IPv6Interface((own.v6, 64)), reason)


def neighbours(context: Context) -> Iterable[Neighbour]:
    for seat in context.overlay.others if context.overlay else ():
        reason = Reason(ReasonCode.VXLAN_MEMBER, seat.node)
        if seat.v4 is not None:
            yield Neighbour(VXLAN_DEVICE, seat.v4, seat.mac, reason)
        if context.facts.ipv6:
            yield Neighbour(VXLAN_DEVICE, seat.v6, seat.mac, reason)


def forwarding(context: Context) -> Iterable[ForwardingEntry]:
    for seat in context.overlay.others if context.overlay else ():
        yield ForwardingEntry(VXLAN_DEVICE, seat.mac, seat.underlay, Reason(ReasonCode.VXLAN_MEMBER, seat.node))


def local_routes(context: Context) -> Iterable[Route]:
    """On gateways and standbys: what leaves the tunnel for another node of the region goes there by the VXLAN.

    A prefix that holds one of our own would take what is ours; such nesting is left to the CNI, which made it.
    """
    overlay, region = context.overlay, context.region
    if overlay is None or region is None or not context.is_gateway:
        return
    own = [a.prefix for a in region.announced if a.node == context.node]
    everybody, allowed = {seat.node: seat for seat in overlay.others}, mtu(context)
    for announced in region.announced:
        seat = everybody.get(announced.node)
        if seat is not None and not any(_holds(announced.prefix, one) for one in own):
            via = next_hop(seat, announced.prefix, context)
            if via is not None:
                yield Route(
                    announced.prefix,
                    TABLE_LOCAL,
                    device=VXLAN_DEVICE,
                    via=via,
                    mtu=allowed,
                    reason=announced.reason(ReasonCode.OWN_PREFIX_OUT_OF_TUNNEL),
                )


def remote_route(announced: Announced, context: Context, mtu: int) -> Route | None:
    """From a node that is no active gateway to another region; None where no gateway can be sent to."""
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


def next_hop(seat: VxlanMember, prefix: Prefix, context: Context) -> Address | None:
    """Of the prefix's own family, else IPv6 for IPv4 (as RFC 8950 has it): a node may have no IPv4 address at all."""
    if prefix.version == 4 and seat.v4 is not None and context.overlay and context.overlay.own.v4 is not None:
        return seat.v4
    return seat.v6 if context.facts.ipv6 else None


def _holds(prefix: Prefix, inner: Prefix) -> bool:
    return prefix.version == inner.version and prefix.prefixlen <= inner.prefixlen and inner.network_address in prefix
