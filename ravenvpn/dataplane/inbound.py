"""From the outer world to the TUN: receive, open, check, join packets of a flow, write."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final

from ravenvpn.crypto.aead import InvalidTag
from ravenvpn.dataplane import ecn
from ravenvpn.dataplane.coalesce import Coalescer
from ravenvpn.dataplane.contract import Datagram, Drop, EndpointMoved, HandshakeNeeded, InnerPacket
from ravenvpn.dataplane.cryptokey_routing import Acceptance
from ravenvpn.dataplane.events import EventQueue, Tally
from ravenvpn.dataplane.keypairs import HEADER, HEADER_BYTES, OVERHEAD, TRANSPORT, Keypair, KeypairTable
from ravenvpn.dataplane.peers import IP_PKTINFO, DataPlanePeer, SockAddr, endpoint_of, source_of
from ravenvpn.dataplane.segmentation import UDP
from ravenvpn.dataplane.transmitter import SO_RXQ_OVFL, SOL_UDP, UDP_GRO, readable
from ravenvpn.dataplane.tun_writer import TunWriter
from ravenvpn.offloads import Offloads

DATAGRAMS_PER_WAKE: Final = 16  # receives, each up to 64 KiB with UDP GRO; then the TUN side gets its turn
RECEIVE_BYTES: Final = 1 << 16
ARENA_BYTES: Final = 4 * RECEIVE_BYTES  # opened packets that wait to be joined
# Receives of up to 64 KiB that empty a socket buffer of the tunnel's size (7 MiB) twice over.
MAX_DRAIN_PUMPS: Final = (16 << 20) // (DATAGRAMS_PER_WAKE * RECEIVE_BYTES)
SOURCE_CACHE: Final = 4096

_ANCILLARY_BYTES: Final = (
    socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4) * 3  # pktinfo of either family, ToS, GRO size, overflow
)
MSG_TRUNC: Final = int(socket.MSG_TRUNC)  # an enum's & is slow
_INT: Final = struct.Struct("=i")
_COUNT: Final = struct.Struct("=I")
_HALFWORD: Final = struct.Struct("!H")


class Inbound:
    """Owns the buffers of this direction. `on_promoted(peer)` sends what waited for key confirmation."""

    def __init__(
        self,
        *,
        tun: int | None,
        sessions: KeypairTable,
        acceptance: Acceptance[DataPlanePeer],
        events: EventQueue,
        tally: Tally,
        offloads: Offloads,
    ) -> None:
        self.on_promoted: Callable[[DataPlanePeer, float], bool] = lambda peer, now: False
        self.own_address = b""
        self.probe_port = b""
        self._outlet = None if tun is None else TunWriter(tun, tally)
        self._sessions = sessions
        self._acceptance = acceptance
        self._events = events
        self._tally = tally
        self._datagram = bytearray(RECEIVE_BYTES)
        self._datagram_view = memoryview(self._datagram)
        self._arena = bytearray(ARENA_BYTES)
        self._arena_view = memoryview(self._arena)
        self.coalescer = Coalescer(self._arena, self._arena_view, tcp=offloads.tun_gro, udp=offloads.tun_gro_udp)
        self._cache: dict[tuple[DataPlanePeer, bytes], bool] = {}
        self._used = 0  # of the arena
        # The kernel's count of the sockets in use, by family; None while another socket is read.
        self._overflows: dict[int, int] | None = {}

    def acceptance_changed(self) -> None:
        self._cache.clear()

    def sockets_changed(self) -> None:
        self._overflows = {}

    def pump_replaced(self, one: socket.socket, now: float) -> None:
        """Pump a socket that is no longer in use. Its overflow count is not that of the socket in use: left out."""
        overflows, self._overflows = self._overflows, None
        try:
            self.pump(one, now)
        finally:
            self._overflows = overflows

    def pump(self, one: socket.socket, now: float) -> None:
        """Move up to a budget of datagrams from this socket."""
        family = one.family
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                size, ancillary, flags, address = one.recvmsg_into([self._datagram_view], _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error of an earlier datagram; reading it has cleared it.
                continue
            self._tally.udp_reads += 1
            segment, codepoint, pktinfo = size, 0, b""
            for level, kind, data in ancillary:
                if level == SOL_UDP:
                    if kind == UDP_GRO:
                        segment = _INT.unpack(data)[0]
                elif level == socket.SOL_SOCKET:
                    if kind == SO_RXQ_OVFL:
                        self._count_overflow(family, _COUNT.unpack(data)[0])
                elif kind == socket.IP_TOS and level == socket.IPPROTO_IP:
                    codepoint = data[0] & 3
                elif kind == socket.IPV6_TCLASS and level == socket.IPPROTO_IPV6:
                    codepoint = _INT.unpack(data)[0] & 3
                elif kind in (IP_PKTINFO, socket.IPV6_PKTINFO):
                    pktinfo = data
            if flags & MSG_TRUNC or size == 0 or segment <= 0:
                self._tally.udp_rx_datagrams += 1
                self._tally.drops[Drop.MALFORMED] += 1
                continue
            if address[1] == 0:  # nothing can be sent back there
                self._tally.udp_rx_datagrams += (messages := -(-size // segment))
                self._tally.drops[Drop.MALFORMED] += messages
                continue
            if ARENA_BYTES - self._used < size:
                self.flush()
            self._open(size, segment, codepoint, address, family, pktinfo, now)
        self.flush()

    def drain(self, one: socket.socket, now: float) -> None:
        """Pump this socket until nothing is left to read, at most MAX_DRAIN_PUMPS times."""
        for _ in range(MAX_DRAIN_PUMPS):
            if not readable(one):
                return
            self.pump(one, now)

    def _open(  # noqa: PLR0917
        self, size: int, segment: int, codepoint: int, address: SockAddr, family: int, pktinfo: bytes, now: float
    ) -> None:
        """Messages of one receive, all from one address: `segment` bytes each, the last maybe less."""
        view, arena_view, tally = self._datagram_view, self._arena_view, self._tally
        drops, by_index, unpack = tally.drops, self._sessions.by_index, HEADER.unpack_from
        datagram, extend = self._datagram, self.coalescer.extend
        session: Keypair | None = None
        index = -1
        proven: Keypair | None = None  # the session of the last authentic message, and what it has sent in this run
        messages = octets = payload = 0
        for at in range(0, size, segment):
            stop = at + segment
            if stop > size:  # noqa: PLR1730  (a call of min costs)
                stop = size
            length = stop - at - OVERHEAD
            if length < 0 or datagram[at] != TRANSPORT:
                self._not_transport(bytes(view[at:stop]), address, family, pktinfo)
                continue
            kind, receiver, counter = unpack(datagram, at)
            if kind != TRANSPORT:
                drops[Drop.MALFORMED] += 1
                continue
            if receiver != index:
                index = receiver
                session = by_index.get(index)
            if session is None:
                drops[Drop.UNKNOWN_INDEX] += 1
                continue
            if now >= session.dies or counter >= session.reject_after:
                drops[Drop.EXPIRED_KEYPAIR] += 1
                continue
            window = session.window
            if counter <= window.greatest and not window.fresh(counter):
                drops[Drop.REPLAYED] += 1
                continue
            start = self._used
            end = start + length
            try:
                session.decrypt_into(
                    session.nonce(counter), view[at + HEADER_BYTES : stop], None, arena_view[start:end]
                )
            except InvalidTag:
                drops[Drop.BAD_TAG] += 1
                continue
            window.mark(counter)
            if session is not proven:
                if proven is not None:
                    self._account(proven.peer, messages, octets, payload, now)
                    messages = octets = payload = 0
                proven = session
                self._authentic(session, address, family, pktinfo, now)
            messages += 1
            octets += stop - at
            if length:
                payload += length
                if not codepoint and extend(start, end, session.peer):
                    self._used = end
                else:
                    self._deliver(session.peer, start, length, codepoint)
        tally.udp_rx_datagrams += -(-size // segment)
        if proven is not None:
            self._account(proven.peer, messages, octets, payload, now)

    def _authentic(self, session: Keypair, address: SockAddr, family: int, pktinfo: bytes, now: float) -> None:
        """The first message of a run that is shown to be the peer's, under this session."""
        peer = session.peer
        if address != peer.address or pktinfo != peer.pktinfo:
            self._came_from(peer, address, family, pktinfo)
        if session is peer.next:
            self._sessions.promote(session)
            self.on_promoted(peer, now)
        if now >= session.renews_late and not session.renewal_asked:
            session.renewal_asked = True
            if peer.ask(now):
                self._events.post(HandshakeNeeded(peer.id))

    def _account(self, peer: DataPlanePeer, messages: int, octets: int, payload: int, now: float) -> None:
        """What arrived under one session in one run; `payload` is zero if all of it were keepalives."""
        peer.rx_packets += messages
        peer.rx_bytes += octets
        if peer.received(now, data=payload > 0):
            self._events.moved(peer)

    def _not_transport(self, data: bytes, address: SockAddr, family: int, pktinfo: bytes) -> None:
        if data[0] == TRANSPORT:  # too short
            self._tally.drops[Drop.MALFORMED] += 1
            return
        self._events.post_bounded(Datagram(data, endpoint_of(address), source_of(pktinfo, family)))

    def _came_from(self, peer: DataPlanePeer, address: SockAddr, family: int, pktinfo: bytes) -> None:
        """An authenticated message came another way than our answers go (whitepaper §2.1)."""
        source = source_of(pktinfo, family)
        if address == peer.address:
            peer.set_source(source, pktinfo)
        elif peer.roaming:
            peer.move(address, family)
            peer.set_source(source, pktinfo)
            self._events.post(EndpointMoved(peer.id, endpoint_of(address), source))
        elif address != peer.reported_elsewhere:
            peer.reported_elsewhere = address
            self._events.post(EndpointMoved(peer.id, endpoint_of(address), source))

    def _deliver(self, peer: DataPlanePeer, start: int, length: int, codepoint: int) -> None:
        """Judge an opened message and hand its packet on. If it has to stay in the arena, `_used` moves behind it."""
        arena, drops = self._arena, self._tally.drops
        # Whatever the inner header says is only believed within the `length` bytes that were authenticated.
        version = arena[start] >> 4
        if version == 4 and length >= 20:
            (total,) = _HALFWORD.unpack_from(arena, start + 2)
            source = bytes(arena[start + 12 : start + 16])
            fits = 20 <= total <= length
        elif version == 6 and length >= 40:
            # Without a limit of 16 bits: a payload of 65,496 or more must not wrap around to something short.
            total = _HALFWORD.unpack_from(arena, start + 4)[0] + 40
            source = bytes(arena[start + 8 : start + 24])
            fits = total <= length
        else:
            fits = False
        if not fits:
            drops[Drop.MALFORMED_INNER] += 1
            return
        try:
            accepted = self._cache[peer, source]
        except KeyError:
            accepted = self._look_up(peer, source)
        if not accepted:
            drops[Drop.SOURCE_NOT_ACCEPTED] += 1
            return
        if codepoint and not ecn.decapsulate(arena, start, codepoint):
            drops[Drop.CONGESTION_UNMARKABLE] += 1
            return
        if (
            version == 6
            and arena[start + 24 : start + 40] == self.own_address
            and arena[start + 6] == UDP
            and arena[start + 42 : start + 44] == self.probe_port
            and total >= 48
        ):
            packet = bytes(arena[start : start + total])
            self._events.post_bounded(InnerPacket(peer.id, packet, codepoint == ecn.CE))
            return
        if self._outlet is None:
            drops[Drop.NO_TUN] += 1
            return
        self._used = start + length
        self.coalescer.add(start, total, peer)

    def _look_up(self, peer: DataPlanePeer, source: bytes) -> bool:
        accepted = peer in self._acceptance.lookup(source)
        if len(self._cache) >= SOURCE_CACHE:
            self._cache.clear()
        self._cache[peer, source] = accepted
        return accepted

    def flush(self) -> None:
        """Write what was collected; the arena is free again."""
        if self._outlet is not None:
            self._outlet.write(self.coalescer)
        self.coalescer.clear()
        self._used = 0

    def _count_overflow(self, family: int, total: int) -> None:
        """The kernel's count is of the socket's whole life and modulo 2³²."""
        if self._overflows is None:
            return
        self._tally.drops[Drop.SOCKET_OVERFLOW] += (total - self._overflows.get(family, 0)) & 0xFFFFFFFF
        self._overflows[family] = total
