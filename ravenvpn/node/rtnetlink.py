"""Netlink by the thousand: one raw socket, messages packed by hand, acknowledgements read behind the sends.

pyroute2 takes about 280 µs to encode a route and 130 µs to decode one; a world of 20,000 prefixes is 40,000 of them.
So routes and rules (and `conntrack`'s flows) are packed here with struct, and everything that comes by the dozen goes
through `netlink`, the door to pyroute2. Layouts: linux/netlink.h, linux/rtnetlink.h, linux/fib_rules.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import PROTOCOL, Address, Prefix, Route, RouteKind, Rule, RuleAction
from ravenvpn.node.reasons import host_error

# linux/netlink.h
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 1, 4, 0x300, 0x10, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
SO_RCVBUFFORCE = 33
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

HEADER = struct.Struct("=IHHII")  # nlmsghdr
RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg; fib_rule_hdr has the same layout (res1, res2, action, flags at its end)
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")

# Acknowledgements wait in our receive buffer until the batch is sent; about 1 KiB of it each, so this many fit the
# default of 208 KiB even where it may not be raised.
WINDOW = 128

Key = tuple[int, Prefix, int]


class Reply(NamedTuple):
    """What the kernel said to one request: 0 and "", or an errno and, if it gave one, a sentence."""

    errno: int
    detail: str


@dataclass(frozen=True, slots=True)
class Stray:
    """Something that carries our marks, but that no plan of ours makes. Deleted by sending back what was dumped."""

    what: str
    message: bytes  # family header and attributes, as the kernel wrote them
    deletion: int  # RTM_DELROUTE or RTM_DELRULE


class Pipe:
    """One netlink socket that sends requests in batches. Not for use by two threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise host_error("netlink socket", error.errno or 0) from error
        self._socket.bind((0, 0))
        self._socket.settimeout(10.0)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        with contextlib.suppress(PermissionError):  # WINDOW fits the default
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        self.port: int = self._socket.getsockname()[0]  # notifications about our own changes carry it
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def request(self, messages: Sequence[bytes]) -> list[Reply]:
        """Send each message (built by `message`) and return what became of it, in order."""
        replies: list[Reply] = []
        for start in range(0, len(messages), WINDOW):
            replies += self._request_window(messages[start : start + WINDOW])
        return replies

    def _request_window(self, messages: Sequence[bytes]) -> list[Reply]:
        first = self._sequence + 1
        self._sequence = (self._sequence + len(messages)) & 0x7FFFFFFF
        if self._sequence < first:  # wrapped: no window may straddle the end
            first, self._sequence = 1, len(messages)
        batch = bytearray()
        for offset, message in enumerate(messages):
            at = len(batch)
            batch += message
            _U32.pack_into(batch, at + 8, first + offset)
        self._send(bytes(batch))
        replies: list[Reply | None] = [None] * len(messages)
        missing = len(messages)
        while missing:
            for kind, flags, sequence, body in _messages(self._receive()):
                place = sequence - first
                if kind == NLMSG_ERROR and 0 <= place < len(replies) and replies[place] is None:
                    replies[place] = _reply(flags, body)
                    missing -= 1
        return [reply for reply in replies if reply is not None]

    def ask(self, kind: int, body: bytes) -> bytes | Reply:
        """The one message that answers a question, or the refusal."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._send(message(kind, 0, body, sequence=self._sequence))
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence == self._sequence:
                    return _reply(flags, content) if type_ == NLMSG_ERROR else content

    def dump(self, kind: int, body: bytes, keep: Callable[[bytes], bool] = lambda _: True) -> list[tuple[int, bytes]]:
        """What the kernel answers to a dump, as far as `keep` wants it: (message type, body).

        A dump that a change cut in two is retried.
        """
        for _ in range(16):
            found = self._dump_once(kind, body, keep)
            if found is not None:
                return found
        raise HostError(
            "the kernel's tables change faster than they can be read",
            subject="netlink dump",
            remedy="look with `ip monitor` who keeps changing routes",
        )

    def _dump_once(self, kind: int, body: bytes, keep: Callable[[bytes], bool]) -> list[tuple[int, bytes]] | None:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        wanted = self._sequence
        self._send(message(kind, NLM_F_DUMP, body, sequence=wanted))
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if type_ in (NLMSG_ERROR, NLMSG_DONE):
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    # An empty or absent table, and a kernel without IPv6, answer so: nothing of ours is there.
                    if code not in (0, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                        raise host_error("netlink dump", code)
                    return None if interrupted else found
                if keep(content):
                    found.append((type_, content))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise host_error("netlink socket", error.errno or 0) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 20)
        except OSError as error:  # ENOBUFS or no answer within the time-out: what was done is unknown
            raise host_error("netlink socket", error.errno or errno.ETIMEDOUT) from error


def message(kind: int, flags: int, body: bytes, *, sequence: int = 0) -> bytes:
    length = HEADER.size + len(body)
    return HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + body + bytes(-length & 3)


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in host order."""
    return _ATTRIBUTE.pack(8, kind) + _U32.pack(value)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Type → value. Of a repeated type the last one counts."""
    found: dict[int, bytes] = {}
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at, end = 0, len(data)
    while at + HEADER.size <= end:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _reply(flags: int, body: bytes) -> Reply:
    code: int = -struct.unpack_from("=i", body)[0]
    detail = ""
    if code and flags & NLM_F_ACK_TLVS:
        # With CAP_ACK the echoed request is its header alone; then NLMSGERR_ATTR_MSG (1).
        text = attributes(body, 4 + HEADER.size).get(1, b"")
        detail = text.rstrip(b"\0").decode(errors="replace")
    return Reply(code, detail)


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


def route_to(pipe: Pipe, destination: Address, udp_port: int = 0) -> tuple[int, int | None] | None:
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


def dump_routes(pipe: Pipe, family: int, *, table: int = 0, protocol: int = 0) -> list[bytes]:
    """Bodies of the routes of one table or of one protocol, filtered by the kernel (strict checking)."""
    body = RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + (number(RTA_TABLE, table) if table else b"")
    return [content for kind, content in pipe.dump(RTM_GETROUTE, body) if kind == RTM_NEWROUTE]


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


def dump_rules(pipe: Pipe, family: int) -> list[bytes]:
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return [content for kind, content in pipe.dump(RTM_GETRULE, body) if kind == RTM_NEWRULE]
