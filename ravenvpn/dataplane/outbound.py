"""From the TUN to the outer world: read, split, find the peer, seal, send in runs."""

from __future__ import annotations

import errno
import os
from typing import Final

from ravenvpn.dataplane import ecn
from ravenvpn.dataplane.contract import MAX_STAGED_PACKETS, Drop, HandshakeNeeded, Timing
from ravenvpn.dataplane.cryptokey_routing import Routes
from ravenvpn.dataplane.events import EventQueue, Tally
from ravenvpn.dataplane.keypairs import HEADER, HEADER_BYTES, OVERHEAD, TRANSPORT, Keypair
from ravenvpn.dataplane.peers import DataPlanePeer, Staged
from ravenvpn.dataplane.segmentation import FRAME_HEADER, Packets, count_packets, is_ip, split
from ravenvpn.dataplane.transmitter import Batch, Transmitter

PADDING: Final = 16  # whitepaper §5.4.6
ZEROS: Final = [bytes(n) for n in range(PADDING)]

FRAMES_PER_WAKE: Final = 16  # superpackets; then the UDP side gets its turn
MAX_FRAME: Final = FRAME_HEADER + 65535 + 40
MAX_RUN_BYTES: Final = 65507  # UDP payload over IPv4; IPv6 could have 20 more
MAX_RUN: Final = 64  # UDP_MAX_SEGMENTS before Linux 6.9
ROUTE_CACHE: Final = 4096  # destinations

GONE: Final = frozenset((errno.EBADFD, errno.EBADF, errno.EIO, errno.ENODEV))


class Outbound:
    """Owns the buffers of this direction and the run that is being filled."""

    def __init__(
        self,
        *,
        tun: int | None,
        outer: Transmitter,
        routes: Routes[DataPlanePeer],
        events: EventQueue,
        tally: Tally,
        timing: Timing,
    ) -> None:
        self.mtu = 0
        self._tun = tun
        self._outer = outer
        self._routes = routes
        self._events = events
        self._tally = tally
        self._timing = timing
        self._frame = bytearray(MAX_FRAME + PADDING)
        self._frame_view = memoryview(self._frame)
        self._out = bytearray(MAX_FRAME + PADDING + OVERHEAD)
        self._out_view = memoryview(self._out)
        self._single = bytearray(MAX_FRAME + PADDING)  # a packet that does not come from the TUN
        self._single_view = memoryview(self._single)
        self._cache: dict[bytes, DataPlanePeer | None] = {}
        # The run: messages to `_to` of `_segment` bytes each; closed by a shorter one.
        self._fill = self._count = self._segment = 0
        self._closed = False
        self._to: DataPlanePeer | None = None
        self._ecn = 0

    def routes_changed(self) -> None:
        self._cache.clear()

    def pump(self, now: float) -> bool:
        """Move up to a budget of frames; False when the TUN will never be readable again."""
        frame, buffers, tally = self._frame, [self._frame_view[:MAX_FRAME]], self._tally
        assert self._tun is not None
        for _ in range(FRAMES_PER_WAKE):
            try:
                end = os.readv(self._tun, buffers)
            except BlockingIOError:
                break
            except OSError as error:
                self.flush()
                return error.errno not in GONE
            if end == 0:
                self.flush()
                return False
            tally.tun_reads += 1
            if end <= FRAME_HEADER or not is_ip(frame, end):
                tally.drops[Drop.NOT_IP] += 1
                continue
            self._forward(end, now)
            if self._outer.full:
                break
        self.flush()
        return True

    def _forward(self, end: int, now: float) -> None:
        frame = self._frame
        is_v4 = frame[FRAME_HEADER] >> 4 == 4
        at = FRAME_HEADER + (16 if is_v4 else 24)
        destination = bytes(frame[at : at + (4 if is_v4 else 16)])
        try:
            peer = self._cache[destination]
        except KeyError:
            peer = self._look_up(destination)
        estimate = count_packets(frame, end)
        packets = split(frame, self._frame_view, end)
        if packets is None:
            self._tally.drops[Drop.BAD_OFFLOAD] += 1
            return
        codepoint = ecn.inner_codepoint(frame, FRAME_HEADER)
        if peer is None:
            self._drop_each(packets, Drop.NO_ROUTE)
        elif peer.address is None:
            self._drop_each(packets, Drop.NO_ENDPOINT)
        else:
            session = peer.current
            if session is not None and session.may_send(now, estimate):
                self.seal(session, frame, self._frame_view, packets, codepoint, now)
            else:
                for start, length in packets:
                    self._tally.tun_rx_packets += 1
                    self.send(peer, Staged(bytes(self._frame_view[start : start + length])), now)

    def _look_up(self, destination: bytes) -> DataPlanePeer | None:
        carriers = self._routes.lookup(destination)
        peer = carriers[0] if carriers else None
        if len(self._cache) >= ROUTE_CACHE:
            self._cache.clear()
        self._cache[destination] = peer
        return peer

    def _drop_each(self, packets: Packets, reason: Drop) -> None:
        count = sum(1 for _ in packets)
        self._tally.tun_rx_packets += count
        self._tally.drop(reason, count)

    def send(self, peer: DataPlanePeer, staged: Staged, now: float) -> None:
        """Seal one packet, or let it wait for a key. The caller flushes."""
        if peer.address is None:
            self._tally.drop(Drop.NO_ENDPOINT)
            return
        session = peer.current
        if session is None or not session.may_send(now):
            self._stage(peer, staged, now)
            return
        packet = staged.packet
        length = len(packet)
        self._single[:length] = packet
        codepoint = ecn.inner_codepoint(packet, 0) if packet else 0
        if staged.outer_df:
            self.flush()
        self.seal(session, self._single, self._single_view, ((0, length),), codepoint, now, own=True)
        if staged.outer_df:
            self.flush(outer_df=True)

    def _stage(self, peer: DataPlanePeer, staged: Staged, now: float) -> None:
        if staged.packet:
            if len(peer.staged) >= MAX_STAGED_PACKETS:
                peer.staged.popleft()
                self._tally.drop(Drop.STAGED_OVERFLOW)
            peer.staged.append(staged)
        if peer.ask(now, again_after=self._timing.rekey_timeout):
            self._events.post(HandshakeNeeded(peer.id))

    def send_staged(self, peer: DataPlanePeer, now: float) -> bool:
        """Send what waited; False if nothing did."""
        waiting, count = peer.staged, len(peer.staged)
        for _ in range(count):
            self.send(peer, waiting.popleft(), now)
        self.flush()
        return count > 0

    def seal(  # noqa: PLR0917  (once per frame: keywords cost)
        self,
        session: Keypair,
        plain: bytearray,
        view: memoryview,
        packets: Packets,
        codepoint: int,
        now: float,
        *,
        own: bool = False,
    ) -> None:
        """Seal packets that lie in `plain` into the run, sending full runs on the way. The session may send them all.

        Bytes behind a packet serve as its padding for a moment, and are put back.
        """
        peer = session.peer
        if self._count and (peer is not self._to or codepoint != self._ecn):
            self.flush()
        self._to, self._ecn = peer, codepoint
        out, out_view, mtu = self._out, self._out_view, self.mtu
        pack, encrypt_into, nonce = HEADER.pack_into, session.encrypt_into, session.nonce
        remote = session.keypair.remote_index
        counter = first = session.counter
        fill, count, segment, closed = self._fill, self._count, self._segment, self._closed
        before = size = padding = -1
        sealed = 0
        try:
            for start, length in packets:
                if length != before:
                    before = length
                    padding = padding_of(length, mtu)
                    size = length + padding + OVERHEAD
                if count and (closed or size > segment or count == MAX_RUN or fill + size > MAX_RUN_BYTES):
                    self._fill, self._count, self._segment = fill, count, segment
                    session.counter = counter
                    self.flush()
                    fill = count = 0
                    closed = False
                if not count:
                    segment = size
                elif size < segment:
                    closed = True
                stop = start + length
                pack(out, fill, TRANSPORT, remote, counter)
                if padding:
                    kept = bytes(view[stop : stop + padding])
                    plain[stop : stop + padding] = ZEROS[padding]
                    stop += padding
                    encrypt_into(nonce(counter), view[start:stop], None, out_view[fill + HEADER_BYTES : fill + size])
                    plain[stop - padding : stop] = kept
                else:
                    encrypt_into(nonce(counter), view[start:stop], None, out_view[fill + HEADER_BYTES : fill + size])
                counter += 1
                count += 1
                fill += size
                sealed += size
        finally:
            session.counter = counter
            self._fill, self._count, self._segment, self._closed = fill, count, segment, closed
        sent = counter - first
        peer.tx_bytes += sealed
        peer.tx_packets += sent
        if not own:
            self._tally.tun_rx_packets += sent
        if peer.sent(now, data=before != 0):
            self._events.moved(peer)
        if (now >= session.renews or counter > session.rekey_after) and peer.ask(now):
            self._events.post(HandshakeNeeded(peer.id))

    def flush(self, *, outer_df: bool = False) -> None:
        """Send the run that is being filled."""
        count, peer = self._count, self._to
        if not count or peer is None:
            return
        self._count = 0
        self._closed = False
        fill, self._fill = self._fill, 0
        if peer.address is None:
            self._tally.drop(Drop.NO_ENDPOINT, count)
            return
        segment = self._segment
        run = Batch(
            self._out_view[:fill],
            segment,
            count,
            peer,
            peer.address,
            peer.family,
            peer.ancillary,
            self._ecn,
            outer_df,
        )
        if count > 1 and (not self._outer.gso or segment >= peer.gso_limit):
            self._outer.send_singly(run)
        else:
            self._outer.send(run)


def padding_of(length: int, mtu: int) -> int:
    """Zero bytes to append, so that lengths say less: to a multiple of 16, but not past the MTU (whitepaper §5.4.6).

    A packet larger than the MTU counts by what it exceeds a multiple of it. MTU 0 means unknown.
    """
    if mtu == 0:
        return -length % PADDING
    last = length % mtu if length > mtu else length
    return min(-(-last // PADDING) * PADDING, mtu) - last
