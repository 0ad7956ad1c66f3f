"""Watch the kernel's notifications: addresses that come and go, and changes of our objects by other programs.

Two plain netlink sockets (rtnetlink, nf_tables) whose descriptors any event loop can watch. pyroute2's asynchronous
sockets need asyncio's own loop (uvloop refuses the family), and a thread would need a hand-over. One `recv` a wake-up
and a few bytes of each message show which part of the host it concerns.

A notification is a hint, not the truth: notifications can be lost, and the kernel announces no IPv4 routes that go
with a device. So the receiver observes the part instead of applying the message.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from ravenvpn.node.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NLMSGHDR, SO_RCVBUFFORCE, parse_attributes
from ravenvpn.node.notification_filter import attach_filter, notification_filter
from ravenvpn.node.parts import ALL_PARTS, HostPart
from ravenvpn.node.rtnetlink import (
    FRA_PROTOCOL,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTMSG,
    route_owner,
)

# Multicast groups as bits of sockaddr_nl.nl_groups: 1 << (RTNLGRP_* - 1), linux/rtnetlink.h.
_LINK, _NEIGHBOUR, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
_IPV6_ADDRESS, _IPV6_ROUTE, _IPV6_RULE = 1 << 8, 1 << 10, 1 << 18
_GROUPS = _LINK | _NEIGHBOUR | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV4_RULE | _IPV6_ADDRESS | _IPV6_ROUTE | _IPV6_RULE
_NFT_GROUPS = 1 << 6  # NFNLGRP_NFTABLES = 7

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
_IFINFOMSG = struct.Struct("=4xiIxxxx")  # ifindex, flags
_IFADDRMSG = struct.Struct("=3xBI")  # scope, ifindex
_NDM_INDEX = struct.Struct("=4xixxxx")  # ndmsg, of which only the ifindex is read
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN: ends the notifications of a transaction and names its process.
_NFT_NEWGEN = 0x0A0F
_GEN_PROCESS_ID, _GEN_PROCESS_NAME = 2, 3  # NFTA_GEN_PROC_*
_NFGENMSG_BYTES = 4
_TABLE_NAME = NFT_TABLE.encode() + b"\0"  # as attributes carry it
_OUR_DEVICES = {TUNNEL_DEVICE, VXLAN_DEVICE}
_SCOPE_LINK, _SCOPE_HOST = 253, 254  # RT_SCOPE_*
_RECEIVES_PER_WAKEUP = 64  # so that a storm of notifications does not starve the event loop
_RECEIVE_BYTES = 1 << 18
_BUFFER_BYTES = 8 << 20  # of each socket's receive buffer: a burst must fit, or everything has to be observed


class AddressChange(NamedTuple):
    """An address of this host was added or removed; not a link-local one, and none of our own devices."""

    address: Address
    present: bool  # False: removed


@dataclass(frozen=True, slots=True)
class ForeignChange:
    """Another program may have changed something of ours."""

    part: HostPart
    description: str  # of the notification, for the log
    program: str = ""  # that made the change, where the kernel names it: for the nft table only
    deleted_device: str = ""  # the device of ours that was deleted
    # Routes may have gone as well. The kernel does not announce IPv4 routes that go with a device or address.
    routes_lost: bool = False


Change = AddressChange | ForeignChange


class _Link(NamedTuple):
    """The settings of a device that a plan sets; other notifications of the device are ignored."""

    ifindex: int  # another one: the device was recreated
    up: bool
    mtu: bytes | None  # attribute values, compared but not interpreted
    mac: bytes | None


class Watch:
    """Report changes from `start` to `stop`. Owned by one event loop.

    Our own changes are recognised by `own_port`, the netlink port of `Host`, and by `own_processes`, the ids of
    processes that wrote to nf_tables for us. Two cases are not recognised and cost an observation in vain: changes of
    devices, addresses and FDB entries, whose notifications carry no port; and nft in a process namespace of our own,
    where the kernel reports other ids.
    """

    def __init__(self, own_port: int, own_processes: Container[int]) -> None:
        self._own_port, self._own_processes = own_port, own_processes
        self._sockets: list[socket.socket] = []  # rtnetlink first
        self._loop: asyncio.AbstractEventLoop | None = None
        self._table_seen = False  # the nft transaction whose notifications are being read concerns our table
        self._links: dict[str, _Link] = {}  # our devices, as last announced
        self._on_changes: Callable[[list[Change]], None] = lambda _: None

    def start(self, loop: asyncio.AbstractEventLoop, on_changes: Callable[[list[Change]], None]) -> None:
        """Begin to call `on_changes` on `loop` with changes in order, without repetitions. Raises HostError."""
        self._loop, self._on_changes = loop, on_changes
        # Bound before anything is read: changes after this call are queued, so none is missed.
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
            with contextlib.suppress(PermissionError):  # the default buffer works too, but overflows sooner
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
            if protocol == NETLINK_ROUTE:
                self._links.clear()
                attach_filter(sock, notification_filter(self._own_port, _device_index(VXLAN_DEVICE)))
            loop.add_reader(sock.fileno(), self._readable, sock, read)

    def stop(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _readable(self, sock: socket.socket, read: Callable[[bytes], Iterator[Change]]) -> None:
        """Read what is queued, up to a bound, and report it at once."""
        changes: dict[Change, None] = {}  # an ordered set
        for _ in range(_RECEIVES_PER_WAKEUP):
            try:
                data = sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The receive buffer overflowed: any part may have changed.
                lost = (ForeignChange(part, "notifications were lost") for part in sorted(ALL_PARTS))
                changes.update(dict.fromkeys(lost))
                continue
            changes.update(dict.fromkeys(read(data)))
        if changes:
            self._on_changes(list(changes))

    def _read_route(self, data: bytes) -> Iterator[Change]:
        """Yield the changes that an rtnetlink datagram announces."""
        for kind, port, body in _messages(data):
            change: Change | None = None
            if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                change = self._link_change(kind, body)
            elif port == self._own_port:
                continue
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                change = _route_change(kind, body)
            elif kind in (RTM_NEWRULE, RTM_DELRULE):
                change = _rule_change(kind, body)
            elif kind in (_RTM_NEWADDR, _RTM_DELADDR):
                change = _address_change(kind, body)
            elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                change = self._neighbour_change(kind, body)
            if change is not None:
                yield change

    def _link_change(self, kind: int, body: bytes) -> Change | None:
        """Return a change if a setting of ours differs; the kernel announces a device for many other reasons."""
        if len(body) < _IFINFOMSG.size:
            return None
        found = parse_attributes(body, _IFINFOMSG.size)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        if name not in _OUR_DEVICES:
            return None
        index, flags = _IFINFOMSG.unpack_from(body)
        before = self._links.get(name)
        now = _Link(index, bool(flags & _IFF_UP), found.get(_IFLA_MTU), found.get(_IFLA_ADDRESS))
        if kind == _RTM_DELLINK:
            self._links.pop(name, None)
        else:
            self._links[name] = now
        if name == VXLAN_DEVICE and (before is None or before.ifindex != index or kind == _RTM_DELLINK):
            self._filter_neighbours(0 if kind == _RTM_DELLINK else index)
        if kind == _RTM_DELLINK:
            return ForeignChange(HostPart.DEVICES, f"device {name} deleted", deleted_device=name, routes_lost=True)
        if before == now:
            return None
        went_down = before is not None and before.up and not now.up
        return ForeignChange(HostPart.DEVICES, f"device {name} changed", routes_lost=went_down)

    def _filter_neighbours(self, index: int) -> None:
        """Have the kernel keep the neighbours of the VXLAN with this ifindex (0: none)."""
        for sock in self._sockets[:1]:
            attach_filter(sock, notification_filter(self._own_port, index))

    def _neighbour_change(self, kind: int, body: bytes) -> Change | None:
        """Return a change for a neighbour or FDB entry of the VXLAN.

        The socket filter drops those of other devices only once it has the ifindex of a new VXLAN."""
        link = self._links.get(VXLAN_DEVICE)
        index = _NDM_INDEX.unpack_from(body)[0] if len(body) >= _NDM_INDEX.size else 0
        if index != (link.ifindex if link is not None else _device_index(VXLAN_DEVICE)):
            return None
        verb = "added" if kind == RTM_NEWNEIGH else "deleted"
        return ForeignChange(HostPart.DEVICES, f"neighbour or forwarding entry of {VXLAN_DEVICE} {verb}")

    def _read_nft(self, data: bytes) -> Iterator[Change]:
        """Yield a change for each transaction that touches our table and was not made by a process of ours.

        A transaction may span datagrams; the one that ends it names the process.
        """
        if not self._table_seen:
            # kube-proxy may rewrite thousands of rules a minute. A search in the bytes is all that they cost.
            self._table_seen = _TABLE_NAME in data
            if not self._table_seen:
                return
        for kind, _, body in _messages(data):
            if kind == _NFT_NEWGEN:
                self._table_seen = False
                found = parse_attributes(body, _NFGENMSG_BYTES)
                name = found.get(_GEN_PROCESS_NAME, b"").rstrip(b"\0").decode(errors="replace")
                process = int.from_bytes(found.get(_GEN_PROCESS_ID, b""), "big")
                if process in self._own_processes:
                    continue
                program = f"{name} (process {process})" if name else ""
                yield ForeignChange(HostPart.FILTER, f"nft table {NFT_TABLE}", program)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, netlink port of the requester, body) of each message."""
    at = 0
    while at + NLMSGHDR.size <= len(data):
        length, kind, _, _, port = NLMSGHDR.unpack_from(data, at)
        if length < NLMSGHDR.size:
            return
        yield kind, port, data[at + NLMSGHDR.size : at + length]
        at += (length + 3) & ~3


def _route_change(kind: int, body: bytes) -> Change | None:
    """Return a change for a route in one of our tables or with our protocol."""
    if len(body) < RTMSG.size:
        return None
    table, protocol = route_owner(body)
    if table not in (TABLE_REMOTE, TABLE_LOCAL) and protocol != PROTOCOL:
        return None
    verb = "added" if kind == RTM_NEWROUTE else "deleted"
    return ForeignChange(HostPart.ROUTES, f"route in table {table} {verb}")


def _rule_change(kind: int, body: bytes) -> Change | None:
    """Return a change for a rule with our protocol."""
    if len(body) < RTMSG.size or parse_attributes(body, RTMSG.size).get(FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    return ForeignChange(HostPart.RULES, f"rule {'added' if kind == RTM_NEWRULE else 'deleted'}")


def _address_change(kind: int, body: bytes) -> Change | None:
    """Return a ForeignChange for an address of our devices, an AddressChange for another that planning may use."""
    if len(body) < _IFADDRMSG.size:
        return None
    scope, index = _IFADDRMSG.unpack_from(body)
    found = parse_attributes(body, _IFADDRMSG.size)
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))  # of a point-to-point device LOCAL is ours
    if len(packed) not in (4, 16) or scope == _SCOPE_HOST:
        return None
    address: IPv4Address | IPv6Address = ip_address(packed)
    if _device_name(index) in _OUR_DEVICES:
        if address.is_link_local:
            return None
        deleted = kind == _RTM_DELADDR
        description = f"address {address} {'deleted' if deleted else 'added'}"
        return ForeignChange(HostPart.DEVICES, description, routes_lost=deleted)
    if scope == _SCOPE_LINK:
        return None
    return AddressChange(address, kind == _RTM_NEWADDR)


def _device_name(index: int) -> str:
    """Return the name of a device, "" if it is gone (addresses go after their device)."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _device_index(name: str) -> int:
    """Return the ifindex of a device, 0 if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
