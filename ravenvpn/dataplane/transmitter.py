"""The outer UDP sockets: sealed messages leave in batches, and what the kernel refuses is sent another way.

A batch is up to 64 messages of one size to one peer, back to back in one buffer (the last may be shorter). It leaves
by one sendmsg with UDP_SEGMENT (udp(7), Linux ≥ 4.18). The errors, and what is done about them:

* EIO, EINVAL: the path has no checksum offload, or none for UDP GSO. The messages are sent one by one, and
  UDP_SEGMENT is given up.
* EMSGSIZE: a segment is larger than the route's MTU, and GSO does not fragment. The messages are sent one by one
  (single datagrams may be fragmented), and so are later ones of that size to this peer until its endpoint changes.
* EINVAL, EADDRNOTAVAIL, ENODEV, ENETUNREACH with a chosen source: that address is gone. It is cleared, and the batch
  is sent again without.
* EAGAIN: the send buffer is full. The batch waits in a short queue until the socket is writable. Meanwhile the TUN is
  not read, so that the kernel queues what can not leave.
* ENOBUFS: one more attempt.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ravenvpn.dataplane.contract import Drop
from ravenvpn.dataplane.events import CounterSet
from ravenvpn.dataplane.peers import Ancillary, DataPlanePeer, SockAddr

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104  # include/uapi/linux/udp.h; these and the following are not in the socket module
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_PROBE: Final = 3  # set DF and send even if the datagram exceeds the known path MTU; the same for IPv6
IPV6_MTU_DISCOVER: Final = 23
SO_RXQ_OVFL: Final = 40

AF41: Final = 0x88  # DS field of handshake messages, as the Linux kernel marks them (RFC 4594: interactive)

# errno of a send whose chosen source address or interface no longer exists.
SOURCE_GONE: Final = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENETUNREACH))
# errno of a batch whose messages may be accepted one by one.
NOT_SEGMENTABLE: Final = frozenset((errno.EIO, errno.EINVAL, errno.EMSGSIZE))
FULL: Final = errno.EAGAIN

# How often a socket that is never empty is drained before UDP_GRO is switched off all the same.
GRO_ATTEMPTS: Final = 16
MAX_WAITING: Final = 64  # batches that wait for a full socket; more are dropped
_SEGMENT_SIZE: Final = struct.Struct("=H")
_DS_FIELD: Final = struct.Struct("=i")


class Batch(NamedTuple):
    """Messages to one address that leave by one system call: `segment` bytes each, the last one maybe less."""

    data: memoryview | bytes
    segment: int
    messages: int
    peer: DataPlanePeer | None  # None for raw datagrams
    address: SockAddr
    family: int
    ancillary: Ancillary  # the control message of the source, or empty
    ds_field: int  # of the outer header, ECN in its two low bits
    outer_df: bool = False  # forbid fragmentation; single messages only


class BorrowedSocket(socket.socket):
    """A socket object on a descriptor of another owner. Nothing here closes the descriptor.

    Not even the garbage collector does, which finalizes the objects of a cycle in any order.
    """

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


class Transmitter:
    """Sends on the two outer sockets, whose descriptors belong to the caller and are never closed here.

    `on_full(fd)` is called when the socket `fd` is full: it arranges for `resume` when `fd` is writable, or returns
    False, and what would wait is dropped.
    """

    def __init__(self, counters: CounterSet, *, gso: bool, gro: bool) -> None:
        self.gso, self.gro = gso, gro  # in force
        self.on_full: Callable[[int], bool] = lambda fd: False
        self._counters = counters
        self._sockets: dict[int, socket.socket] = {}  # by address family
        self._waiting: deque[Batch] = deque()  # for a full socket, oldest first

    def set_sockets(self, v4: int | None, v6: int | None) -> None:
        """Send on these descriptors from now on. Batches that wait for the ones before are dropped."""
        for batch in self._waiting:
            self._counters.count_drop(Drop.SEND_FAILED, batch.messages)
        self._waiting.clear()
        for one in self._sockets.values():
            one.detach()
        self._sockets.clear()
        for family, descriptor in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
            if descriptor is not None:
                self._sockets[family] = BorrowedSocket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, descriptor)
                _request_ancillary(self._sockets[family], family, gro=self.gro)

    def set_gso(self, gso: bool) -> None:
        """Allow or forbid UDP_SEGMENT. Batches that wait are split, so that none uses it once forbidden."""
        self.gso = gso
        if not gso:
            self._waiting = deque(single for batch in self._waiting for single in split_batch(batch))

    def set_gro(self, gro: bool, drain: Callable[[socket.socket], None]) -> None:
        """Switch UDP_GRO of both sockets; `drain(socket)` reads everything a socket holds.

        Without UDP_GRO the kernel still delivers a datagram that it coalesced before, but without the segment size,
        so the datagrams in it are lost. The socket therefore has to be empty at the moment of switching off. One
        that received in between is switched back, drained and tried again.
        """
        if gro == self.gro:
            return
        self.gro = gro
        for one in self._sockets.values():
            for _ in range(1 if gro else GRO_ATTEMPTS):
                if not gro:
                    drain(one)
                _set_option(one, SOL_UDP, UDP_GRO, int(gro))
                if gro or not readable(one):
                    break
                _set_option(one, SOL_UDP, UDP_GRO, 1)
            else:
                _set_option(one, SOL_UDP, UDP_GRO, 0)

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """The sockets by address family."""
        return self._sockets

    @property
    def is_blocked(self) -> bool:
        """True while a batch waits for a full socket to become writable."""
        return bool(self._waiting)

    def send(self, batch: Batch) -> None:
        """Send a batch, or let it wait behind those that wait already. Never raises; losses are counted."""
        if self._waiting:
            self._enqueue(batch)
            return
        error = self._send_once(batch)
        if error:
            self._recover(batch, error)

    def resume(self) -> None:
        """Send what waits: the full socket is writable again."""
        waiting, self._waiting = self._waiting, deque()
        while waiting:
            self.send(waiting.popleft())
            if self._waiting:
                self._waiting.extend(waiting)
                return

    def _send_once(self, batch: Batch) -> int:
        """Send a batch by one sendmsg; return 0 or the errno."""
        one = self._sockets.get(batch.family)
        if one is None:
            return errno.EAFNOSUPPORT
        ancillary = batch.ancillary
        if batch.ds_field:
            level, kind = (
                (socket.IPPROTO_IP, socket.IP_TOS)
                if batch.family == socket.AF_INET
                else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
            )
            ancillary = [*ancillary, (level, kind, _DS_FIELD.pack(batch.ds_field))]
        if batch.messages > 1:
            ancillary = [*ancillary, (SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(batch.segment))]
        self._counters.udp_writes += 1
        try:
            if batch.outer_df:
                _send_unfragmented(one, batch, ancillary)
            else:
                one.sendmsg((batch.data,), ancillary, 0, batch.address)
        except OSError as error:
            return error.errno or errno.EIO
        self._counters.udp_tx_datagrams += batch.messages
        return 0

    def _recover(self, batch: Batch, error: int) -> None:
        """Send a refused batch another way, by the rules of the module docstring;

        count it as dropped if none works.
        """
        if error in SOURCE_GONE and batch.ancillary:
            if batch.peer is not None and batch.peer.ancillary == batch.ancillary:
                batch.peer.set_source(None)
            batch = batch._replace(ancillary=[])
            error = self._send_once(batch)
        if error == 0:
            return
        if error == FULL:
            self._enqueue(batch)
        elif batch.messages > 1 and error in NOT_SEGMENTABLE:
            self._fall_back(batch, error)
        elif error == errno.ENOBUFS and (error := self._send_once(batch)) == 0:
            return
        else:
            self._counters.count_drop(Drop.SEND_FAILED, batch.messages)

    def send_one_by_one(self, batch: Batch) -> None:
        """Send the messages of a batch one by one, without UDP_SEGMENT."""
        for single in split_batch(batch):
            self.send(single)

    def _fall_back(self, batch: Batch, error: int) -> None:
        """Send a refused batch one by one. Give UDP_SEGMENT up, for this size and peer or for good, if that works."""
        sent = self._counters.udp_tx_datagrams
        if error == errno.EMSGSIZE and batch.peer is not None:
            batch.peer.gso_limit = min(batch.peer.gso_limit, batch.segment)
        self.send_one_by_one(batch)
        # If the single messages were refused as well, GSO was not the reason.
        if error != errno.EMSGSIZE and self.gso and self._counters.udp_tx_datagrams > sent:
            self.gso = False
            self._counters.count_fallback("udp_gso")

    def _enqueue(self, batch: Batch) -> None:
        """Keep a copy of the batch until the socket is writable;

        drop it if the queue is full or nothing resumes it.
        """
        one = self._sockets.get(batch.family)
        if one is None or len(self._waiting) >= MAX_WAITING or not (self._waiting or self.on_full(one.fileno())):
            self._counters.count_drop(Drop.SEND_FAILED, batch.messages)
            return
        self._waiting.append(batch._replace(data=bytes(batch.data)))


def split_batch(batch: Batch) -> list[Batch]:
    """Return the messages of a batch as a batch each, sharing its data."""
    size = len(batch.data)
    return [
        batch._replace(data=batch.data[at : min(at + batch.segment, size)], messages=1)
        for at in range(0, size, batch.segment)
    ]


def _send_unfragmented(one: socket.socket, batch: Batch, ancillary: Ancillary) -> None:
    """Send with DF set. IPv4 has no control message for DF, so the socket option changes for the one call."""
    level, option = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        if batch.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    )
    before = one.getsockopt(level, option)
    one.setsockopt(level, option, IP_PMTUDISC_PROBE)
    try:
        one.sendmsg((batch.data,), ancillary, 0, batch.address)
    finally:
        one.setsockopt(level, option, before)


def _request_ancillary(one: socket.socket, family: int, *, gro: bool) -> None:
    """Have recvmsg return destination address, ECN and overflow count, and coalesced datagrams if `gro`.

    A datagram is valid without any of them, so a kernel that lacks one of the options is no error.
    """
    options = [(socket.SOL_SOCKET, SO_RXQ_OVFL, 1), (SOL_UDP, UDP_GRO, int(gro))]
    if family == socket.AF_INET:
        options += [(socket.IPPROTO_IP, 8, 1), (socket.IPPROTO_IP, socket.IP_RECVTOS, 1)]
    else:
        options += [(socket.IPPROTO_IPV6, option, 1) for option in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVTCLASS)]
    for level, option, value in options:
        _set_option(one, level, option, value)


def _set_option(one: socket.socket, level: int, option: int, value: int) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(level, option, value)


def readable(one: socket.socket) -> bool:
    """Return True if a datagram or an error waits to be read."""
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(0))
