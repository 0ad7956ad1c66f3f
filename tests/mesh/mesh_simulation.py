"""Simulation of packets through the plans of all nodes, with one lookup at a time as in kernel and data plane."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import NamedTuple

from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, VXLAN_DEVICE, Address, Prefix, Route, RouteKind, RuleAction
from ravenvpn.mesh.liveness import UNKNOWN, Liveness
from ravenvpn.mesh.model import World
from ravenvpn.mesh.nodeplan import NodePlan
from ravenvpn.mesh.plan import plan
from ravenvpn.mesh.situation import Intent, Situation

MAX_HOPS = 6  # node, gateway, hub, gateway, node, and one more to detect a loop


class Fate(StrEnum):
    DELIVERED = "delivered"
    REFUSED = "refused"  # by an unreachable route or the packet filter: an ICMP error, nothing leaves
    DROPPED = "dropped"  # by the tunnel or its remote end
    CLEAR = "left by the default route"
    LOOPED = "looped"


class Journey(NamedTuple):
    fate: Fate
    path: tuple[str, ...]


def plans(
    world: World, liveness: Mapping[str, Liveness] | Liveness = UNKNOWN, forward_node_ip: bool | Set[str] = False
) -> dict[str, NodePlan]:
    """Return the plan of every node that is in a region.

    `liveness` is one view for all, or a view by node; `forward_node_ip` may be the set of nodes that have it on.
    """
    nodes = {info.node for gateway in world.gateways.values() for info in gateway.status.nodes}
    views = liveness if isinstance(liveness, Mapping) else dict.fromkeys(nodes, liveness)
    forwards = forward_node_ip if isinstance(forward_node_ip, Set) else nodes if forward_node_ip else set()
    return {
        node: plan(Situation(world, views.get(node, UNKNOWN), intent=Intent(forward_node_ip=node in forwards)), node)
        for node in sorted(nodes)
    }


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
    """Send a packet from a pod on `start`. `broken` are pairs of nodes with a cut path, `dead` are removed nodes."""
    path, device = [start], "cni0"
    while len(path) <= MAX_HOPS:
        here = all_plans[path[-1]]
        route = lookup(here, device, destination)
        if route is None:
            if len(path) == 1:
                return Journey(Fate.CLEAR, tuple(path))
            # The CNI's own network; the packet filter lets no other packet through.
            packet_filter = here.host.packet_filter
            arrived = packet_filter and longest(set(packet_filter.local), destination)
            return Journey(Fate.DELIVERED if arrived else Fate.REFUSED, tuple(path))
        if route.kind is RouteKind.UNREACHABLE:
            return Journey(Fate.REFUSED, tuple(path))
        if route.device == VXLAN_DEVICE:
            peer = at_next_hop(all_plans, here, route)
            if peer is None or peer in dead:
                return Journey(Fate.DROPPED, (*path, peer or "nobody"))
        else:
            assert route.device == TUNNEL_DEVICE
            assert here.host.tun is not None
            carriers = dict(here.tunnel.routes)
            chosen = longest(carriers, destination)
            if chosen is None:
                return Journey(Fate.DROPPED, tuple(path))
            peer = carriers[chosen][0]
            if not arrives(all_plans, path[-1], peer, source=source, broken=broken, dead=dead):
                return Journey(Fate.DROPPED, (*path, peer))
        path.append(peer)
        device = route.device
    return Journey(Fate.LOOPED, tuple(path))


def lookup(node: NodePlan, device: str, destination: Address) -> Route | None:
    """Return the route that the policy rules find for a packet from `device`, or None."""
    for rule in sorted(node.host.rules, key=lambda r: r.preference):
        if rule.family != destination.version or rule.action is not RuleAction.LOOKUP:
            continue
        if rule.input_device in (None, device):
            table = {r.prefix: r for r in node.host.routes if r.table == rule.target and not r.metric}
            table = {r.prefix: r for r in node.host.routes if r.table == rule.target and r.metric} | table
            best = longest(table, destination)
            if best is not None:
                return table[best]
    return None


def at_next_hop(all_plans: Mapping[str, NodePlan], node: NodePlan, route: Route) -> str | None:
    """Return the node that receives a packet by this route over the VXLAN: neighbour entry, FDB entry, device."""
    assert node.host.vxlan is not None
    macs = {n.address: n.mac for n in node.host.neighbours}
    underlay = {f.mac: f.destination for f in node.host.forwarding}
    mac = macs[route.via]
    for name, other in all_plans.items():
        device = other.host.vxlan
        if other.region == node.region and device and (device.mac, device.local) == (mac, underlay[mac]):
            assert device.vni == node.host.vxlan.vni
            assert any(a.address.ip == route.via for a in other.host.addresses)
            return name
    return None


def arrives(
    all_plans: Mapping[str, NodePlan],
    sender: str,
    receiver: str,
    *,
    source: Address,
    broken: Set[frozenset[str]],
    dead: Set[str],
) -> bool:
    """Return whether both ends have the session, one can dial the other, and the far end accepts the inner source."""
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
