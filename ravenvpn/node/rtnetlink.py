"""Pack routes and policy rules into rtnetlink messages, and parse dumps of them.

By hand with struct, since they come by the thousand (`netlink` has the figures). Layouts: linux/rtnetlink.h,
linux/fib_rules.h. Pure, except for the functions that take a NetlinkSocket.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from ravenvpn.mesh.hoststate import PROTOCOL, Address, Prefix, Route, RouteKind, Rule, RuleAction
from ravenvpn.node.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    Reply,
    pack_attribute,
    pack_message,
    pack_u32,
    parse_attributes,
)

# Message types, attribute types and values of linux/rtnetlink.h.
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 24, 25, 26, 32, 33, 34
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 8, 15, 18
RTA_IP_PROTO, RTA_SPORT = 27, 28  # conditions of a look-up (RTM_GETROUTE); no part of a route
RTAX_MTU = 2  # nested in RTA_METRICS
RTNH_F_ONLINK = 4  # the gateway is a direct neighbour although no prefix of the device contains it
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
RTM_F_CLONED = 0x200  # rtm_flags: an entry of the route cache
_RTA_CACHEINFO, _RTA_PREF = 12, 20  # in dumps of IPv6 routes; a plan has no say in them
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
RT_TABLE_COMPAT = 252  # in rtm_table: the number is in RTA_TABLE, since it exceeds a byte
IP6_RT_PRIO_USER = 1024  # the metric the kernel gives an IPv6 route that names none
# Attribute types and values of linux/fib_rules.h.
FRA_DST, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 1, 3, 4, 6, 15, 21
FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 22, 23, 24  # ranges are two u16 in host byte order
FRA_L3MDEV, FRA_SUPPRESS_PREFIXLEN = 19, 14  # the latter is in every dump, -1 if not set
_FRA_SPORT_MASK, _FRA_DPORT_MASK = 28, 29  # in dumps of newer kernels; a plan's ports are whole
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP = 1, 2, 3
_FIB_RULE_INVERT = 2  # rule flags: matches what the conditions do not

# rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags. fib_rule_hdr has the
# same layout and ends with res1, res2, action, flags.
RTMSG = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")

RouteKey = tuple[int, Prefix, int]  # table, prefix, metric


@dataclass(frozen=True, slots=True)
class Stray:
    """An object that carries our marks but that no plan contains; deleted by sending back its dumped message."""

    description: str  # names it for a person: "rule 98"
    message: bytes  # family header and attributes, as the kernel wrote them
    deletion: int  # message type of its deletion: RTM_DELROUTE, RTM_DELRULE or RTM_DELNEIGH


# --- Routes ----------------------------------------------------------------------------------------------------


def route_key(route: Route) -> RouteKey:
    """Return the key by which the kernel distinguishes routes: NLM_F_REPLACE replaces the route with the same key."""
    return route.table, route.prefix, route.metric


def pack_route(route: Route, oif: int, *, deletion: bool = False) -> bytes:
    """Return rtmsg and attributes of a route; `oif` is the ifindex of its device (0: none)."""
    prefix = route.prefix
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    kind = RTN_UNICAST if route.kind is RouteKind.UNICAST else RTN_UNREACHABLE
    # Link scope: the destinations are direct neighbours. The kernel refuses a gateway or a preferred source whose
    # scope contradicts that of the route.
    scope = SCOPE_LINK if kind == RTN_UNICAST and route.via is None and family == socket.AF_INET else SCOPE_UNIVERSE
    # Our next hops lie in no prefix of the device, so the flag declares them direct neighbours.
    flags = RTNH_F_ONLINK if route.via is not None else 0
    if deletion:
        scope = SCOPE_NOWHERE  # matches any scope
    parts = [
        RTMSG.pack(family, prefix.prefixlen, 0, 0, RT_TABLE_COMPAT, 0 if deletion else PROTOCOL, scope, kind, flags),
        pack_u32(RTA_TABLE, route.table),
        pack_attribute(RTA_DST, prefix.network_address.packed),
    ]
    # A deletion without a metric would match any metric of IPv6, the fail-closed route's too.
    metric = route.metric or (IP6_RT_PRIO_USER if family == socket.AF_INET6 else 0)
    if metric:
        parts.append(pack_u32(RTA_PRIORITY, metric))
    if oif:
        parts.append(pack_u32(RTA_OIF, oif))
    if route.via is not None:
        if route.via.version == prefix.version:
            parts.append(pack_attribute(RTA_GATEWAY, route.via.packed))
        else:  # an IPv4 destination with an IPv6 next hop (RFC 8950)
            parts.append(pack_attribute(RTA_VIA, struct.pack("=H", socket.AF_INET6) + route.via.packed))
    if route.source is not None:
        parts.append(pack_attribute(RTA_PREFSRC, route.source.packed))
    if route.mtu is not None:
        parts.append(pack_attribute(RTA_METRICS | NLA_F_NESTED, pack_u32(RTAX_MTU, route.mtu)))
    return b"".join(parts)


def replace_route(route: Route, oif: int) -> bytes:
    """Return the request that adds a route or, in one step, replaces the route with the same key."""
    return pack_message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, pack_route(route, oif))


def delete_route(route: Route, oif: int) -> bytes:
    """Return the request that deletes a route, whatever its protocol and scope."""
    return pack_message(RTM_DELROUTE, NLM_F_ACK, pack_route(route, oif, deletion=True))


def delete_stray(stray: Stray) -> bytes:
    """Return the request that deletes a stray object."""
    return pack_message(stray.deletion, NLM_F_ACK, stray.message)


def parse_route(body: bytes, devices: dict[int, str]) -> tuple[Route, bool] | Stray | None:
    """Parse a dumped route: (route, whether it carries our protocol).

    `devices` maps ifindex to name; a device that is not in it is named "#index". A route that `Route` cannot express
    (several next hops, blackhole, encapsulation) comes back as a Stray, a cached clone as None.
    """
    family, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(body)
    if flags & RTM_F_CLONED:
        return None
    found = parse_attributes(body, RTMSG.size)
    prefix = _prefix(family, found.get(RTA_DST), length)
    if RTA_TABLE in found:
        table = _U32.unpack(found[RTA_TABLE])[0]
    # A route with any other attribute, a type of its own, a TOS or another metric cannot be expressed as a Route.
    known = {RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_VIA}
    known |= {_RTA_CACHEINFO, _RTA_PREF}
    metrics = parse_attributes(found.get(RTA_METRICS, b""))
    if (
        prefix is None
        or kind not in (RTN_UNICAST, RTN_UNREACHABLE)
        or tos
        or set(found) - known
        or set(metrics) - {RTAX_MTU}
    ):
        return Stray(f"route {prefix} in table {table}", body, RTM_DELROUTE)
    metric = _U32.unpack(found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
    if family == socket.AF_INET6 and metric == IP6_RT_PRIO_USER:
        metric = 0  # the kernel's default, which a plan leaves out
    unicast = kind == RTN_UNICAST
    via = ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
    if RTA_VIA in found:  # a next hop of the other family: address family (u16), address
        via = ip_address(found[RTA_VIA][2:])
    oif = _U32.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
    return (
        Route(
            prefix=prefix,
            table=table,
            kind=RouteKind.UNICAST if unicast else RouteKind.UNREACHABLE,
            # Dumps show `lo` as the device of an unreachable IPv6 route.
            device=devices.get(oif, f"#{oif}") if unicast and oif else None,
            via=via,
            source=ip_address(found[RTA_PREFSRC]) if RTA_PREFSRC in found else None,
            mtu=_U32.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else None,
            metric=metric,
        ),
        protocol == PROTOCOL,
    )


def lookup_route(netlink: NetlinkSocket, destination: Address, udp_port: int = 0) -> tuple[int, int | None] | None:
    """Return (ifindex, MTU of the route or None) for packets of this host to `destination`; None if unreachable.

    With `udp_port` the look-up is for UDP from that source port, which our rule at 98 keeps out of table 9127;
    pyroute2 cannot ask that. The MTU includes a path MTU that the kernel learned (RFC 1191, RFC 8201).
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += pack_attribute(RTA_DST, destination.packed)
    if udp_port:
        body += pack_attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_UDP])) + pack_attribute(
            RTA_SPORT, struct.pack("!H", udp_port)
        )
    answer = netlink.query(RTM_GETROUTE, body)
    # A refusal (ENETUNREACH, EHOSTUNREACH), or a route that is unreachable or a broadcast.
    if isinstance(answer, Reply) or RTMSG.unpack_from(answer)[7] not in (RTN_UNICAST, RTN_LOCAL):
        return None
    found = parse_attributes(answer, RTMSG.size)
    if RTA_OIF not in found:
        return None
    metrics = parse_attributes(found.get(RTA_METRICS, b""))
    mtu = _U32.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else None
    return _U32.unpack(found[RTA_OIF])[0], mtu


def parse_destination(body: bytes) -> list[tuple[Prefix, int]]:
    """Return [(prefix, ifindex)] of a dumped route with a single next hop, [] for any other."""
    family, length, _, _, _, _, _, _, _ = RTMSG.unpack_from(body)
    found = parse_attributes(body, RTMSG.size)
    prefix = _prefix(family, found.get(RTA_DST), length)
    return [(prefix, _U32.unpack(found[RTA_OIF])[0])] if prefix is not None and RTA_OIF in found else []


def dump_routes(netlink: NetlinkSocket, family: int, *, table: int = 0, protocol: int = 0) -> list[bytes]:
    """Return the bodies of the routes of one table, of one protocol, or of both (0: any).

    The kernel filters (strict checking), so that foreign tables cost nothing. `family` is checked here as well: a
    kernel without IPv6 answers a dump of IPv6 routes with those of the families it has.
    """
    body = RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + (pack_u32(RTA_TABLE, table) if table else b"")
    return [content for _, content in netlink.dump(RTM_GETROUTE, body, lambda content: content[0] == family)]


def route_owner(body: bytes) -> tuple[int, int]:
    """Return (table, protocol) of a dumped or notified route or rule, without parsing the rest."""
    _, _, _, _, table, protocol, _, _, _ = RTMSG.unpack_from(body)
    found = parse_attributes(body, RTMSG.size)
    if RTA_TABLE in found:  # FRA_TABLE has the same number
        table = _U32.unpack(found[RTA_TABLE])[0]
    return table, protocol


def _prefix(family: int, address: bytes | None, length: int) -> Prefix | None:
    """Return a prefix from its attribute, which is absent for the default route; None for other families."""
    if family == socket.AF_INET:
        return IPv4Network((address or bytes(4), length))
    if family == socket.AF_INET6:
        return IPv6Network((address or bytes(16), length))
    return None


# --- Rules -----------------------------------------------------------------------------------------------------

_ACTIONS = {RuleAction.LOOKUP: FR_ACT_TO_TBL, RuleAction.GOTO: FR_ACT_GOTO, RuleAction.NOP: FR_ACT_NOP}
_ACTION_NAMES = {value: action for action, value in _ACTIONS.items()}


def pack_rule(rule: Rule) -> bytes:
    """Return fib_rule_hdr and attributes of a rule, with our protocol."""
    family = socket.AF_INET if rule.family == 4 else socket.AF_INET6
    length = rule.to.prefixlen if rule.to is not None else 0
    table = rule.target if rule.action is RuleAction.LOOKUP else 0
    parts = [
        RTMSG.pack(family, length, 0, 0, table if table < 256 else RT_TABLE_COMPAT, 0, 0, _ACTIONS[rule.action], 0),
        pack_u32(FRA_PRIORITY, rule.preference),
        pack_attribute(FRA_PROTOCOL, bytes([PROTOCOL])),
    ]
    if table:
        parts.append(pack_u32(FRA_TABLE, table))
    if rule.action is RuleAction.GOTO:
        parts.append(pack_u32(FRA_GOTO, rule.target))
    if rule.input_device is not None:
        parts.append(pack_attribute(FRA_IIFNAME, rule.input_device.encode() + b"\0"))
    if rule.to is not None:
        parts.append(pack_attribute(FRA_DST, rule.to.network_address.packed))
    if rule.ip_protocol is not None:
        parts.append(pack_attribute(FRA_IP_PROTO, bytes([rule.ip_protocol])))
    for kind, port in ((FRA_SPORT_RANGE, rule.source_port), (FRA_DPORT_RANGE, rule.destination_port)):
        if port is not None:
            parts.append(pack_attribute(kind, struct.pack("=HH", port, port)))
    return b"".join(parts)


def add_rule(rule: Rule) -> bytes:
    """Return the request that adds a rule; the kernel answers EEXIST if the same rule exists."""
    return pack_message(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, pack_rule(rule))


def delete_rule(rule: Rule) -> bytes:
    """Return the request that deletes the rule with exactly these conditions."""
    return pack_message(RTM_DELRULE, NLM_F_ACK, pack_rule(rule))


def parse_rule(body: bytes) -> Rule | Stray | None:
    """Parse a dumped rule: None if its protocol is not ours, a Stray if `Rule` cannot express it."""
    family, length, source_length, tos, table, _, _, action, flags = RTMSG.unpack_from(body)
    found = parse_attributes(body, RTMSG.size)
    if found.get(FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    preference = _U32.unpack(found[FRA_PRIORITY])[0] if FRA_PRIORITY in found else 0
    table = _U32.unpack(found[FRA_TABLE])[0] if FRA_TABLE in found else table
    ports: dict[int, int | None] = {}  # by attribute type; None: any port
    ranged = False  # a range of several ports, which `Rule` cannot express
    for kind in (FRA_SPORT_RANGE, FRA_DPORT_RANGE):
        low, high = struct.unpack("=HH", found[kind]) if kind in found else (None, None)
        ports[kind], ranged = low, ranged or low != high
    known = {FRA_DST, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_L3MDEV}
    known |= {FRA_SPORT_RANGE, FRA_DPORT_RANGE, FRA_SUPPRESS_PREFIXLEN, _FRA_SPORT_MASK, _FRA_DPORT_MASK}
    inverted = bool(flags & _FIB_RULE_INVERT)
    if action not in _ACTION_NAMES or source_length or tos or ranged or inverted or set(found) - known:
        return Stray(f"rule {preference}", body, RTM_DELRULE)
    name = _ACTION_NAMES[action]
    # Rule.target is the table of a lookup and the preference that a goto jumps to.
    if name is RuleAction.GOTO:
        target = _U32.unpack(found[FRA_GOTO])[0] if FRA_GOTO in found else 0
    else:
        target = table if name is RuleAction.LOOKUP else 0
    return Rule(
        family=4 if family == socket.AF_INET else 6,
        preference=preference,
        action=name,
        target=target,
        input_device=found[FRA_IIFNAME].rstrip(b"\0").decode() if FRA_IIFNAME in found else None,
        to=_prefix(family, found[FRA_DST], length) if FRA_DST in found else None,
        ip_protocol=found[FRA_IP_PROTO][0] if FRA_IP_PROTO in found else None,
        source_port=ports[FRA_SPORT_RANGE],
        destination_port=ports[FRA_DPORT_RANGE],
    )


def rule_table(body: bytes) -> int:
    """Return the table that a dumped rule of any owner looks up; 0 for none."""
    found = parse_attributes(body, RTMSG.size)
    return int(_U32.unpack(found[FRA_TABLE])[0]) if FRA_TABLE in found else int(body[4])


def dump_rules(netlink: NetlinkSocket, family: int) -> list[bytes]:
    """Return the bodies of all policy rules of a family, in the order of evaluation."""
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return [content for _, content in netlink.dump(RTM_GETRULE, body, lambda content: content[0] == family)]
