"""One other region, as one node has to treat it: its part of the plan, a pure function of few things.

Parts of different regions never touch the same prefix or peer (`mesh.conflict_index` sees to that), so a plan is the
union of its fragments, and a change of one region is the difference of two fragments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ravenvpn.mesh import hoststate, identity, vxlan
from ravenvpn.mesh.claims import Announced, ClaimKind
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import Address, Prefix, Route, RouteKind
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import host_prefix
from ravenvpn.mesh.nodeplan import NodeRole, PeerKind, PeerPlan
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.topology import GatewayNode, Hub, Region, carrier_order, choose_hub
from ravenvpn.overhead import MIN_IPV6_MTU

# Seconds between keepalives of the side behind NAT: wg's customary figure, below the 30 s after which some NATs drop
# a UDP mapping (RFC 4787 §4.3 asks for 2 minutes, few keep to it).
NAT_KEEPALIVE = 25


class Way(NamedTuple):
    """How a region is reached: the peers that carry it, best first, and the hub they belong to, if it is one."""

    carriers: tuple[str, ...] = ()
    hub: Hub | None = None
    needs_hub: bool = False  # met through a hub, or would be if there were one


@dataclass(frozen=True, slots=True)
class RemoteRegionPlan:
    peers: Mapping[str, PeerPlan] = field(default_factory=dict)
    routes: Mapping[Prefix, tuple[str, ...]] = field(default_factory=dict)
    accepts: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)
    host_routes: tuple[Route, ...] = ()
    remote: frozenset[Prefix] = frozenset()  # for the packet filter
    way: Way = field(default_factory=Way)
    notes: tuple[Reason, ...] = ()

    @property
    def relay(self) -> str:
        """Region of the hub, where this region is met through one."""
        return self.way.hub.region if self.way.hub else ""


EMPTY = RemoteRegionPlan()


def way_to(region: Region, context: Context, liveness: Liveness) -> Way:
    """How a gateway reaches `region`. All that liveness decides is here."""
    if not context.is_gateway or context.region is None or not region.active:
        return Way()
    direct = [g.node for g in region.active if g.dialable or context.dialable]
    if direct:
        return Way(carrier_order(context.node, direct, liveness))
    hub = choose_hub(context.region.name, region, context.hubs, liveness)
    return Way(carrier_order(context.node, hub.active, liveness) if hub else (), hub, needs_hub=True)


def remote_fragment(region: Region, context: Context, liveness: Liveness) -> RemoteRegionPlan:
    """What `region`, which is not ours, asks of the node of `context`."""
    if context.role is NodeRole.NONE or context.region is None:
        return EMPTY
    announced, notes = _heeded(region, context)
    prefixes = tuple(a.prefix for a in announced)
    if not context.is_gateway:
        # A plain node holds no session with other regions: its gateway does.
        return RemoteRegionPlan(
            host_routes=tuple(_through_gateway(_of_this_kernel(announced, context), context)),
            remote=frozenset(prefixes),
            notes=tuple(notes),
        )

    direct = [g for g in region.gateways if g.dialable or context.dialable]
    peers = {g.node: _peer(g, region.name, context) for g in direct}
    accepts: dict[str, tuple[Prefix, ...]] = {}
    routes: dict[Prefix, tuple[str, ...]] = {}
    for gateway in direct:
        tunnel = host_prefix(identity.tunnel_address(context.mesh, gateway.node))
        routes[tunnel] = (gateway.node,)
        accepts[gateway.node] = (*prefixes, tunnel)

    way = way_to(region, context, liveness)
    carriers, hub, needs_hub = way
    hosts = hub.hosts if hub else tuple(c.host for g in direct if g.active for c in g.candidates)
    if needs_hub:
        far = tuple(host_prefix(identity.tunnel_address(context.mesh, g.node)) for g in region.active)
        # Either end may have chosen another hub a moment ago, so all of them may bring this region's packets.
        beyond = (*prefixes, *far)
        accepts.update((node, beyond) for h in context.hubs for node in h.nodes)
        if hub is not None:
            routes.update((prefix, carriers) for prefix in far)
        else:
            notes.append(Reason(ReasonCode.REGION_WITHOUT_HUB, region.name))
    if carriers:
        routes.update((prefix, carriers) for prefix in prefixes)

    unlearned = hub.unlearned if hub else any(g.active and g.dialable and g.unlearned for g in direct)
    mtu = MIN_IPV6_MTU if unlearned else context.facts.tunnel_mtu(hosts)
    # On a standby the tunnel is for what others send here (see mesh.vxlan); its own takes the active gateway's.
    standby = context.role is NodeRole.STANDBY
    host_routes: list[Route] = []
    if not standby or context.overlay is not None:
        table = hoststate.TABLE_LOCAL if standby else hoststate.TABLE_REMOTE
        for a in _of_this_kernel(announced, context):
            if carriers:
                source = None if standby else context.sources.get(a.prefix.version)
                host_routes.append(_tunnelled(a, table, source, mtu, way))
            host_routes.append(fail_closed(a.prefix, a.reason(ReasonCode.FAIL_CLOSED), table))
    if standby:
        host_routes += _through_gateway(_of_this_kernel(announced, context), context)
    return RemoteRegionPlan(
        peers=peers,
        routes=routes,
        accepts=accepts,
        host_routes=tuple(host_routes),
        remote=frozenset(prefixes),
        way=way,
        notes=(*notes, *region.notes),
    )


def _heeded(region: Region, context: Context) -> tuple[tuple[Announced, ...], list[Reason]]:
    """What the region announces, without what is our own network's here; and what a person should know of that."""
    announced, notes = region.announced, list[Reason]()
    if context.shadowed:
        notes += [
            Reason(ReasonCode.PREFIX_IN_OWN_REGION, region.name, (a.prefix,))
            for a in announced
            if a.prefix in context.shadowed
        ]
        announced = tuple(a for a in announced if a.prefix not in context.shadowed)
    if context.forward_node_ip:
        # (An own source is accepted with the setting off, too.)
        near = [a for a in announced if a.kind is ClaimKind.ADDRESS and not a.source and context.near.hold(a.prefix)]
        if near:
            listed = tuple(f"{a.prefix.network_address} of {a.node}" for a in near)
            notes.append(Reason(ReasonCode.NODE_ADDRESS_IN_OWN_NETWORK, region.name, (listed,)))
            announced = tuple(a for a in announced if a not in near)
    return announced, notes


def _of_this_kernel(announced: Iterable[Announced], context: Context) -> Iterable[Announced]:
    return announced if context.facts.ipv6 else (a for a in announced if a.prefix.version == 4)


def _tunnelled(announced: Announced, table: int, source: Address | None, mtu: int, way: Way) -> Route:
    carrier = way.carriers[0]
    return Route(
        announced.prefix,
        table,
        device=hoststate.TUNNEL_DEVICE,
        source=source,
        mtu=mtu,
        reason=announced.reason(ReasonCode.REMOTE_PREFIX_BY_HUB, carrier, way.hub.region)
        if way.hub
        else announced.reason(ReasonCode.REMOTE_PREFIX, carrier),
    )


def _through_gateway(announced: Iterable[Announced], context: Context) -> Iterable[Route]:
    mtu = vxlan.mtu(context) if context.overlay else 0
    for a in announced:
        route = vxlan.remote_route(a, context, mtu)
        if route is not None:
            yield route
        yield fail_closed(a.prefix, a.reason(ReasonCode.FAIL_CLOSED))


def fail_closed(prefix: Prefix, reason: Reason, table: int = hoststate.TABLE_REMOTE) -> Route:
    """The route that outlives the device: without it, packets for `prefix` would take the default route in clear."""
    return Route(
        prefix,
        table,
        kind=RouteKind.UNREACHABLE,
        metric=hoststate.FAIL_CLOSED_METRIC,
        reason=reason,
    )


def _peer(gateway: GatewayNode, region: str, context: Context) -> PeerPlan:
    # Exactly one side behind NAT: that side keeps the path open, and the other end calls it where it last saw it.
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
