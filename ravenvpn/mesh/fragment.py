"""One other region, as one node has to treat it: its part of the plan, a pure function of few things.

Parts of different regions never touch the same prefix or peer (`mesh.conflicts` sees to that), so a plan is the
union of its fragments, and a change of one region is the difference of two fragments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ravenvpn.mesh import hoststate, identity
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import Prefix, Route, RouteKind
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import host_prefix
from ravenvpn.mesh.nodeplan import PeerKind, PeerPlan, Role
from ravenvpn.mesh.topology import GatewayNode, Hub, Region, choose_hub, rendezvous


class Way(NamedTuple):
    """How a region is reached: the peers that carry it, best first, and the hub they belong to, if it is one."""

    carriers: tuple[str, ...] = ()
    hub: Hub | None = None
    needs_hub: bool = False  # met through a hub, or would be if there were one


@dataclass(frozen=True, slots=True)
class Fragment:
    peers: Mapping[str, PeerPlan] = field(default_factory=dict)
    routes: Mapping[Prefix, tuple[str, ...]] = field(default_factory=dict)
    accepts: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)
    host_routes: tuple[Route, ...] = ()
    remote: frozenset[Prefix] = frozenset()  # for the packet filter
    way: Way = field(default_factory=Way)
    notes: tuple[str, ...] = ()

    @property
    def relay(self) -> str:
        """Region of the hub, where this region is met through one."""
        return self.way.hub.region if self.way.hub else ""


EMPTY = Fragment()


def way_to(region: Region, context: Context, liveness: Liveness) -> Way:
    """How a gateway reaches `region`. All that liveness decides is here."""
    if not context.is_gateway or context.region is None or not region.active:
        return Way()
    direct = [g.node for g in region.active if g.dialable or context.dialable]
    if direct:
        return Way(_in_order(direct, context, liveness))
    hub = choose_hub(context.region.name, region, context.hubs, liveness)
    return Way(_in_order(hub.active, context, liveness) if hub else (), hub, needs_hub=True)


def remote_fragment(region: Region, context: Context, liveness: Liveness) -> Fragment:
    """What `region`, which is not ours, asks of the node of `context`."""
    if context.role is Role.NONE or context.region is None:
        return EMPTY
    announced, notes = region.announced, list[str]()
    if context.shadowed:
        announced = tuple(a for a in region.announced if a.prefix not in context.shadowed)
        notes = [
            f"{a.prefix} of region {region.name} is not routed here: it overlaps prefixes of our own region"
            for a in region.announced
            if a.prefix in context.shadowed
        ]
    prefixes = tuple(a.prefix for a in announced)
    if not context.is_gateway:
        # A plain node holds no session with other regions; what is meant for them must not leave in clear.
        closed = tuple(fail_closed(a.prefix, a.reason) for a in announced)
        return Fragment(host_routes=closed, notes=tuple(notes))

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
            notes.append(f"region {region.name} is not reached: both ends are behind NAT and no region serves as hub")
    if carriers:
        routes.update((prefix, carriers) for prefix in prefixes)

    through = f"through {', '.join(carriers[:1])}" + (f" of hub region {hub.region}" if hub else "")
    mtu = context.facts.tunnel_mtu(hosts)
    host_routes: list[Route] = []
    for a in announced:
        if carriers and context.role is Role.ACTIVE:
            host_routes.append(
                Route(
                    a.prefix,
                    hoststate.TABLE_REMOTE,
                    device=hoststate.TUNNEL_DEVICE,
                    source=context.sources.get(a.prefix.version),
                    mtu=mtu,
                    reason=f"{a.reason}, {through}",
                )
            )
        host_routes.append(fail_closed(a.prefix, a.reason))
    return Fragment(
        peers=peers,
        routes=routes,
        accepts=accepts,
        host_routes=tuple(host_routes),
        remote=frozenset(prefixes) if context.role is Role.ACTIVE else frozenset(),
        way=way,
        notes=(*notes, *region.notes),
    )


def fail_closed(prefix: Prefix, reason: str) -> Route:
    """The route that outlives the device: without it, packets for `prefix` would take the default route in clear."""
    return Route(
        prefix,
        hoststate.TABLE_REMOTE,
        kind=RouteKind.UNREACHABLE,
        metric=hoststate.FAIL_CLOSED_METRIC,
        reason=f"never in clear: {reason}",
    )


def _in_order(nodes: Sequence[str], context: Context, liveness: Liveness) -> tuple[str, ...]:
    """Carriers, best first: those not proven dead, then by a hash that spreads the senders over several."""
    return tuple(sorted(nodes, key=lambda n: (liveness.dead(n), -rendezvous(context.node, n, "carrier"), n)))


def _peer(gateway: GatewayNode, region: str, context: Context) -> PeerPlan:
    # Exactly one side behind NAT: that side keeps the path open, and the other end calls it where it last saw it.
    across_nat = gateway.dialable is not context.dialable
    return PeerPlan(
        name=gateway.node,
        region=region,
        kind=PeerKind.ACTIVE if gateway.active else PeerKind.STANDBY,
        public_keys=gateway.public_keys,
        candidates=gateway.candidates if gateway.dialable else (),
        keepalive=context.settings.keepalive if across_nat and not context.dialable else None,
        warm=across_nat,
        suites=gateway.suites,
        tunnel_address=identity.tunnel_address(context.mesh, gateway.node),
        reason=f"{'active' if gateway.active else 'standby'} gateway of region {region}"
        + (", behind NAT" if not gateway.dialable else ""),
    )
