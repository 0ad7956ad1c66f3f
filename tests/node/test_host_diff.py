"""Order of operations on a model of a host: no step from one plan to the next leaks or interrupts traffic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from node.applying import delta_between
from node.worlds import gateway, lan_gateway

from ravenvpn.mesh.hoststate import (
    FAIL_CLOSED_METRIC,
    TABLE_LOCAL,
    TABLE_REMOTE,
    DeviceAddress,
    HostState,
    Neighbour,
    Prefix,
    Route,
    RouteKind,
    Rule,
    RuleAction,
    Sysctl,
)
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.node.format import format_object
from ravenvpn.node.host_diff import expected_state, required_operations
from ravenvpn.node.links import LinkFacts, VxlanFacts
from ravenvpn.node.operations import ObservedState, Operation, OwnedDevice, Verb
from ravenvpn.node.rtnetlink import route_key
from ravenvpn.node.sysctl import SavedSysctl

PREFIXES = [ip_network(text) for text in ("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/24", "fd01::/64", "fd02::/64")]


def observed_as(wanted: HostState) -> ObservedState:
    """Return the state of a host to which `wanted` was applied, devices included."""
    observed = expected_state(wanted)
    if wanted.tun is not None:
        observed.links[wanted.tun.name] = LinkFacts(wanted.tun.name, 7, "tun", wanted.tun.mtu, True)
    if wanted.vxlan is not None:
        vxlan = wanted.vxlan
        facts = VxlanFacts(vxlan.vni, vxlan.port, vxlan.local, False, 3)
        observed.links[vxlan.name] = LinkFacts(vxlan.name, 8, "vxlan", vxlan.mtu, True, vxlan.mac, facts)
        observed.underlay = 3
    observed.saved_sysctls = {item.key: SavedSysctl("0", item.value) for item in wanted.sysctls if not item.ours}
    return observed


def formatted(operations: list[Operation]) -> list[str]:
    return [f"{operation.verb} {format_object(operation.target)}" for operation in operations]


def test_a_host_at_its_plan_needs_no_operation() -> None:
    assert required_operations(observed_as(lan_gateway()), lan_gateway()) == []


def test_set_up_adds_fail_closed_routes_first_and_rules_last() -> None:
    wanted = replace(gateway(families=(4,)), sysctls=())

    assert formatted(required_operations(ObservedState(), wanted)) == [
        "add route unreachable 10.244.2.0/24 table 9127 metric 4278198272",
        "add route unreachable 10.244.3.0/24 table 9127 metric 4278198272",
        "change device ravenvpn0 mtu 1420 up",
        "add nft table ravenvpn",
        "add route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "add route 10.244.3.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "add rule 98 IPv4 iif ravenvpn0 ipproto 17 sport 4500 nop",
        "add rule 102 IPv4 nop",
        "add rule 98 IPv4 iif lo ipproto 17 sport 4500 goto 102",
        "add rule 98 IPv4 iif ravenvpn0 lookup 9129",
        "add rule 99 IPv4 lookup 9127",
    ]


def test_tear_down_is_in_the_reverse_order() -> None:
    before = observed_as(
        replace(gateway(families=(4,)), sysctls=(Sysctl("net/ipv4/conf/cni0/forwarding", "1", False),))
    )

    assert formatted(required_operations(before, HostState())) == [
        "remove rule 99 IPv4 lookup 9127",
        "remove rule 98 IPv4 iif ravenvpn0 lookup 9129",
        "remove rule 98 IPv4 iif lo ipproto 17 sport 4500 goto 102",
        "remove rule 102 IPv4 nop",
        "remove rule 98 IPv4 iif ravenvpn0 ipproto 17 sport 4500 nop",
        "remove route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "remove route 10.244.3.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "remove device ravenvpn0",
        "remove route unreachable 10.244.2.0/24 table 9127 metric 4278198272",
        "remove route unreachable 10.244.3.0/24 table 9127 metric 4278198272",
        "remove nft table ravenvpn",
        "remove sysctl net/ipv4/conf/cni0/forwarding=0",
    ]


def test_a_moved_role_never_refuses_packets_under_way() -> None:
    """The unreachable routes of table 9129 are added after the device routes and removed before them."""
    remote, closed = ip_network("10.244.2.0/24"), {"kind": RouteKind.UNREACHABLE, "metric": FAIL_CLOSED_METRIC}
    shut = Route(remote, TABLE_REMOTE, **closed)
    active = HostState(routes=(Route(remote, TABLE_REMOTE, device="ravenvpn0"), shut))
    standby = HostState(
        routes=(
            Route(remote, TABLE_REMOTE, device="raven0", via=ip_address("240.0.0.6")),
            shut,
            Route(remote, TABLE_LOCAL, device="ravenvpn0"),
            Route(remote, TABLE_LOCAL, **closed),
        )
    )

    assert formatted(required_operations(observed_as(active), standby)) == [
        "change route 10.244.2.0/24 table 9127 via 240.0.0.6 dev raven0",
        "add route 10.244.2.0/24 table 9129 dev ravenvpn0",
        "add route unreachable 10.244.2.0/24 table 9129 metric 4278198272",
    ]
    assert formatted(required_operations(observed_as(standby), active)) == [
        "change route 10.244.2.0/24 table 9127 dev ravenvpn0",
        "remove route unreachable 10.244.2.0/24 table 9129 metric 4278198272",
        "remove route 10.244.2.0/24 table 9129 dev ravenvpn0",
    ]


def test_a_vxlan_with_another_port_is_recreated_with_its_objects() -> None:
    wanted = lan_gateway()
    assert wanted.vxlan is not None
    before = observed_as(replace(wanted, vxlan=replace(wanted.vxlan, port=4789)))

    operations = required_operations(before, wanted)

    assert formatted(operations) == [
        "remove device raven0",
        "add device raven0 VXLAN 200 port 4472 local 10.0.0.5 mtu 1370",
        "add address 240.0.0.5/8 dev raven0",
        "add address fdaa:0:0:2::5/64 dev raven0",
        "add neighbour 240.0.0.6 at aa:0f:0a:00:00:06 dev raven0",
        "add neighbour fdaa:0:0:2::6 at aa:0f:0a:00:00:06 dev raven0",
        "add forwarding entry aa:0f:0a:00:00:06 to 10.0.0.6 dev raven0",
        "add route 10.244.4.0/24 table 9129 via 240.0.0.6 dev raven0 mtu 1370",
        "add route fd00:4::/64 table 9129 via fdaa:0:0:2::6 dev raven0 mtu 1370",
    ]


def test_another_mtu_does_not_recreate_the_vxlan() -> None:
    wanted = lan_gateway()
    assert wanted.vxlan is not None
    before = observed_as(replace(wanted, vxlan=replace(wanted.vxlan, mtu=1300)))

    assert [operation.verb for operation in required_operations(before, wanted)] == [Verb.CHANGE]


def test_a_neighbour_that_moved_is_changed_and_not_removed() -> None:
    wanted = lan_gateway()
    moved = Neighbour("raven0", wanted.neighbours[0].address, "aa:0f:0a:00:00:99")

    operations = required_operations(observed_as(wanted), replace(wanted, neighbours=(moved, wanted.neighbours[1])))

    assert formatted(operations) == ["change neighbour 240.0.0.6 at aa:0f:0a:00:00:99 dev raven0"]
    assert operations[0].before == wanted.neighbours[0]


def test_ipv4_routes_are_added_again_after_the_last_ipv4_address_is_lost() -> None:
    """The kernel flushes a device's IPv4 routes with its last IPv4 address."""
    wanted = gateway()
    before = observed_as(wanted)
    before.addresses.add(DeviceAddress("ravenvpn0", ip_interface("192.0.2.7/32")))

    assert formatted(required_operations(before, wanted)) == [
        "remove address 192.0.2.7/32 dev ravenvpn0",
        "add route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "add route 10.244.3.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
    ]


def test_another_reason_is_no_difference() -> None:
    wanted = gateway()
    other = replace(
        wanted, routes=tuple(replace(route, reason=Reason(ReasonCode.FAIL_CLOSED)) for route in wanted.routes)
    )

    assert required_operations(observed_as(wanted), other) == []


def test_ipv6_routes_of_metric_1024_and_of_none_are_the_same() -> None:
    route = Route(ip_network("fd01::/64"), TABLE_REMOTE, device="ravenvpn0", metric=1024)

    assert (
        required_operations(expected_state(HostState(routes=(replace(route, metric=0),))), HostState(routes=(route,)))
        == []
    )


# --- Any plan to any other --------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> HostState:
    """Draw prefixes with a device route and a fail-closed route, or with the latter alone; with or without rules."""
    routes: list[Route] = []
    for prefix in draw(st.lists(st.sampled_from(PREFIXES), unique=True)):
        device = draw(st.sampled_from(["ravenvpn0", "raven0", None]))
        if device is not None:
            routes.append(Route(prefix, TABLE_REMOTE, device=device, mtu=draw(st.sampled_from([1400, 1420]))))
        routes.append(Route(prefix, TABLE_REMOTE, RouteKind.UNREACHABLE, metric=FAIL_CLOSED_METRIC))
    wanted = replace(lan_gateway(), routes=tuple(routes))
    if draw(st.booleans()):
        wanted = replace(wanted, rules=())
    return wanted


def ways(routes: dict[object, Route], prefix: Prefix) -> set[RouteKind]:
    return {route.kind for route in routes.values() if route.prefix == prefix}


def steps(observed: ObservedState, operations: list[Operation]) -> Iterator[tuple[dict[object, Route], set[Rule]]]:
    """Yield the routes and rules after each operation, as a kernel would have them."""
    routes: dict[object, Route] = dict(observed.routes)
    rules = set(observed.rules)
    for operation in operations:
        thing = operation.target
        if isinstance(thing, Route) and operation.verb is Verb.REMOVE:
            assert routes.pop(route_key(thing)) == thing
        elif isinstance(thing, Route):
            routes[route_key(thing)] = thing
        elif isinstance(thing, Rule) and operation.verb is Verb.REMOVE:
            rules.remove(thing)
        elif isinstance(thing, Rule):
            rules.add(thing)
        elif isinstance(thing, OwnedDevice):
            routes = {key: route for key, route in routes.items() if route.device != thing.name}
        yield routes, rules


@given(plans(), plans())
@settings(max_examples=150, deadline=None)
def test_no_leak_and_no_outage_from_any_plan_to_any_other(before: HostState, after: HostState) -> None:
    observed = observed_as(before)
    operations = required_operations(observed, after)
    both = {route.prefix for route in before.routes} & {route.prefix for route in after.routes}
    carried = [
        prefix
        for prefix in both
        if all(any(r.prefix == prefix and r.device for r in plan.routes) for plan in (before, after))
    ]
    routes: dict[object, Route] = dict(observed.routes)
    rules = set(observed.rules)
    for routes, rules in steps(observed, operations):
        if any(rule.action is RuleAction.LOOKUP and rule.target == TABLE_REMOTE for rule in rules):
            for prefix in {route.prefix for route in routes.values()}:
                assert RouteKind.UNREACHABLE in ways(routes, prefix), "a way without its fail-closed route"
            assert both <= {route.prefix for route in routes.values()}
        for prefix in carried:
            assert RouteKind.UNICAST in ways(routes, prefix), "a way went before the new one was there"
        gotos = {(rule.family, rule.target) for rule in rules if rule.action is RuleAction.GOTO}
        assert gotos <= {(rule.family, rule.preference) for rule in rules if rule.action is RuleAction.NOP}

    assert set(routes.values()) == set(after.routes)
    assert rules == set(after.rules)


@given(plans(), plans())
@settings(max_examples=100, deadline=None)
def test_a_delta_needs_the_same_operations_as_an_observation(before: HostState, after: HostState) -> None:
    delta = delta_between(before, after)

    changed = required_operations(expected_state(delta.removed), delta.added)

    assert sorted(formatted(changed)) == sorted(formatted(required_operations(observed_as(before), after)))
