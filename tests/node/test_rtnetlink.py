"""Messages packed by hand say what they mean: read back they are the same (test_apply has ip(8) read them)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravenvpn.mesh.hoststate import Route, RouteKind, Rule, RuleAction
from ravenvpn.node.netlink import attribute, attributes, message, number
from ravenvpn.node.rtnetlink import RTMSG, Stray, read_route, read_rule, route_body, rule_body, rule_table


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
def test_a_route_read_back_is_the_same(route: Route) -> None:
    assert read_route(route_body(route, 7 if route.device else 0), {7: "raven0"}) == (route, True)


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
def test_a_rule_read_back_is_the_same(rule: Rule) -> None:
    assert read_rule(rule_body(rule)) == rule
    assert rule_table(rule_body(rule)) == (rule.target if rule.action is RuleAction.LOOKUP else 0)


def test_a_rule_without_our_protocol_is_not_ours() -> None:
    rule = Rule(4, 100, RuleAction.LOOKUP, 9127)

    assert read_rule(rule_body(rule).replace(bytes([157, 0, 0, 0]), bytes([3, 0, 0, 0]))) is None


def test_what_a_route_can_not_say_is_a_stray() -> None:
    """Two next hops (RTA_MULTIPATH, 9): removed whole, never read as half of it."""
    body = RTMSG.pack(2, 16, 0, 0, 252, 157, 0, 1, 0)
    body += number(15, 9127) + attribute(1, bytes([10, 1, 0, 0])) + attribute(9, bytes(16))

    assert read_route(body, {}) == Stray("route 10.1.0.0/16 in table 9127", body, 25)


def test_attributes_end_where_the_message_does() -> None:
    """A length that lies leads nowhere: neither past the end nor in circles."""
    assert attributes(number(1, 5) + struct.pack("=HH", 400, 2)) == {1: struct.pack("=I", 5)}
    assert attributes(struct.pack("=HH", 0, 2) + number(1, 5)) == {}


def test_messages_are_padded_to_four() -> None:
    assert len(message(24, 0, b"12345")) == 24
    assert struct.unpack_from("=I", message(24, 0, b"12345"))[0] == 21
