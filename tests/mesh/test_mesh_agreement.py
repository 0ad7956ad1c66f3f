"""The planner compared with the reference planner, and incremental updates compared with a plan from scratch."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_brute import brute_plan, mesh_prefix
from mesh_worlds import NODES_A_REGION, REGIONS, edits, livenesses, node, worlds

from ravenvpn.mesh.hoststate import TABLE_LOCAL, TABLE_REMOTE, HostDelta, HostState, PacketFilter, RouteKind
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import World
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, TunnelDelta, TunnelPlan
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.reason import Reason, explain
from ravenvpn.mesh.situation import Intent, Observations, Situation

# A reason names the object and its field.
OBJECT = re.compile(r"(Gateway region-[a-g], status\.nodes|Peer [a-g][0-2], spec\.)")
intents = st.builds(Intent, st.sampled_from((None, None, 4501, 51820)), st.booleans())
names = st.builds(node, st.integers(0, len(REGIONS) - 1), st.integers(0, NODES_A_REGION - 1))


@given(worlds(), livenesses(), names, st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_planner_agrees_with_the_reference_planner(
    world: World, liveness: Liveness, me: str, forward: bool
) -> None:
    fast = plan(Situation(world, liveness, intent=Intent(forward_node_ip=forward)), me)
    slow = brute_plan(world, liveness, me, forward)

    assert (fast.role, fast.region) == (slow.role, slow.region)
    assert {
        p.name: (p.public_keys, tuple((c.host, c.port) for c in p.candidates), p.keepalive, p.warm)
        for p in fast.tunnel.peers
    } == slow.peers
    assert dict(fast.tunnel.routes) == slow.routes
    assert {(name, prefix) for name, prefixes in fast.tunnel.accepts for prefix in prefixes} == slow.accepts
    for table, ways, closed in (
        (TABLE_REMOTE, slow.remote_table, slow.closed),
        (TABLE_LOCAL, slow.local_table, slow.closed_local),
    ):
        routes = [r for r in fast.host.routes if r.table == table]
        assert {r.prefix: r.via or "tunnel" for r in routes if r.kind is RouteKind.UNICAST} == ways
        assert {r.prefix for r in routes if r.kind is RouteKind.UNREACHABLE} == closed
    assert {(n.address, n.mac) for n in fast.host.neighbours} == slow.neighbours
    assert {(f.mac, f.destination) for f in fast.host.forwarding} == slow.forwarding
    assert (fast.host.packet_filter is None) == (fast.role is NodeRole.NONE)
    if fast.host.packet_filter is not None:
        assert set(fast.host.packet_filter.remote) == slow.remote
    assert len(fast.host.routes) == len(set(fast.host.routes))
    for route in fast.host.routes:
        reason = explain(route.reason)
        assert "node " in reason or "mesh" in reason
        assert route.prefix == mesh_prefix(world) or OBJECT.search(reason), reason
        assert route.kind is RouteKind.UNREACHABLE or 1280 <= (route.mtu or 0) <= 1420
    host = fast.host
    for things in (host.rules, host.addresses, host.neighbours, host.forwarding, host.sysctls, fast.tunnel.peers):
        assert all(explain(thing.reason) for thing in things)
    assert all(map(explain, fast.notes))


@st.composite
def histories(draw: st.DrawFn) -> list[Situation]:
    """Draw situations in sequence, each of which differs from the one before in one or more fields."""
    situation = Situation(draw(worlds()), draw(livenesses()), intent=draw(intents))
    history = [situation]
    for _ in range(draw(st.integers(1, 6))):
        world, liveness, facts, intent = situation.world, situation.liveness, situation.facts, situation.intent
        for _ in range(draw(st.integers(0, 2))):
            world = draw(edits(world))
        if draw(st.integers(0, 7)) == 0:  # another cluster at the same address
            world = replace(draw(worlds()), mesh=draw(st.sampled_from(("ravenvpn", "another"))))
        if draw(st.integers(0, 3)) == 0:
            liveness = draw(livenesses())
        if draw(st.integers(0, 7)) == 0:
            facts = LocalFacts(
                default_mtu=draw(st.sampled_from((1400, 1500))),
                ipv6=draw(st.booleans()),
                networks=draw(st.sampled_from((frozenset(), frozenset({ipaddress.ip_network("172.16.1.0/24")})))),
            )
        if draw(st.integers(0, 3)) == 0:
            intent = draw(intents)
        # two ports during a change of the listen port
        ports = draw(st.sampled_from((frozenset(), frozenset({4500, 4501}))))
        observed = Observations(tunnel_ports=ports)
        situation = Situation(world, liveness, facts, intent, observed=observed)
        history.append(situation)
    return history


@given(histories(), names)
@settings(max_examples=40, deadline=None)
def test_incremental_updates_equal_a_plan_from_scratch(history: list[Situation], me: str) -> None:
    planner = Planner(me)
    before = planner.plan()
    for situation in history:
        delta = planner.update(situation)
        after = planner.plan()

        fresh = plan(situation, me)
        assert after == fresh
        assert reasons(after) == reasons(fresh)
        assert apply_tunnel(before.tunnel, delta.tunnel) == after.tunnel
        assert by_words(apply_host(before.host, delta.host)) == by_words(after.host)
        assert bool(delta) == (before.tunnel != after.tunnel or before.host != after.host)
        before = after


def reasons(of: NodePlan) -> list[Reason | None]:
    return [*(r.reason for r in of.host.routes), *(p.reason for p in of.tunnel.peers)]


def apply_tunnel(before: TunnelPlan, delta: TunnelDelta) -> TunnelPlan:
    """Apply a delta to dictionaries, as an agent does."""
    peers = {p.name: p for p in before.peers} | {p.name: p for p in delta.peers_set}
    accepts = {name: set(prefixes) for name, prefixes in before.accepts}
    for change in delta.accepts:
        assert change.peer in peers
        have = accepts.setdefault(change.peer, set())
        assert have.isdisjoint(change.add)
        assert have.issuperset(change.remove)
        have |= set(change.add)
        have -= set(change.remove)
    routes = dict(before.routes)
    for prefix, carriers in delta.routes:
        assert all(name in peers for name in carriers)
        assert routes.get(prefix, ()) != carriers
        routes[prefix] = carriers
    for name in delta.peers_removed:
        del peers[name]
        accepts.pop(name, None)
        routes = {p: tuple(n for n in carriers if n != name) for p, carriers in routes.items()}
    order = lambda p: (p.version, int(p.network_address), p.prefixlen)  # noqa: E731
    return replace(
        delta.settings or replace(before, peers=(), routes=(), accepts=()),
        peers=tuple(sorted(peers.values(), key=lambda p: p.name)),
        routes=tuple(sorted(((p, c) for p, c in routes.items() if c), key=lambda item: order(item[0]))),
        accepts=tuple((n, tuple(sorted(ps, key=order))) for n, ps in sorted(accepts.items()) if ps),
    )


def apply_host(before: HostState, delta: HostDelta) -> HostState:
    changed = {}
    for part in ("addresses", "neighbours", "forwarding", "routes", "rules", "sysctls"):
        have = set(getattr(before, part))
        gone, new = set(getattr(delta.removed, part)), set(getattr(delta.added, part))
        assert have >= gone
        assert (have - gone).isdisjoint(new)
        changed[part] = have - gone | new
    order = lambda r: (  # noqa: E731
        r.prefix.version,
        int(r.prefix.network_address),
        r.prefix.prefixlen,
        r.table,
        r.metric,
    )
    return HostState(
        tun=delta.added.tun or (None if delta.removed.tun else before.tun),
        vxlan=delta.added.vxlan or (None if delta.removed.vxlan else before.vxlan),
        addresses=tuple(changed["addresses"]),
        neighbours=tuple(changed["neighbours"]),
        forwarding=tuple(changed["forwarding"]),
        routes=tuple(sorted(changed["routes"], key=order)),
        rules=tuple(changed["rules"]),
        sysctls=tuple(sorted(changed["sysctls"], key=lambda s: s.key)),
        packet_filter=apply_filter(before.packet_filter, delta),
    )


def by_words(state: HostState) -> HostState:
    """Return the state with rules, addresses and entries in an order that does not depend on the nodes' names."""
    return replace(
        state,
        rules=tuple(sorted(state.rules, key=str)),
        addresses=tuple(sorted(state.addresses, key=str)),
        neighbours=tuple(sorted(state.neighbours, key=str)),
        forwarding=tuple(sorted(state.forwarding, key=str)),
    )


def apply_filter(before: PacketFilter | None, delta: HostDelta) -> PacketFilter | None:
    added, removed = delta.added.packet_filter, delta.removed.packet_filter
    if delta.filter_replaced:
        assert removed == before
        return added
    if before is None:
        return None
    empty = PacketFilter()
    parts = {}
    for part in ("local", "remote"):
        gone, new = set(getattr(removed or empty, part)), set(getattr(added or empty, part))
        have = set(getattr(before, part))
        assert have >= gone
        assert have.isdisjoint(new)
        order = lambda p: (p.version, int(p.network_address), p.prefixlen)  # noqa: E731
        parts[part] = tuple(sorted(have - gone | new, key=order))
    if added is not None:
        parts["vxlan_sources"] = added.vxlan_sources
    return replace(before, **parts)
