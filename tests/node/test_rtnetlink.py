"""Packed rtnetlink messages parse back to the same object (in test_apply, ip(8) reads them)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravenvpn.mesh.hoststate import Route, RouteKind, Rule, RuleAction
from ravenvpn.node.netlink import pack_attribute, pack_message, pack_u32, parse_attributes
from ravenvpn.node.rtnetlink import RTMSG, Stray, pack_route, pack_rule, parse_route, parse_rule, rule_table


def prefixes(version: int) -> st.SearchStrategy[IPv4Network | IPv6Network]:
    bits, kind = (32, IPv4Network) if version == 4 else (128, IPv6Network)
    return st.builds(
        lambda address, length: kind((address, length), strict=False),
        st.integers(0, 2**bits - 1),
        st.integers(0, bits),
    )


def addresses(version: int) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    if version == 4:
        return st.integers(0, 2**32 - 1).map(IPv4Address)
    return st.integers(0, 2**128 - 1).map(IPv6Address)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(st.sampled_from([4, 6]))
    unicast = draw(st.booleans())
    return Route(
        prefix=draw(prefixes(version)),
        table=draw(st.integers(1, 2**32 - 1)),
        kind=RouteKind.UNICAST if unicast else RouteKind.UNREACHABLE,
        device="raven0" if unicast else None,
        via=draw(st.none() | addresses(version) | addresses(6)) if unicast else None,
        source=draw(st.none() | addresses(version)),
        mtu=draw(st.none() | st.integers(68, 65535)),
        metric=draw(st.integers(0, 2**32 - 1).filter(lambda metric: metric != 1024)),
    )


@given(routes())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_packed_route_parses_to_the_same_route(route: Route) -> None:
    assert parse_route(pack_route(route, 7 if route.device else 0), {7: "raven0"}) == (route, True)


ports = st.none() | st.integers(1, 65535)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    version, action = draw(st.sampled_from([4, 6])), draw(st.sampled_from(RuleAction))
    return Rule(
        family=version,
        preference=draw(st.integers(1, 32765)),
        action=action,
        target=0 if action is RuleAction.NOP else draw(st.integers(1, 2**32 - 1)),
        input_device=draw(st.none() | st.sampled_from(["lo", "ravenvpn0"])),
        to=draw(st.none() | prefixes(version)),
        ip_protocol=draw(st.none() | st.integers(1, 255)),
        source_port=draw(ports),
        destination_port=draw(ports),
    )


@given(rules())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_packed_rule_parses_to_the_same_rule(rule: Rule) -> None:
    assert parse_rule(pack_rule(rule)) == rule
    assert rule_table(pack_rule(rule)) == (rule.target if rule.action is RuleAction.LOOKUP else 0)


def test_a_rule_without_our_protocol_is_not_ours() -> None:
    rule = Rule(4, 100, RuleAction.LOOKUP, 9127)

    assert parse_rule(pack_rule(rule).replace(bytes([157, 0, 0, 0]), bytes([3, 0, 0, 0]))) is None


def test_a_route_with_two_next_hops_is_a_stray() -> None:
    """RTA_MULTIPATH (9): the route is removed as a whole and not parsed as one of its next hops."""
    body = RTMSG.pack(2, 16, 0, 0, 252, 157, 0, 1, 0)
    body += pack_u32(15, 9127) + pack_attribute(1, bytes([10, 1, 0, 0])) + pack_attribute(9, bytes(16))

    assert parse_route(body, {}) == Stray("route 10.1.0.0/16 in table 9127", body, 25)


def test_parsing_stops_at_a_malformed_attribute() -> None:
    """A wrong length causes neither a read past the end nor a loop."""
    assert parse_attributes(pack_u32(1, 5) + struct.pack("=HH", 400, 2)) == {1: struct.pack("=I", 5)}
    assert parse_attributes(struct.pack("=HH", 0, 2) + pack_u32(1, 5)) == {}


def test_messages_are_padded_to_four() -> None:
    assert len(pack_message(24, 0, b"12345")) == 24
    assert struct.unpack_from("=I", pack_message(24, 0, b"12345"))[0] == 21
