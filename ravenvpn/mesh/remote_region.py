"""The plan of one other region on one node: peers, tunnel routes, accepted prefixes, host routes.

A pure function of region, context and liveness. The plans of two regions never share a prefix or a peer
(`mesh.conflict_index` sees to that), so a node's plan is the union of these parts, and the change of one region is
the difference of two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ravenvpn.mesh import hoststate, identity, vxlan
from ravenvpn.mesh.claims import Announced, ClaimKind
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import Address, Prefix, Route, RouteKind
from ravenvpn.mesh.hubs import Hub, carrier_order, choose_hub
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import host_prefix
from ravenvpn.mesh.nodeplan import NodeRole, PeerKind, PeerPlan
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.resolved_region import GatewayNode, ResolvedRegion
from ravenvpn.overhead import MIN_IPV6_MTU

# Seconds between keepalives of the side behind NAT: wg's customary figure, below the 30 s after which some NATs drop
# a UDP mapping (RFC 4787 §4.3 asks for at least 2 minutes; not every NAT complies).
NAT_KEEPALIVE = 25


class RegionPath(NamedTuple):
    """How a gateway reaches a region."""

    carriers: tuple[str, ...] = ()  # peers that carry its prefixes, best first; empty: not reached
    hub: Hub | None = None  # that the carriers belong to; None: they are the region's own gateways
    needs_hub: bool = False  # neither end is dialable, so the path depends on the hubs


@dataclass(frozen=True, slots=True)
class RemoteRegionPlan:
    """One region's part of a plan. Compare `nodeplan.NodePlan`, which is the union of all parts."""

    peers: Mapping[str, PeerPlan] = field(default_factory=dict)  # by node name
    routes: Mapping[Prefix, tuple[str, ...]] = field(default_factory=dict)  # prefix → carriers, best first
    accepts: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)  # peer → permitted inner sources
    host_routes: tuple[Route, ...] = ()
    remote: frozenset[Prefix] = frozenset()  # elements of the packet filter's set of remote prefixes
    path: RegionPath = field(default_factory=RegionPath)
    notes: tuple[Reason, ...] = ()

    @property
    def relay(self) -> str:
        """Name of the hub's region; empty where the region is reached directly or not at all."""
        return self.path.hub.region if self.path.hub else ""


EMPTY = RemoteRegionPlan()


def path_to(region: ResolvedRegion, context: Context, liveness: Liveness) -> RegionPath:
    """Return how this node reaches `region`. No other part of a remote region's plan depends on liveness."""
    if not context.is_gateway or context.region is None or not region.active:
        return RegionPath()
    direct = [g.node for g in region.active if g.dialable or context.dialable]
    if direct:
        return RegionPath(carrier_order(context.node, direct, liveness))
    hub = choose_hub(context.region.name, region, context.hubs, liveness)
    return RegionPath(carrier_order(context.node, hub.active, liveness) if hub else (), hub, needs_hub=True)


def plan_remote_region(region: ResolvedRegion, context: Context, liveness: Liveness) -> RemoteRegionPlan:
    """Return the plan of `region`, which is not the own one, on the node of `context`."""
    if context.role is NodeRole.NONE or context.region is None:
        return EMPTY
    announced, notes = _routed_here(region, context)
    if context.is_gateway:
        return _on_gateway(region, announced, notes, context, liveness)
    # A plain node holds no session with other regions: its gateway does.
    return RemoteRegionPlan(
        host_routes=tuple(_through_gateway(_usable_families(announced, context), context)),
        remote=frozenset(a.prefix for a in announced),
        notes=tuple(notes),
    )


def _on_gateway(
    region: ResolvedRegion,
    announced: tuple[Announced, ...],
    notes: list[Reason],
    context: Context,
    liveness: Liveness,
) -> RemoteRegionPlan:
    """Return the plan on a gateway or a standby, which have sessions of their own."""
    prefixes = tuple(a.prefix for a in announced)
    direct = [g for g in region.gateways if g.dialable or context.dialable]
    accepts: dict[str, tuple[Prefix, ...]] = {}
    routes: dict[Prefix, tuple[str, ...]] = {}
    for gateway in direct:
        tunnel = host_prefix(identity.tunnel_address(context.mesh, gateway.node))
        routes[tunnel] = (gateway.node,)
        accepts[gateway.node] = (*prefixes, tunnel)

    path = path_to(region, context, liveness)
    if path.needs_hub:
        far = tuple(host_prefix(identity.tunnel_address(context.mesh, g.node)) for g in region.active)
        # Accepted from every hub: the other end may have chosen another one a moment ago.
        accepts.update((node, (*prefixes, *far)) for hub in context.hubs for node in hub.nodes)
        if path.hub is not None:
            routes.update((prefix, path.carriers) for prefix in far)
        else:
            notes.append(Reason(ReasonCode.REGION_WITHOUT_HUB, region.name))
    if path.carriers:
        routes.update((prefix, path.carriers) for prefix in prefixes)
    return RemoteRegionPlan(
        peers={g.node: _peer(g, region.name, context) for g in direct},
        routes=routes,
        accepts=accepts,
        host_routes=tuple(_host_routes(announced, path, _path_mtu(direct, path, context), context)),
        remote=frozenset(prefixes),
        path=path,
        notes=(*notes, *region.notes),
    )


def _path_mtu(direct: Iterable[GatewayNode], path: RegionPath, context: Context) -> int:
    """Return the MTU of routes into the tunnel towards a region."""
    active = [g for g in direct if g.active]
    if path.hub:
        blind, hosts = path.hub.no_pmtu_discovery, path.hub.hosts
    else:
        blind = any(g.dialable and g.no_pmtu_discovery for g in active)
        hosts = tuple(c.host for g in active for c in g.candidates)
    # Without path MTU discovery, only the size that every IPv6 path carries.
    return MIN_IPV6_MTU if blind else context.facts.tunnel_mtu(hosts)


def _host_routes(announced: Iterable[Announced], path: RegionPath, mtu: int, context: Context) -> Iterable[Route]:
    """Yield the kernel routes of a gateway or a standby to a remote region.

    On a standby the tunnel carries only packets that others send here (see `mesh.vxlan`), by table 9129 and if it is
    on the VXLAN at all; packets of its own take the active gateway.
    """
    standby = context.role is NodeRole.STANDBY
    announced = tuple(_usable_families(announced, context))
    if not standby or context.overlay is not None:
        table = hoststate.TABLE_LOCAL if standby else hoststate.TABLE_REMOTE
        for a in announced:
            if path.carriers:
                source = None if standby else context.sources.get(a.prefix.version)
                yield _tunnel_route(a, table, source, mtu, path)
            yield fail_closed(a.prefix, a.reason(ReasonCode.FAIL_CLOSED), table)
    if standby:
        yield from _through_gateway(announced, context)


def _routed_here(region: ResolvedRegion, context: Context) -> tuple[tuple[Announced, ...], list[Reason]]:
    """Return the region's prefixes without those that belong to our own network here, and notes on the omitted."""
    announced, notes = region.announced, list[Reason]()
    if context.shadowed:
        notes += [
            Reason(ReasonCode.PREFIX_IN_OWN_REGION, region.name, (a.prefix,))
            for a in announced
            if a.prefix in context.shadowed
        ]
        announced = tuple(a for a in announced if a.prefix not in context.shadowed)
    if context.forward_node_ip:
        local = [a for a in announced if _is_local_address(a, context)]
        if local:
            listed = tuple(f"{a.prefix.network_address} of {a.node}" for a in local)
            notes.append(Reason(ReasonCode.NODE_ADDRESS_IN_OWN_NETWORK, region.name, (listed,)))
            announced = tuple(a for a in announced if a not in local)
    return announced, notes


def _is_local_address(announced: Announced, context: Context) -> bool:
    """Return whether this node address lies in our own LAN, where another machine may have it.

    An own source is exempt: it is accepted with forwardNodeIP off as well.
    """
    is_address = announced.kind is ClaimKind.ADDRESS and not announced.source
    return is_address and context.in_own_network(announced.prefix.network_address)


def _usable_families(announced: Iterable[Announced], context: Context) -> Iterable[Announced]:
    """Return the prefixes for which this kernel can have routes."""
    return announced if context.facts.ipv6 else (a for a in announced if a.prefix.version == 4)


def _tunnel_route(announced: Announced, table: int, source: Address | None, mtu: int, path: RegionPath) -> Route:
    carrier = path.carriers[0]
    return Route(
        announced.prefix,
        table,
        device=hoststate.TUNNEL_DEVICE,
        source=source,
        mtu=mtu,
        reason=announced.reason(ReasonCode.REMOTE_PREFIX_BY_HUB, carrier, path.hub.region)
        if path.hub
        else announced.reason(ReasonCode.REMOTE_PREFIX, carrier),
    )


def _through_gateway(announced: Iterable[Announced], context: Context) -> Iterable[Route]:
    """Yield the routes of a plain node or a standby, over the VXLAN to the active gateway."""
    mtu = vxlan.mtu(context) if context.overlay else 0
    for a in announced:
        route = vxlan.remote_route(a, context, mtu)
        if route is not None:
            yield route
        yield fail_closed(a.prefix, a.reason(ReasonCode.FAIL_CLOSED))


def fail_closed(prefix: Prefix, reason: Reason, table: int = hoststate.TABLE_REMOTE) -> Route:
    """Return the unreachable route that stays when the device and its routes are gone.

    Without it, packets for `prefix` would match the default route and leave unencrypted.
    """
    return Route(
        prefix,
        table,
        kind=RouteKind.UNREACHABLE,
        metric=hoststate.FAIL_CLOSED_METRIC,
        reason=reason,
    )


def _peer(gateway: GatewayNode, region: str, context: Context) -> PeerPlan:
    # Exactly one side behind NAT: that side keeps the path open, and the other end answers to where it last saw it.
    across_nat = gateway.dialable is not context.dialable
    kind = PeerKind.ACTIVE if gateway.active else PeerKind.STANDBY
    return PeerPlan(
        name=gateway.node,
        region=region,
        kind=kind,
        public_keys=gateway.public_keys,
        candidates=gateway.candidates if gateway.dialable else (),
        keepalive=NAT_KEEPALIVE if across_nat and not context.dialable else None,
        warm=across_nat,
        suites=gateway.suites,
        tunnel_address=identity.tunnel_address(context.mesh, gateway.node),
        reason=Reason(
            ReasonCode.REMOTE_GATEWAY if gateway.dialable else ReasonCode.REMOTE_GATEWAY_BEHIND_NAT,
            gateway.node,
            (kind, region),
        ),
    )
