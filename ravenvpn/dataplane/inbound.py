"""Inbound packets, from the sockets to the TUN: receive, open, check, coalesce packets of one flow, write.

Messages are opened into an arena, where packets stay until the end of the pump, so that consecutive packets of a flow
can be written to the TUN as one superpacket without copying.
"""

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
from ravenvpn.dataplane.events import CounterSet, EventQueue
from ravenvpn.dataplane.keypairs import HEADER, HEADER_BYTES, OVERHEAD, TRANSPORT, Keypair, KeypairTable
from ravenvpn.dataplane.peers import IP_PKTINFO, DataPlanePeer, SockAddr, endpoint_of, source_of
from ravenvpn.dataplane.segmentation import UDP
from ravenvpn.dataplane.transmitter import SO_RXQ_OVFL, SOL_UDP, UDP_GRO, readable
from ravenvpn.dataplane.tun_writer import TunWriter
from ravenvpn.offloads import Offloads

# Receives of up to 64 KiB (UDP GRO) per call of `pump`, so that the outbound direction is not starved.
DATAGRAMS_PER_WAKE: Final = 16
RECEIVE_BYTES: Final = 1 << 16
ARENA_BYTES: Final = 4 * RECEIVE_BYTES  # opened packets that wait to be coalesced
# Receives of up to 64 KiB that empty a socket buffer of the tunnel's size (7 MiB) twice over.
MAX_DRAIN_PUMPS: Final = (16 << 20) // (DATAGRAMS_PER_WAKE * RECEIVE_BYTES)
SOURCE_CACHE: Final = 4096  # (peer, inner source) pairs; the cache is emptied when it is full

_ANCILLARY_BYTES: Final = (
    socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4) * 3  # pktinfo of either family, ToS, GRO size, overflow
)
MSG_TRUNC: Final = int(socket.MSG_TRUNC)  # an enum's & is slow
_INT: Final = struct.Struct("=i")
_COUNT: Final = struct.Struct("=I")
_HALFWORD: Final = struct.Struct("!H")


class Inbound:
    """Owns the buffers of this direction.

    `on_promoted(peer, now)` is called after a responder's keypair was confirmed, and sends the staged packets.
    Invariant: between two pumps the arena and the coalescer are empty.
    """

    def __init__(
        self,
        *,
        tun: int | None,
        keypairs: KeypairTable,
        acceptance: Acceptance[DataPlanePeer],
        events: EventQueue,
        counters: CounterSet,
        offloads: Offloads,
    ) -> None:
        self.on_promoted: Callable[[DataPlanePeer, float], bool] = lambda peer, now: False
        self.own_address = b""  # packed IPv6 address of probes to us; empty for none
        self.probe_port = b""  # 2 bytes, network byte order
        self._tun_writer = None if tun is None else TunWriter(tun, counters)
        self._keypairs = keypairs
        self._acceptance = acceptance
        self._events = events
        self._counters = counters
        self._datagram = bytearray(RECEIVE_BYTES)
        self._datagram_view = memoryview(self._datagram)
        self._arena = bytearray(ARENA_BYTES)
        self._arena_view = memoryview(self._arena)
        self.coalescer = Coalescer(self._arena, self._arena_view, tcp=offloads.tun_gro, udp=offloads.tun_gro_udp)
        self._cache: dict[tuple[DataPlanePeer, bytes], bool] = {}
        self._used = 0  # bytes of the arena
        # The last SO_RXQ_OVFL count of each socket in use, by family; None while a replaced socket is read.
        self._overflows: dict[int, int] | None = {}

    def acceptance_changed(self) -> None:
        """Empty the cache of accepted sources: a prefix, or a peer of one, changed."""
        self._cache.clear()

    def sockets_changed(self) -> None:
        """Reset the overflow counts: those of new sockets start at zero."""
        self._overflows = {}

    def pump_replaced(self, one: socket.socket, now: float) -> None:
        """Pump a socket that is no longer in use, as `pump` does, without counting its overflows."""
        overflows, self._overflows = self._overflows, None
        try:
            self.pump(one, now)
        finally:
            self._overflows = overflows

    def pump(self, one: socket.socket, now: float) -> None:
        """Receive at most DATAGRAMS_PER_WAKE times from this socket and write the packets to the TUN."""
        family = one.family
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                size, ancillary, flags, address = one.recvmsg_into([self._datagram_view], _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error caused by an earlier datagram; reading the error clears it.
                continue
            self._counters.udp_reads += 1
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
                self._counters.udp_rx_datagrams += 1
                self._counters.drops[Drop.MALFORMED] += 1
                continue
            if address[1] == 0:  # no answer can be sent to port 0
                self._counters.udp_rx_datagrams += (messages := -(-size // segment))
                self._counters.drops[Drop.MALFORMED] += messages
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
        """Open the messages of one receive, all from one address: `segment` bytes each, the last one maybe less.

        `codepoint` is the ECN field of the outer header, `pktinfo` the raw IP_PKTINFO or IPV6_PKTINFO.
        """
        view, arena_view, counters = self._datagram_view, self._arena_view, self._counters
        drops, by_index, unpack = counters.drops, self._keypairs.by_index, HEADER.unpack_from
        datagram, extend = self._datagram, self.coalescer.extend
        keypair: Keypair | None = None
        index = -1
        # The keypair of the last authentic message, and what arrived under it since it differed from the one before.
        authentic: Keypair | None = None
        messages = octets = payload = 0
        for at in range(0, size, segment):
            stop = at + segment
            if stop > size:  # noqa: PLR1730  (a call of min costs)
                stop = size
            length = stop - at - OVERHEAD
            if length < 0 or datagram[at] != TRANSPORT:
                self._post_datagram(bytes(view[at:stop]), address, family, pktinfo)
                continue
            kind, receiver, counter = unpack(datagram, at)
            if kind != TRANSPORT:
                drops[Drop.MALFORMED] += 1
                continue
            if receiver != index:
                index = receiver
                keypair = by_index.get(index)
            if keypair is None:
                drops[Drop.UNKNOWN_INDEX] += 1
                continue
            if now >= keypair.reject_at or counter >= keypair.reject_after:
                drops[Drop.EXPIRED_KEYPAIR] += 1
                continue
            window = keypair.window
            if counter <= window.greatest and not window.is_fresh(counter):
                drops[Drop.REPLAYED] += 1
                continue
            start = self._used
            end = start + length
            try:
                keypair.decrypt_into(
                    keypair.nonce(counter), view[at + HEADER_BYTES : stop], None, arena_view[start:end]
                )
            except InvalidTag:
                drops[Drop.BAD_TAG] += 1
                continue
            window.mark(counter)
            if keypair is not authentic:
                if authentic is not None:
                    self._count_received(authentic.peer, messages, octets, payload, now)
                    messages = octets = payload = 0
                authentic = keypair
                self._handle_authentic(keypair, address, family, pktinfo, now)
            messages += 1
            octets += stop - at
            if length:
                payload += length
                if not codepoint and extend(start, end, keypair.peer):
                    self._used = end
                else:
                    self._deliver(keypair.peer, start, length, codepoint)
        counters.udp_rx_datagrams += -(-size // segment)
        if authentic is not None:
            self._count_received(authentic.peer, messages, octets, payload, now)

    def _handle_authentic(self, keypair: Keypair, address: SockAddr, family: int, pktinfo: bytes, now: float) -> None:
        """Handle the first authentic message under this keypair in a receive:

        endpoint, key confirmation, rekeying.
        """
        peer = keypair.peer
        if address != peer.address or pktinfo != peer.pktinfo:
            self._update_endpoint(peer, address, family, pktinfo)
        if keypair is peer.next:
            self._keypairs.promote(keypair)
            self.on_promoted(peer, now)
        if now >= keypair.rekey_on_receive_at and not keypair.rekey_requested:
            keypair.rekey_requested = True
            if peer.request_handshake(now):
                self._events.post(HandshakeNeeded(peer.id))

    def _count_received(self, peer: DataPlanePeer, messages: int, octets: int, payload: int, now: float) -> None:
        """Count what arrived under one keypair in one receive; `payload` bytes are zero if all were keepalives."""
        peer.rx_packets += messages
        peer.rx_bytes += octets
        if peer.note_received(now, data=payload > 0):
            self._events.mark_changed(peer)

    def _post_datagram(self, data: bytes, address: SockAddr, family: int, pktinfo: bytes) -> None:
        """Post a datagram that is no transport message to the tunnel; drop a transport message that is too short."""
        if data[0] == TRANSPORT:
            self._counters.drops[Drop.MALFORMED] += 1
            return
        self._events.post_bounded(Datagram(data, endpoint_of(address), source_of(pktinfo, family)))

    def _update_endpoint(self, peer: DataPlanePeer, address: SockAddr, family: int, pktinfo: bytes) -> None:
        """Update endpoint and source of a peer whose authenticated message took another way (roaming, whitepaper
        §2.1).
        """
        source = source_of(pktinfo, family)
        if address == peer.address:
            peer.set_source(source, pktinfo)
        elif peer.roaming:
            peer.set_address(address, family)
            peer.set_source(source, pktinfo)
            self._events.post(EndpointMoved(peer.id, endpoint_of(address), source))
        elif address != peer.reported_endpoint:
            peer.reported_endpoint = address
            self._events.post(EndpointMoved(peer.id, endpoint_of(address), source))

    def _deliver(self, peer: DataPlanePeer, start: int, length: int, codepoint: int) -> None:
        """Check the packet in an opened message and pass it on.

        If it has to stay in the arena, `_used` moves past it.
        """
        arena, drops = self._arena, self._counters.drops
        # The lengths in the inner header are valid only within the `length` bytes that were authenticated.
        version = arena[start] >> 4
        if version == 4 and length >= 20:
            (total,) = _HALFWORD.unpack_from(arena, start + 2)
            source = bytes(arena[start + 12 : start + 16])
            fits = 20 <= total <= length
        elif version == 6 and length >= 40:
            # Not reduced to 16 bits: a payload of 65,496 bytes or more must not wrap around to a short length.
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
            accepted = self._is_accepted(peer, source)
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
        if self._tun_writer is None:
            drops[Drop.NO_TUN] += 1
            return
        self._used = start + length
        self.coalescer.add(start, total, peer)

    def _is_accepted(self, peer: DataPlanePeer, source: bytes) -> bool:
        accepted = peer in self._acceptance.lookup(source)
        if len(self._cache) >= SOURCE_CACHE:
            self._cache.clear()
        self._cache[peer, source] = accepted
        return accepted

    def flush(self) -> None:
        """Write the collected packets to the TUN and empty the arena."""
        if self._tun_writer is not None:
            self._tun_writer.write(self.coalescer)
        self.coalescer.clear()
        self._used = 0

    def _count_overflow(self, family: int, total: int) -> None:
        """Count the datagrams the kernel dropped since the last count, which covers the socket's life modulo 2³²."""
        if self._overflows is None:
            return
        self._counters.drops[Drop.SOCKET_OVERFLOW] += (total - self._overflows.get(family, 0)) & 0xFFFFFFFF
        self._overflows[family] = total
