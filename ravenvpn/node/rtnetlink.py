"""Routes and rules as netlink messages, packed by hand (`pipe` says why), and read back.

Layouts: linux/rtnetlink.h, linux/fib_rules.h.
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
    attribute,
    attributes,
    message,
    number,
)

# linux/rtnetlink.h
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 24, 25, 26, 32, 33, 34
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 8, 15, 18
RTA_IP_PROTO, RTA_SPORT = 27, 28
RTAX_MTU, RTNH_F_ONLINK = 2, 4
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
RT_TABLE_COMPAT = 252  # "look at RTA_TABLE", for ids above 255
IP6_RT_PRIO_USER = 1024  # what the kernel writes where an IPv6 route names no metric
# linux/fib_rules.h
FRA_DST, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 1, 3, 4, 6, 15, 21
FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 22, 23, 24
FRA_L3MDEV, FRA_SUPPRESS_PREFIXLEN = 19, 14
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP = 1, 2, 3

RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg; fib_rule_hdr has the same layout (res1, res2, action, flags at its end)
_U32 = struct.Struct("=I")

Key = tuple[int, Prefix, int]


@dataclass(frozen=True, slots=True)
class Stray:
    """Something that carries our marks, but that no plan of ours makes. Deleted by sending back what was dumped."""

    what: str
    message: bytes  # family header and attributes, as the kernel wrote them
    deletion: int  # RTM_DELROUTE, RTM_DELRULE or RTM_DELNEIGH


# --- Routes ----------------------------------------------------------------------------------------------------


def route_key(route: Route) -> Key:
    """What makes a route unique to the kernel: a second one with the same key replaces the first."""
    return route.table, route.prefix, route.metric


def route_body(route: Route, oif: int, *, deletion: bool = False) -> bytes:
    """The rtmsg of a route; `oif` is the index of its device (0: none)."""
    prefix = route.prefix
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    kind = RTN_UNICAST if route.kind is RouteKind.UNICAST else RTN_UNREACHABLE
    # A link scope says "neighbours there": the kernel refuses a preferred source or a gateway that contradicts it.
    scope = SCOPE_LINK if kind == RTN_UNICAST and route.via is None and family == socket.AF_INET else SCOPE_UNIVERSE
    flags = RTNH_F_ONLINK if route.via is not None else 0
    if deletion:
        scope = SCOPE_NOWHERE  # whatever it is
    parts = [
        RTMSG.pack(family, prefix.prefixlen, 0, 0, RT_TABLE_COMPAT, 0 if deletion else PROTOCOL, scope, kind, flags),
        number(RTA_TABLE, route.table),
        attribute(RTA_DST, prefix.network_address.packed),
    ]
    metric = route.metric or (IP6_RT_PRIO_USER if family == socket.AF_INET6 else 0)
    if metric:
        parts.append(number(RTA_PRIORITY, metric))
    if oif:
        parts.append(number(RTA_OIF, oif))
    if route.via is not None:
        if route.via.version == prefix.version:
            parts.append(attribute(RTA_GATEWAY, route.via.packed))
        else:  # IPv4 over an IPv6 next hop
            parts.append(attribute(RTA_VIA, struct.pack("=H", socket.AF_INET6) + route.via.packed))
    if route.source is not None:
        parts.append(attribute(RTA_PREFSRC, route.source.packed))
    if route.mtu is not None:
        parts.append(attribute(RTA_METRICS | NLA_F_NESTED, number(RTAX_MTU, route.mtu)))
    return b"".join(parts)


def put_route(route: Route, oif: int) -> bytes:
    """Add the route, or put it in the place of the one with its key in one step."""
    return message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, route_body(route, oif))


def delete_route(route: Route, oif: int) -> bytes:
    return message(RTM_DELROUTE, NLM_F_ACK, route_body(route, oif, deletion=True))


def delete_stray(stray: Stray) -> bytes:
    return message(stray.deletion, NLM_F_ACK, stray.message)


def read_route(body: bytes, devices: dict[int, str]) -> tuple[Route, bool] | Stray | None:
    """A dumped route; the flag says whether it carries our protocol. None: a cached clone, not a route at all.

    What `Route` cannot say (several next hops, blackholes, encapsulations) comes back as a stray.
    """
    family, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(body)
    if flags & 0x200:  # RTM_F_CLONED
        return None
    found = attributes(body, RTMSG.size)
    prefix = _prefix(family, found.get(RTA_DST), length)
    if RTA_TABLE in found:
        table = _U32.unpack(found[RTA_TABLE])[0]
    known = {RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_VIA, 12, 20}
    metrics = attributes(found.get(RTA_METRICS, b""))
    if (
        prefix is None
        or kind not in (RTN_UNICAST, RTN_UNREACHABLE)
        or tos
        or set(found) - known
        or set(metrics) - {2}
    ):
        return Stray(f"route {prefix} in table {table}", body, RTM_DELROUTE)
    metric = _U32.unpack(found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
    if family == socket.AF_INET6 and metric == IP6_RT_PRIO_USER:
        metric = 0
    unicast = kind == RTN_UNICAST
    via = ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
    if RTA_VIA in found:
        via = ip_address(found[RTA_VIA][2:])
    oif = _U32.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
    return (
        Route(
            prefix=prefix,
            table=table,
            kind=RouteKind.UNICAST if unicast else RouteKind.UNREACHABLE,
            # IPv6 shows `lo` as the device of an unreachable route.
            device=devices.get(oif, f"#{oif}") if unicast and oif else None,
            via=via,
            source=ip_address(found[RTA_PREFSRC]) if RTA_PREFSRC in found else None,
            mtu=_U32.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else None,
            metric=metric,
        ),
        protocol == PROTOCOL,
    )


def route_to(pipe: NetlinkSocket, destination: Address, udp_port: int = 0) -> tuple[int, int | None] | None:
    """(device index, MTU of the route) of what starts here and goes there; None if it can't go.

    With a port it is the way of UDP from that port, which our rules treat apart (pyroute2 can't ask that).
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(RTA_DST, destination.packed)
    if udp_port:
        body += attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_UDP])) + attribute(
            RTA_SPORT, struct.pack("!H", udp_port)
        )
    answer = pipe.ask(RTM_GETROUTE, body)
    if isinstance(answer, Reply) or RTMSG.unpack_from(answer)[7] not in (RTN_UNICAST, RTN_LOCAL):
        return None
    found = attributes(answer, RTMSG.size)
    if RTA_OIF not in found:
        return None
    metrics = attributes(found.get(RTA_METRICS, b""))
    mtu = _U32.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else None
    return _U32.unpack(found[RTA_OIF])[0], mtu


def read_destination(body: bytes) -> list[tuple[Prefix, int]]:
    """Prefix and device index of any route, one pair if it has a single next hop, none otherwise."""
    family, length, _, _, _, _, _, _, _ = RTMSG.unpack_from(body)
    found = attributes(body, RTMSG.size)
    prefix = _prefix(family, found.get(RTA_DST), length)
    return [(prefix, _U32.unpack(found[RTA_OIF])[0])] if prefix is not None and RTA_OIF in found else []


def dump_routes(pipe: NetlinkSocket, family: int, *, table: int = 0, protocol: int = 0) -> list[bytes]:
    """Bodies of the routes of one table or of one protocol, filtered by the kernel (strict checking).

    A kernel without IPv6 answers a question about its routes with those of all families it has.
    """
    body = RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + (number(RTA_TABLE, table) if table else b"")
    return [content for _, content in pipe.dump(RTM_GETROUTE, body, lambda content: content[0] == family)]


def route_owner(body: bytes) -> tuple[int, int]:
    """(table, protocol) of a dumped or notified route or rule, without reading the rest."""
    _, _, _, _, table, protocol, _, _, _ = RTMSG.unpack_from(body)
    found = attributes(body, RTMSG.size)
    if RTA_TABLE in found:  # FRA_TABLE has the same number
        table = _U32.unpack(found[RTA_TABLE])[0]
    return table, protocol


def _prefix(family: int, address: bytes | None, length: int) -> Prefix | None:
    if family == socket.AF_INET:
        return IPv4Network((address or bytes(4), length))
    if family == socket.AF_INET6:
        return IPv6Network((address or bytes(16), length))
    return None


# --- Rules -----------------------------------------------------------------------------------------------------

_ACTIONS = {RuleAction.LOOKUP: FR_ACT_TO_TBL, RuleAction.GOTO: FR_ACT_GOTO, RuleAction.NOP: FR_ACT_NOP}
_ACTION_NAMES = {number_: action for action, number_ in _ACTIONS.items()}


def rule_body(rule: Rule) -> bytes:
    family = socket.AF_INET if rule.family == 4 else socket.AF_INET6
    length = rule.to.prefixlen if rule.to is not None else 0
    table = rule.target if rule.action is RuleAction.LOOKUP else 0
    parts = [
        RTMSG.pack(family, length, 0, 0, table if table < 256 else RT_TABLE_COMPAT, 0, 0, _ACTIONS[rule.action], 0),
        number(FRA_PRIORITY, rule.preference),
        attribute(FRA_PROTOCOL, bytes([PROTOCOL])),
    ]
    if table:
        parts.append(number(FRA_TABLE, table))
    if rule.action is RuleAction.GOTO:
        parts.append(number(FRA_GOTO, rule.target))
    if rule.input_device is not None:
        parts.append(attribute(FRA_IIFNAME, rule.input_device.encode() + b"\0"))
    if rule.to is not None:
        parts.append(attribute(FRA_DST, rule.to.network_address.packed))
    if rule.ip_protocol is not None:
        parts.append(attribute(FRA_IP_PROTO, bytes([rule.ip_protocol])))
    for kind, port in ((FRA_SPORT_RANGE, rule.source_port), (FRA_DPORT_RANGE, rule.destination_port)):
        if port is not None:
            parts.append(attribute(kind, struct.pack("=HH", port, port)))
    return b"".join(parts)


def add_rule(rule: Rule) -> bytes:
    return message(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, rule_body(rule))


def delete_rule(rule: Rule) -> bytes:
    return message(RTM_DELRULE, NLM_F_ACK, rule_body(rule))


def read_rule(body: bytes) -> Rule | Stray | None:
    """A dumped rule if it is ours (FRA_PROTOCOL 157), else None."""
    family, length, source_length, tos, table, _, _, action, flags = RTMSG.unpack_from(body)
    found = attributes(body, RTMSG.size)
    if found.get(FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    preference = _U32.unpack(found[FRA_PRIORITY])[0] if FRA_PRIORITY in found else 0
    table = _U32.unpack(found[FRA_TABLE])[0] if FRA_TABLE in found else table
    ports: dict[int, int | None] = {}
    ranged = False
    for kind in (FRA_SPORT_RANGE, FRA_DPORT_RANGE):
        low, high = struct.unpack("=HH", found[kind]) if kind in found else (None, None)
        ports[kind], ranged = low, ranged or low != high
    # 28 and 29 are the port masks newer kernels add to a dump.
    known = {FRA_DST, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_L3MDEV}
    known |= {FRA_SPORT_RANGE, FRA_DPORT_RANGE, FRA_SUPPRESS_PREFIXLEN, 28, 29}
    inverted = bool(flags & 2)  # FIB_RULE_INVERT
    if action not in _ACTION_NAMES or source_length or tos or ranged or inverted or set(found) - known:
        return Stray(f"rule {preference}", body, RTM_DELRULE)
    name = _ACTION_NAMES[action]
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
    """Which table a dumped rule asks, whoever made it; 0 for none."""
    found = attributes(body, RTMSG.size)
    return int(_U32.unpack(found[FRA_TABLE])[0]) if FRA_TABLE in found else int(body[4])


def dump_rules(pipe: NetlinkSocket, family: int) -> list[bytes]:
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return [content for _, content in pipe.dump(RTM_GETRULE, body, lambda content: content[0] == family)]
