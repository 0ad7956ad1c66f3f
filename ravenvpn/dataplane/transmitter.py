"""The outer UDP sockets: sealed messages go out in runs, whatever the kernel refuses is tried another way.

A run is up to 64 messages of one size to one peer, one after the other in one buffer (the last may be shorter): one
sendmsg with UDP_SEGMENT (udp(7), Linux ≥ 4.18). What can go wrong with that, and what is done:

* EIO, EINVAL: this path has no checksum offload, or none for UDP GSO. Sent one by one, and never tried again.
* EMSGSIZE: the route's MTU is smaller than a segment, and GSO does not fragment. One by one, which may fragment, and
  again for this peer until it moves.
* EINVAL, EADDRNOTAVAIL, ENODEV, ENETUNREACH with a chosen source: that address is gone. Forgotten, and tried without.
* EAGAIN: the send buffer is full. The run waits in a short queue until the socket is writable; meanwhile the TUN is
  not read, so that the kernel holds what can't leave.
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
from ravenvpn.dataplane.events import Tally
from ravenvpn.dataplane.peers import Ancillary, DataPlanePeer, SockAddr

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_PROBE: Final = 3  # set DF, and don't hold the datagram back because a path MTU is known
IPV6_MTU_DISCOVER: Final = 23
SO_RXQ_OVFL: Final = 40

AF41: Final = 0x88  # DS field of handshake messages (RFC 4594's interactive class), as the Linux kernel marks them

SOURCE_GONE: Final = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENETUNREACH))
NOT_SEGMENTABLE: Final = frozenset((errno.EIO, errno.EINVAL, errno.EMSGSIZE))
FULL: Final = errno.EAGAIN

# How often a socket that is never empty is drained before UDP_GRO is switched off all the same.
GRO_ATTEMPTS: Final = 16
MAX_WAITING: Final = 64  # runs that wait for a full socket
_SEGMENT_SIZE: Final = struct.Struct("=H")
_DS_FIELD: Final = struct.Struct("=i")


class Batch(NamedTuple):
    """Messages to one address: `segment` bytes each, the last maybe less. `peer` is None for raw datagrams."""

    data: memoryview | bytes
    segment: int
    messages: int
    peer: DataPlanePeer | None
    address: SockAddr
    family: int
    ancillary: Ancillary  # the source
    ds_field: int
    outer_df: bool = False


class Borrowed(socket.socket):
    """A socket object on a descriptor that stays its owner's: nothing closes it here, not even the collector, which
    finalizes the objects of a cycle in any order."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


class Transmitter:
    """The two descriptors, not ours: they are never closed here. `on_full(fd)` is asked to call `resume` when the
    socket of `fd` is writable; False from it means that nobody will, and what waits is dropped instead.
    """

    def __init__(self, tally: Tally, *, gso: bool, gro: bool) -> None:
        self.gso, self.gro = gso, gro
        self.on_full: Callable[[int], bool] = lambda fd: False
        self._tally = tally
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: deque[Batch] = deque()

    def use(self, v4: int | None, v6: int | None) -> None:
        """Take these descriptors, and give back the ones before; what waits for those is dropped."""
        for run in self._waiting:
            self._tally.drop(Drop.SEND_FAILED, run.messages)
        self._waiting.clear()
        for one in self._sockets.values():
            one.detach()
        self._sockets.clear()
        for family, descriptor in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
            if descriptor is not None:
                self._sockets[family] = Borrowed(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, descriptor)
                _ask_for_ancillary(self._sockets[family], family, gro=self.gro)

    def set_gso(self, gso: bool) -> None:
        """Allow or forbid UDP_SEGMENT. Batches that wait are split, so that none uses it once forbidden."""
        self.gso = gso
        if not gso:
            self._waiting = deque(single for run in self._waiting for single in singles(run))

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
                drain(one)
                _set_option(one, SOL_UDP, UDP_GRO, int(gro))
                if gro or not readable(one):
                    break
                _set_option(one, SOL_UDP, UDP_GRO, 1)
            else:
                _set_option(one, SOL_UDP, UDP_GRO, 0)

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """By address family."""
        return self._sockets

    @property
    def full(self) -> bool:
        """Whether something waits for a socket to become writable."""
        return bool(self._waiting)

    def send(self, run: Batch) -> None:
        if self._waiting:
            self._wait(run)
            return
        error = self._attempt(run)
        if error:
            self._recover(run, error)

    def resume(self) -> None:
        """A full socket is writable again."""
        waiting, self._waiting = self._waiting, deque()
        while waiting:
            self.send(waiting.popleft())
            if self._waiting:
                self._waiting.extend(waiting)
                return

    def _attempt(self, run: Batch) -> int:
        """One sendmsg: 0, or the errno."""
        one = self._sockets.get(run.family)
        if one is None:
            return errno.EAFNOSUPPORT
        ancillary = run.ancillary
        if run.ds_field:
            level, kind = (
                (socket.IPPROTO_IP, socket.IP_TOS)
                if run.family == socket.AF_INET
                else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
            )
            ancillary = [*ancillary, (level, kind, _DS_FIELD.pack(run.ds_field))]
        if run.messages > 1:
            ancillary = [*ancillary, (SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(run.segment))]
        self._tally.udp_writes += 1
        try:
            if run.outer_df:
                _send_unfragmented(one, run, ancillary)
            else:
                one.sendmsg((run.data,), ancillary, 0, run.address)
        except OSError as error:
            return error.errno or errno.EIO
        self._tally.udp_tx_datagrams += run.messages
        return 0

    def _recover(self, run: Batch, error: int) -> None:
        if error in SOURCE_GONE and run.ancillary:
            if run.peer is not None and run.peer.ancillary == run.ancillary:
                run.peer.set_source(None)
            run = run._replace(ancillary=[])
            error = self._attempt(run)
        if error == 0:
            return
        if error == FULL:
            self._wait(run)
        elif run.messages > 1 and error in NOT_SEGMENTABLE:
            self._fall_back(run, error)
        elif error == errno.ENOBUFS and (error := self._attempt(run)) == 0:
            return
        else:
            self._tally.drop(Drop.SEND_FAILED, run.messages)

    def send_singly(self, run: Batch) -> None:
        """Without UDP_SEGMENT: a call for each message."""
        for single in singles(run):
            self.send(single)

    def _fall_back(self, run: Batch, error: int) -> None:
        """Send a refused run one by one, and remember what was learned from it."""
        sent = self._tally.udp_tx_datagrams
        if error == errno.EMSGSIZE and run.peer is not None:
            run.peer.gso_limit = min(run.peer.gso_limit, run.segment)
        self.send_singly(run)
        # If the single ones were refused as well, it was not GSO's fault.
        if error != errno.EMSGSIZE and self.gso and self._tally.udp_tx_datagrams > sent:
            self.gso = False
            self._tally.gave_up("udp_gso")

    def _wait(self, run: Batch) -> None:
        one = self._sockets.get(run.family)
        if one is None or len(self._waiting) >= MAX_WAITING or not (self._waiting or self.on_full(one.fileno())):
            self._tally.drop(Drop.SEND_FAILED, run.messages)
            return
        self._waiting.append(run._replace(data=bytes(run.data)))


def singles(run: Batch) -> list[Batch]:
    """The same messages, a run each."""
    size = len(run.data)
    return [
        run._replace(data=run.data[at : min(at + run.segment, size)], messages=1)
        for at in range(0, size, run.segment)
    ]


def _send_unfragmented(one: socket.socket, run: Batch, ancillary: Ancillary) -> None:
    """With DF. IPv4 has no control message for that, so the socket's setting changes for one call."""
    level, option = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        if run.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    )
    before = one.getsockopt(level, option)
    one.setsockopt(level, option, IP_PMTUDISC_PROBE)
    try:
        one.sendmsg((run.data,), ancillary, 0, run.address)
    finally:
        one.setsockopt(level, option, before)


def _ask_for_ancillary(one: socket.socket, family: int, *, gro: bool) -> None:
    """Receive with destination address, ECN and overflow count, coalesced if wanted. Without any of these a
    datagram is still a datagram, so a kernel that lacks one is no error."""
    wanted = [(socket.SOL_SOCKET, SO_RXQ_OVFL, 1), (SOL_UDP, UDP_GRO, int(gro))]
    if family == socket.AF_INET:
        wanted += [(socket.IPPROTO_IP, 8, 1), (socket.IPPROTO_IP, socket.IP_RECVTOS, 1)]
    else:
        wanted += [(socket.IPPROTO_IPV6, option, 1) for option in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVTCLASS)]
    for level, option, value in wanted:
        _set_option(one, level, option, value)


def _set_option(one: socket.socket, level: int, option: int, value: int) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(level, option, value)


def readable(one: socket.socket) -> bool:
    """Return True if a datagram or an error waits to be read."""
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(0))
