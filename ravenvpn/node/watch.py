"""The kernel's notifications: addresses that come and go, and what others do to things of ours.

Two plain netlink sockets whose descriptors any event loop can watch. pyroute2's asynchronous sockets want asyncio's
own loop (uvloop refuses the family), a thread would need a hand-over; here one `recv` a wake-up and a few bytes of
each message are enough to know whether it concerns us. What exactly changed is not read from a notification: whoever
is told looks (`observe`), since notifications can be lost and IPv4 routes that go with a device are never announced.

A filter in the kernel keeps away what a host has much of and does not concern us: our own 40,000 routes as we put
them, a routing daemon's in tables of its own, neighbours that come and go on other devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ravenvpn.mesh.hoststate import (
    NFT_TABLE,
    PROTOCOL,
    TABLE_LOCAL,
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    Address,
)
from ravenvpn.node.errors import host_error
from ravenvpn.node.neighbours import RTM_DELNEIGH, RTM_NEWNEIGH
from ravenvpn.node.netlink import HEADER, NETLINK_NETFILTER, NETLINK_ROUTE, SO_RCVBUFFORCE, attributes
from ravenvpn.node.observe import ALL, HostPart
from ravenvpn.node.rtnetlink import RTM_DELROUTE, RTM_DELRULE, RTM_NEWROUTE, RTM_NEWRULE, RTMSG, route_owner

# Bits of sockaddr_nl.nl_groups: 1 << (RTNLGRP_* - 1), linux/rtnetlink.h.
_LINK, _NEIGHBOUR, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
_IPV6_ADDRESS, _IPV6_ROUTE, _IPV6_RULE = 1 << 8, 1 << 10, 1 << 18
_GROUPS = _LINK | _NEIGHBOUR | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV4_RULE | _IPV6_ADDRESS | _IPV6_ROUTE | _IPV6_RULE
_NFT_GROUPS = 1 << 6  # NFNLGRP_NFTABLES = 7

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_FRA_PROTOCOL = 21
_NFT_NEWGEN = 0x0A0F  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN: the end of a transaction, and who made it
_GEN_PROCESS_ID, _GEN_PROCESS_NAME = 2, 3
_TABLE_NAME = NFT_TABLE.encode() + b"\0"
_OURS = {TUNNEL_DEVICE, VXLAN_DEVICE}
_SCOPE_LINK, _SCOPE_HOST = 253, 254
_BATCH = 64  # receives for one wake-up, so that a storm does not starve the loop


class AddressChange(NamedTuple):
    """An address of this host appeared or went; not a link-local one, and none of our own devices."""

    address: Address
    present: bool


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something of ours may have been changed, and not by us.

    `by` names the program where the kernel says so, `gone` one of our devices that was deleted. `routes_lost`: routes
    may have gone with it, which the kernel does not tell of those of IPv4.
    """

    part: HostPart
    what: str
    by: str = ""
    gone: str = ""
    routes_lost: bool = False


Change = AddressChange | Disturbance


class _Link(NamedTuple):
    """What we set of a device."""

    ifindex: int
    up: bool
    mtu: bytes | None
    mac: bytes | None


class Watch:
    """Reads notifications while started.

    Our own changes are told apart by `own_port`, the netlink port of those that go by `pipe`, and by
    `own_processes`, ids of the processes that wrote to nf_tables for us. In a process namespace of our own the kernel
    tells other ids, and of links, addresses and forwarding entries it does not tell the port: that costs a look at
    a few things in vain.
    """

    def __init__(self, own_port: int, own_processes: Container[int]) -> None:
        self._own_port, self._own_processes = own_port, own_processes
        self._sockets: list[socket.socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._touched = False  # the nft transaction being read concerns our table
        self._links: dict[str, _Link] = {}
        self._on_changes: Callable[[list[Change]], None] = lambda _: None

    def start(self, loop: asyncio.AbstractEventLoop, on_changes: Callable[[list[Change]], None]) -> None:
        """Call `on_changes` on `loop` with what was told, in order, repetitions left out."""
        self._loop, self._on_changes = loop, on_changes
        for protocol, groups, read in (
            (NETLINK_ROUTE, _GROUPS, self._read_route),
            (NETLINK_NETFILTER, _NFT_GROUPS, self._read_nft),
        ):
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            try:
                sock = socket.socket(socket.AF_NETLINK, kind, protocol)
                self._sockets.append(sock)
                sock.bind((0, groups))
            except OSError as error:
                self.stop()
                raise host_error("netlink notifications", error.errno or 0) from error
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            if protocol == NETLINK_ROUTE:
                self._links.clear()
                attach(sock, worth_a_look(self._own_port, _index(VXLAN_DEVICE)))
            loop.add_reader(sock.fileno(), self._readable, sock, read)

    def stop(self) -> None:
        for sock in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _readable(self, sock: socket.socket, read: Callable[[bytes], Iterator[Change]]) -> None:
        changes: dict[Change, None] = {}
        for _ in range(_BATCH):
            try:
                data = sock.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # More was told than we could take in: anything may have changed.
                changes.update(dict.fromkeys(Disturbance(part, "notifications were lost") for part in sorted(ALL)))
                continue
            changes.update(dict.fromkeys(read(data)))
        if changes:
            self._on_changes(list(changes))

    def _read_route(self, data: bytes) -> Iterator[Change]:
        for kind, port, body in _messages(data):
            change: Change | None = None
            if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                change = self._link(kind, body)
            elif port == self._own_port:
                continue
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                change = _route(kind, body)
            elif kind in (RTM_NEWRULE, RTM_DELRULE):
                change = _rule(kind, body)
            elif kind in (_RTM_NEWADDR, _RTM_DELADDR):
                change = _address(kind, body)
            elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                change = self._neighbour(kind, body)
            if change is not None:
                yield change

    def _link(self, kind: int, body: bytes) -> Change | None:
        """The kernel tells of a device for many reasons; it matters when something that we set is different."""
        if len(body) < 16:
            return None
        found = attributes(body, 16)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        if name not in _OURS:
            return None
        index, flags = struct.unpack_from("=4xiI", body)  # ifinfomsg
        before = self._links.get(name)
        now = _Link(index, bool(flags & _IFF_UP), found.get(_IFLA_MTU), found.get(_IFLA_ADDRESS))
        if kind == _RTM_DELLINK:
            self._links.pop(name, None)
        else:
            self._links[name] = now
        if name == VXLAN_DEVICE and (before is None or before.ifindex != index or kind == _RTM_DELLINK):
            self._follow_neighbours(0 if kind == _RTM_DELLINK else index)
        if kind == _RTM_DELLINK:
            return Disturbance(HostPart.DEVICES, f"device {name} deleted", gone=name, routes_lost=True)
        if before == now:
            return None
        went_down = before is not None and before.up and not now.up
        return Disturbance(HostPart.DEVICES, f"device {name} changed", routes_lost=went_down)

    def _follow_neighbours(self, index: int) -> None:
        for sock in self._sockets[:1]:
            attach(sock, worth_a_look(self._own_port, index))

    def _neighbour(self, kind: int, body: bytes) -> Change | None:
        link = self._links.get(VXLAN_DEVICE)
        index = struct.unpack_from("=4xi", body)[0] if len(body) >= 12 else 0
        if index != (link.ifindex if link is not None else _index(VXLAN_DEVICE)):
            return None
        told = "added" if kind == RTM_NEWNEIGH else "deleted"
        return Disturbance(HostPart.DEVICES, f"neighbour or forwarding entry of {VXLAN_DEVICE} {told}")

    def _read_nft(self, data: bytes) -> Iterator[Change]:
        if not self._touched:
            # kube-proxy may rewrite thousands of rules a minute: a search is all they get.
            self._touched = _TABLE_NAME in data
            if not self._touched:
                return
        for kind, _, body in _messages(data):
            if kind == _NFT_NEWGEN:
                self._touched = False
                found = attributes(body, 4)
                name = found.get(_GEN_PROCESS_NAME, b"").rstrip(b"\0").decode(errors="replace")
                process = int.from_bytes(found.get(_GEN_PROCESS_ID, b""), "big")
                if process in self._own_processes:
                    continue
                yield Disturbance(
                    HostPart.FILTER, f"nft table {NFT_TABLE}", f"{name} (process {process})" if name else ""
                )


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, port of the requester, body) of each message."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, _, port = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield kind, port, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _route(kind: int, body: bytes) -> Change | None:
    if len(body) < RTMSG.size:
        return None
    table, protocol = route_owner(body)
    if table not in (TABLE_REMOTE, TABLE_LOCAL) and protocol != PROTOCOL:
        return None
    return Disturbance(HostPart.ROUTES, f"route in table {table} {'added' if kind == RTM_NEWROUTE else 'deleted'}")


def _rule(kind: int, body: bytes) -> Change | None:
    if len(body) < RTMSG.size or attributes(body, RTMSG.size).get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    return Disturbance(HostPart.RULES, f"rule {'added' if kind == RTM_NEWRULE else 'deleted'}")


def _address(kind: int, body: bytes) -> Change | None:
    if len(body) < 8:
        return None
    _, _, _, scope, index = struct.unpack_from("=BBBBI", body)  # ifaddrmsg
    found = attributes(body, 8)
    raw = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if len(raw) not in (4, 16) or scope == _SCOPE_HOST:
        return None
    address: IPv4Address | IPv6Address = ip_address(raw)
    if _device(index) in _OURS:
        if address.is_link_local:
            return None
        gone = kind == _RTM_DELADDR
        return Disturbance(HostPart.DEVICES, f"address {address} {'deleted' if gone else 'added'}", routes_lost=gone)
    if scope == _SCOPE_LINK:
        return None
    return AddressChange(address, kind == _RTM_NEWADDR)


def _device(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone with its addresses
        return ""


def _index(device: str) -> int:
    """0 if there is no such device."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


# --- The filter in the kernel ----------------------------------------------------------------------------------

# linux/bpf_common.h, linux/filter.h, asm-generic/socket.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS | BPF_W, _H, _B
_JUMP_EQUAL, _RETURN = 0x15, 0x06  # BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
_SO_ATTACH_FILTER = 26
_TYPE, _PORT, _BODY = 4, 12, HEADER.size  # offsets in a notification; the kernel sends them one by one
_RTM_TABLE, _RTM_PROTOCOL, _NDM_INDEX = _BODY + 4, _BODY + 5, _BODY + 4
_RT_TABLE_COMPAT = 252  # the table's number needs more than a byte, as ours do

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def worth_a_look(own_port: int, vxlan_index: int) -> list[Instruction]:
    """A classic BPF program over one notification: keep it, or drop it before it is queued.

    Dropped are routes of tables below 256 that do not carry our protocol, what we changed ourselves, and neighbours
    of any device but the VXLAN (`vxlan_index` 0: of all).
    """
    route, neighbour, owner, keep, drop = 8, 12, 14, 17, 16

    def when(at: int, value: int, then: int, otherwise: int = -1) -> Instruction:
        """Jumps are relative to the next instruction; without `otherwise` that is where it goes on."""
        return _JUMP_EQUAL, then - at - 1, 0 if otherwise < 0 else otherwise - at - 1, value

    # Loads take the bytes as big-endian, netlink is in host order: constants are turned around instead.
    return [
        (_LOAD_HALF, 0, 0, _TYPE),
        when(1, socket.htons(RTM_NEWROUTE), route),
        when(2, socket.htons(RTM_DELROUTE), route),
        when(3, socket.htons(RTM_NEWRULE), owner),
        when(4, socket.htons(RTM_DELRULE), owner),
        when(5, socket.htons(RTM_NEWNEIGH), neighbour),
        when(6, socket.htons(RTM_DELNEIGH), neighbour),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_LOAD_BYTE, 0, 0, _RTM_PROTOCOL),  # route
        when(9, PROTOCOL, owner),
        (_LOAD_BYTE, 0, 0, _RTM_TABLE),
        when(11, _RT_TABLE_COMPAT, owner, drop),
        (_LOAD_WORD, 0, 0, _NDM_INDEX),  # neighbour
        when(13, socket.htonl(vxlan_index) if vxlan_index else 0xFFFFFFFF, owner, drop),
        (_LOAD_WORD, 0, 0, _PORT),  # owner
        when(15, socket.htonl(own_port), drop, keep),
        (_RETURN, 0, 0, 0),  # drop
        (_RETURN, 0, 0, 0xFFFFFFFF),  # keep
    ]


def attach(sock: socket.socket, program: list[Instruction]) -> None:
    """Put a filter on a socket, in the place of the one it has. A kernel that refuses it leaves us more to read."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    with contextlib.suppress(OSError):
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )
