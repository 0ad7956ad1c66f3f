"""Packets pushed through the plans of all nodes, one lookup at a time, as kernel and data plane would do it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import NamedTuple

from ravenvpn.mesh.hoststate import TABLE_REMOTE, TUNNEL_DEVICE, Address, Prefix, RouteKind
from ravenvpn.mesh.liveness import UNKNOWN, Liveness
from ravenvpn.mesh.model import World
from ravenvpn.mesh.nodeplan import NodePlan
from ravenvpn.mesh.plan import plan

MAX_HOPS = 4  # source, hub, destination, and one to see a loop


class Fate(StrEnum):
    DELIVERED = "delivered"
    REFUSED = "refused"  # unreachable route: an ICMP error, nothing leaves
    DROPPED = "dropped"  # by the tunnel or its far end
    CLEAR = "left by the default route"
    LOOPED = "looped"


class Journey(NamedTuple):
    fate: Fate
    path: tuple[str, ...]


def plans(world: World, liveness: Mapping[str, Liveness] | Liveness = UNKNOWN) -> dict[str, NodePlan]:
    """The plan of every node that is in a region, each with its own view of who is alive."""
    nodes = {info.node for gateway in world.gateways.values() for info in gateway.status.nodes}
    views = liveness if isinstance(liveness, Mapping) else dict.fromkeys(nodes, liveness)
    return {node: plan(world, views.get(node, UNKNOWN), node) for node in sorted(nodes)}


def longest(prefixes: Mapping[Prefix, object] | Set[Prefix], address: Address) -> Prefix | None:
    inside = (p for p in prefixes if p.version == address.version and address in p)
    return max(inside, key=lambda p: p.prefixlen, default=None)


def send(
    all_plans: Mapping[str, NodePlan],
    start: str,
    source: Address,
    destination: Address,
    *,
    broken: Set[frozenset[str]] = frozenset(),
    dead: Set[str] = frozenset(),
) -> Journey:
    """A packet of a pod on `start`. `broken` are pairs of nodes whose path is cut, `dead` nodes that are gone."""
    path = [start]
    while len(path) <= MAX_HOPS:
        here = all_plans[path[-1]]
        packet_filter = here.host.packet_filter
        if len(path) > 1 and packet_filter and longest(set(packet_filter.local), destination):
            return Journey(Fate.DELIVERED, tuple(path))
        table: dict[Prefix, list] = {}
        for route in here.host.routes:
            if route.table == TABLE_REMOTE:
                table.setdefault(route.prefix, []).append(route)
        best = longest(table, destination)
        if best is None:
            return Journey(Fate.CLEAR, tuple(path))
        route = min(table[best], key=lambda r: r.metric)
        if route.kind is RouteKind.UNREACHABLE:
            return Journey(Fate.REFUSED, tuple(path))
        assert route.device == TUNNEL_DEVICE
        carriers = dict(here.tunnel.routes)
        chosen = longest(carriers, destination)
        if chosen is None:
            return Journey(Fate.DROPPED, tuple(path))
        peer = carriers[chosen][0]
        if not arrives(all_plans, path[-1], peer, source=source, broken=broken, dead=dead):
            return Journey(Fate.DROPPED, (*path, peer))
        path.append(peer)
    return Journey(Fate.LOOPED, tuple(path))


def arrives(
    all_plans: Mapping[str, NodePlan],
    sender: str,
    receiver: str,
    *,
    source: Address,
    broken: Set[frozenset[str]],
    dead: Set[str],
) -> bool:
    """Both ends hold the session, one of them can call the other, and the far end accepts the inner source."""
    if receiver in dead or sender in dead or frozenset((sender, receiver)) in broken or receiver not in all_plans:
        return False
    here = {p.name: p for p in all_plans[sender].tunnel.peers}
    there = {p.name: p for p in all_plans[receiver].tunnel.peers}
    if receiver not in here or sender not in there:
        return False
    if not here[receiver].candidates and not there[sender].candidates:
        return False
    accepts: dict[Prefix, set[str]] = {}
    for name, prefixes in all_plans[receiver].tunnel.accepts:
        for prefix in prefixes:
            accepts.setdefault(prefix, set()).add(name)
    chosen = longest(accepts, source)
    return chosen is not None and sender in accepts[chosen]
