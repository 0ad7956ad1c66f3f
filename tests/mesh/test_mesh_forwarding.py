"""Properties of the plans of all nodes together: packets arrive, never loop, never leave unencrypted."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_simulation import Fate, Journey, plans, send
from mesh_worlds import REGIONS, edits, livenesses, worlds

from ravenvpn.mesh.hoststate import TABLE_LOCAL, TABLE_REMOTE, Route
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import World
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole
from ravenvpn.mesh.plan import plan
from ravenvpn.mesh.situation import Situation

QUICK = settings(max_examples=25, deadline=None)
QUICKER = settings(max_examples=12, deadline=None)  # for tests that plan every node several times


def pod(region: int, number: int = 0, family: int = 4):
    text = f"10.{region}.{number}.9" if family == 4 else f"fd00:{region}:{number}::9"
    return ipaddress.ip_address(text)


def pairs(world: World) -> list[tuple[int, int]]:
    present = [i for i, name in enumerate(REGIONS) if name in world.gateways]
    return [(a, b) for a in present for b in present if a != b]


def remote(node_plan: NodePlan) -> list[Route]:
    return [route for route in node_plan.host.routes if route.table == TABLE_REMOTE]


def active(region: int) -> str:
    return f"{'abcdefg'[region]}0"  # the first node is the active gateway in a peaceful world


def natted(world: World, region: int) -> bool:
    return world.gateways[REGIONS[region]].endpoints[0].under_nat


@given(worlds(peaceful=True, least=2), st.sampled_from((4, 6)))
@QUICK
def test_any_two_healthy_regions_reach_each_other(world: World, family: int) -> None:
    """A pair is healthy if one end can be dialled or a hub can relay."""
    all_plans = plans(world)
    public = [r for r, _ in pairs(world) if not natted(world, r)]
    for here, there in pairs(world):
        journey = send(all_plans, active(here), pod(here, 0, family), pod(there, 0, family))
        if natted(world, here) and natted(world, there) and not public:
            assert journey.fate is Fate.REFUSED
        else:
            assert (journey.fate, journey.path[-1]) == (Fate.DELIVERED, active(there))
            assert len(journey.path) == 2 + (natted(world, here) and natted(world, there))


def journeys(world: World) -> list[tuple[str, int, int, int]]:
    """Return (node, its region, number of a node of another region, that region) for every pair of nodes."""
    counts = {i: len(world.gateways[n].status.nodes) for i, n in enumerate(REGIONS) if n in world.gateways}
    return [
        (f"{'abcdefg'[here]}{i}", here, j, there)
        for here, there in pairs(world)
        for i in range(counts[here])
        for j in range(counts[there])
    ]


@given(worlds(peaceful=True, least=2), st.sampled_from((4, 6)))
@QUICK
def test_a_pod_of_any_node_reaches_a_pod_of_any_node_of_another_region(world: World, family: int) -> None:
    """A plain node's packets take its gateway both ways; the first node of a region is the active one."""
    all_plans = plans(world)
    public = [r for r, _ in pairs(world) if not natted(world, r)]
    for name, here, number, there in journeys(world):
        journey = send(all_plans, name, pod(here, int(name[1:]), family), pod(there, number, family))
        if natted(world, here) and natted(world, there) and not public:
            # A plain node cannot know that its gateway has no path: the packet is refused at the gateway.
            assert journey.fate is Fate.REFUSED
            continue
        assert journey.fate is Fate.DELIVERED, (name, there, number, journey)
        far = f"{'abcdefg'[there]}{number}"
        way = list(dict.fromkeys((name, active(here), active(there), far)))
        if natted(world, here) and natted(world, there):
            hub = way.index(active(here)) + 1
            assert journey.path[hub] in {active(region) for region in public}
            way.insert(hub, journey.path[hub])
        assert journey.path == tuple(way)


@given(worlds(peaceful=True, least=2), st.data())
@QUICK
def test_no_packet_loops_or_is_lost_while_a_role_moves(world: World, data: st.DataObject) -> None:
    """Any subset of nodes in any regions may know of the move: packets of the others still arrive."""
    moving = [g for g in world.gateways.values() if len(g.endpoints) > 1]
    if not moving:
        return
    gateway = data.draw(st.sampled_from(moving))
    successor = next(e for e in gateway.endpoints if e.node not in {a.node for a in gateway.status.active})
    later = world.with_gateway(replace(gateway, status=replace(gateway.status, active=(successor,))))
    old, new = plans(world), plans(later)
    before = {way: fate(old, way) for way in journeys(world)}
    # Nodes that know of the move: the old gateway alone, the new one alone, or any set.
    some = data.draw(st.sets(st.sampled_from(sorted(old))))
    for learnt in ({gateway.status.active[0].node}, {successor.node}, some):
        mixed = {name: (new if name in learnt else old)[name] for name in old}
        assert {way: fate(mixed, way) for way in before} == before, learnt


def crossing(world: World, family: int) -> Iterator[tuple[str, int, str, int, ipaddress.IPv4Address]]:
    """Yield (node, its region, node of another region, that region, an address of that other node if it has one)."""
    for name, here, number, there in journeys(world):
        far = f"{'abcdefg'[there]}{number}"
        for address in world.peers[far].node_addresses:
            if address.version == family:
                yield name, here, far, there, address


@given(worlds(peaceful=True, least=2), st.sampled_from((4, 6)))
@QUICK
def test_node_addresses_are_reached_as_pods_are_with_forward_node_ip(world: World, family: int) -> None:
    """From pods, and from nodes with their own address as source.

    Without the setting the agent's tables have no route.
    """
    wanted, unwanted = plans(world, forward_node_ip=True), plans(world)
    for name, here, far, there, address in crossing(world, family):
        as_pods = send(wanted, name, pod(here, int(name[1:])), pod(there, int(far[1:])))
        own = (a for a in world.peers[name].node_addresses if a.version == family)
        for source in (pod(here, int(name[1:]), family), *own):
            assert send(wanted, name, source, address) == as_pods
            assert send(unwanted, name, source, address) == Journey(Fate.CLEAR, (name,))


@given(worlds(peaceful=True, least=2), st.data())
@QUICKER
def test_agents_with_and_without_forward_node_ip_never_send_in_clear(world: World, data: st.DataObject) -> None:
    """Any subset of agents has it on: their packets to nodes arrive or are refused. Pod traffic is unaffected."""
    some = data.draw(st.sets(st.sampled_from(sorted(plans(world)))))
    mixed, before = plans(world, forward_node_ip=some), plans(world)
    for name, here, far, there, address in crossing(world, 4):
        way = (name, here, int(far[1:]), there)
        assert fate(mixed, way) == fate(before, way)
        journey = send(mixed, name, pod(here, int(name[1:])), address)
        if name in some:
            assert journey.fate in (Fate.DELIVERED, Fate.REFUSED)
        else:
            assert journey == Journey(Fate.CLEAR, (name,))


@given(worlds(), livenesses())
@QUICKER
def test_forward_node_ip_adds_routes_and_removes_none(world: World, liveness: Liveness) -> None:
    more, less = plans(world, liveness, forward_node_ip=True), plans(world, liveness)
    for name, node_plan in less.items():
        # (Inside the region, a prefix that holds an own address of the gateway is left to the CNI: see local_routes.)
        beyond = {route for route in node_plan.host.routes if route.table != TABLE_LOCAL}
        assert beyond <= set(more[name].host.routes)
        assert set(node_plan.tunnel.routes) <= set(more[name].tunnel.routes)
        assert node_plan.relays == more[name].relays
        accepted = dict(more[name].tunnel.accepts)
        for peer, prefixes in node_plan.tunnel.accepts:
            assert set(prefixes) <= set(accepted[peer])


@given(worlds(), livenesses(), st.data())
@QUICKER
def test_nodes_with_different_worlds_send_nothing_in_clear(
    world: World, liveness: Liveness, data: st.DataObject
) -> None:
    """A change reaches nodes at different instants: every routed packet arrives, is refused, or is dropped."""
    later = data.draw(edits(data.draw(edits(world))))
    old, new = (plans(w, liveness, data.draw(st.booleans())) for w in (world, later))
    names = sorted(old.keys() | new.keys())
    learnt = data.draw(st.sets(st.sampled_from(names))) if names else set()
    mixed = {n: (new if (n in learnt and n in new) or n not in old else old)[n] for n in names}
    for name, node_plan in mixed.items():
        for route in remote(node_plan):
            destination = route.prefix.network_address + (route.prefix.num_addresses > 1)
            assert send(mixed, name, pod(0), destination).fate is not Fate.CLEAR, (name, destination)


def fate(all_plans: dict[str, NodePlan], way: tuple[str, int, int, int]) -> Fate:
    name, here, number, there = way
    return send(all_plans, name, pod(here, int(name[1:])), pod(there, number)).fate


@given(worlds(), livenesses())
@QUICK
def test_nothing_loops_and_nothing_leaves_in_clear(world: World, liveness: Liveness) -> None:
    """In any world and with any verdicts, packets from every node to every routed prefix."""
    all_plans = plans(world, liveness)
    everywhere = {
        route.prefix.network_address + (route.prefix.num_addresses > 1)
        for node_plan in all_plans.values()
        for route in node_plan.host.routes
        if route.table == TABLE_REMOTE
    }
    for name, node_plan in all_plans.items():
        meant = [
            a for a in everywhere if any(a in r.prefix for r in remote(node_plan) if r.prefix.version == a.version)
        ]
        for destination in meant:
            journey = send(all_plans, name, pod(0), destination)
            assert journey.fate in (Fate.DELIVERED, Fate.REFUSED, Fate.DROPPED), (name, destination, journey)


@given(worlds(), livenesses())
@QUICK
def test_every_remote_prefix_has_a_fail_closed_route(world: World, liveness: Liveness) -> None:
    """Every routed prefix has an unreachable route, so a dead agent leaks no packet."""
    for node_plan in plans(world, liveness).values():
        closed = {r.prefix for r in remote(node_plan) if r.metric}
        assert closed >= {r.prefix for r in remote(node_plan)}
        if node_plan.role is NodeRole.ACTIVE:
            carried = {p for p, _ in node_plan.tunnel.routes if p.version == 4 or p.prefixlen < 128}
            assert closed >= carried


@given(worlds(peaceful=True, least=3), livenesses())
@QUICK
def test_both_ends_choose_the_same_hub(world: World, liveness: Liveness) -> None:
    relays = {
        (node_plan.region, far): hub
        for node_plan in plans(world, liveness).values()
        if node_plan.role is NodeRole.ACTIVE
        for far, hub in node_plan.relays
    }
    for (here, there), hub in relays.items():
        # Verdicts on the far end differ, since it has none on itself; those on hubs are the same at both ends.
        ends = {active(REGIONS.index(here)), active(REGIONS.index(there))}
        if not any(ends & set(unreachable) for unreachable in liveness.unreachable_via.values()):
            assert relays[there, here] == hub


@given(worlds(peaceful=True, least=3), st.data())
@QUICK
def test_dead_hubs_are_left_by_both_ends(world: World, data: st.DataObject) -> None:
    """With any set of public gateways dead, relayed pairs reach each other as long as one public gateway is alive."""
    public = sorted({active(r) for r, _ in pairs(world) if not natted(world, r)})
    dead = data.draw(st.sets(st.sampled_from(public))) if public else set()
    all_plans = plans(world, Liveness(dict.fromkeys(dead, LivenessVerdict.DEAD)))
    for here, there in pairs(world):
        if natted(world, here) and natted(world, there) and set(public) - dead:
            journey = send(all_plans, active(here), pod(here), pod(there), dead=dead)
            assert (journey.fate, journey.path[-1]) == (Fate.DELIVERED, active(there))


@given(worlds(peaceful=True, least=3), st.data())
@QUICK
def test_a_cut_between_one_end_and_the_hub_moves_both_ends(world: World, data: st.DataObject) -> None:
    """The end that is cut off has its own verdict; the other one gets it from the hub's probe."""
    hidden = [(a, b) for a, b in pairs(world) if natted(world, a) and natted(world, b)]
    public = sorted({active(r) for r, _ in pairs(world) if not natted(world, r)})
    if not hidden or len(public) < 2:
        return
    here, there = data.draw(st.sampled_from(hidden))
    cut = data.draw(st.sets(st.sampled_from(public), max_size=len(public) - 1))
    views = {
        name: Liveness(unreachable_via={hub: {active(here)} for hub in cut}) for name in (active(there), *public)
    }
    views[active(here)] = Liveness(dict.fromkeys(cut, LivenessVerdict.DEAD))
    all_plans = plans(world, views)
    broken = {frozenset((active(here), hub)) for hub in cut}
    for one, other in ((here, there), (there, here)):
        journey = send(all_plans, active(one), pod(one), pod(other), broken=broken)
        assert (journey.fate, journey.path[-1]) == (Fate.DELIVERED, active(other))


@given(worlds(peaceful=True, least=3), st.data())
@QUICK
def test_packets_arrive_while_only_one_end_has_left_a_dead_hub(world: World, data: st.DataObject) -> None:
    """While only one end has left the dead hub, its packets arrive: the other end accepts them from any hub."""
    hidden = [(a, b) for a, b in pairs(world) if natted(world, a) and natted(world, b)]
    public = sorted({active(r) for r, _ in pairs(world) if not natted(world, r)})
    if not hidden or len(public) < 2:
        return
    here, there = data.draw(st.sampled_from(hidden))
    dead = {data.draw(st.sampled_from(public))}
    all_plans = plans(world, {active(here): Liveness(dict.fromkeys(dead, LivenessVerdict.DEAD))})
    journey = send(all_plans, active(here), pod(here), pod(there), dead=dead)
    assert (journey.fate, journey.path[-1]) == (Fate.DELIVERED, active(there))


@given(worlds(peaceful=True, least=3), st.data())
@QUICK
def test_a_removed_hub_moves_only_the_pairs_it_carried(world: World, data: st.DataObject) -> None:
    public = [name for i, name in enumerate(REGIONS) if name in world.gateways and not natted(world, i)]
    if len(public) < 2:
        return
    gone = data.draw(st.sampled_from(public))
    for here, name in enumerate(REGIONS):
        if name in world.gateways and natted(world, here):
            before = dict(plan(Situation(world), active(here)).relays)
            after = dict(plan(Situation(world.without_gateway(gone)), active(here)).relays)
            assert {pair for pair in before if before[pair] != after[pair]} == {
                pair for pair, hub in before.items() if hub == gone
            }


@given(worlds(), st.data())
@QUICK
def test_equal_worlds_make_equal_plans_after_any_edits(world: World, data: st.DataObject) -> None:
    detour = world
    for _ in range(3):
        detour = data.draw(edits(detour))
    back = World.of(detour.gateways.values(), detour.peers.values())
    for name in detour.gateways.keys() - world.gateways.keys():
        back = back.without_gateway(name)
    for name in detour.peers.keys() - world.peers.keys():
        back = back.without_peer(name)
    for gateway in world.gateways.values():
        back = back.with_gateway(gateway)
    for peer in world.peers.values():
        back = back.with_peer(peer)
    assert back == world
    for name in ("a0", "b0", "c1"):
        assert plan(Situation(back), name) == plan(Situation(world), name)
        assert repr(plan(Situation(back), name)) == repr(plan(Situation(world), name))
