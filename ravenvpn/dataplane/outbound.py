"""Outbound packets, from the TUN to the sockets: read, segment, look up the peer, seal, send in batches.

Nothing is copied between reading a frame and sealing its packets: segments are made in place (see `segmentation`),
and the cipher writes into the batch that leaves.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from ravenvpn.dataplane import ecn
from ravenvpn.dataplane.contract import MAX_STAGED_PACKETS, Drop, HandshakeNeeded, Timing
from ravenvpn.dataplane.cryptokey_routing import Routes
from ravenvpn.dataplane.events import CounterSet, EventQueue
from ravenvpn.dataplane.keypairs import HEADER, HEADER_BYTES, OVERHEAD, TRANSPORT, Keypair
from ravenvpn.dataplane.peers import DataPlanePeer, Staged
from ravenvpn.dataplane.segmentation import FRAME_HEADER, Packets, count_packets, is_ip, split
from ravenvpn.dataplane.transmitter import Batch, Transmitter

PADDING: Final = 16  # plaintexts are padded to a multiple of this (whitepaper §5.4.6)
ZEROS: Final = [bytes(n) for n in range(PADDING)]

FRAMES_PER_WAKE: Final = 16  # frames of up to 64 KiB per call of `pump`, so that the inbound direction is not starved
MAX_FRAME: Final = FRAME_HEADER + 65535 + 40
MAX_BATCH_BYTES: Final = 65507  # the largest UDP payload over IPv4; IPv6 allows 20 bytes more
MAX_BATCH_MESSAGES: Final = 64  # UDP_MAX_SEGMENTS before Linux 6.9
ROUTE_CACHE: Final = 4096  # destinations; the cache is emptied when it is full

# errno of a read after which the TUN will never be readable again: the device was deleted.
GONE: Final = frozenset((errno.EBADFD, errno.EBADF, errno.EIO, errno.ENODEV))


class Outbound:
    """Owns the buffers of this direction and the batch that is being filled.

    Invariant: between two calls from outside nothing is left in the batch; every public method but `send` and `seal`
    flushes, and their callers do.
    """

    def __init__(
        self,
        *,
        tun: int | None,
        transmitter: Transmitter,
        routes: Routes[DataPlanePeer],
        events: EventQueue,
        counters: CounterSet,
        timing: Timing,
    ) -> None:
        self.mtu = 0  # of the TUN, bytes; 0 if unknown
        self._tun = tun
        self._transmitter = transmitter
        self._routes = routes
        self._events = events
        self._counters = counters
        self._timing = timing
        self._frame = bytearray(MAX_FRAME + PADDING)
        self._frame_view = memoryview(self._frame)
        self._out = bytearray(MAX_FRAME + PADDING + OVERHEAD)
        self._out_view = memoryview(self._out)
        self._single = bytearray(MAX_FRAME + PADDING)  # a packet that does not come from the TUN
        self._single_view = memoryview(self._single)
        self._cache: dict[bytes, DataPlanePeer | None] = {}
        # The batch: `_count` messages to `_to` of `_segment` bytes each in `_out[:_fill]`. A shorter message closes
        # it, because only the last segment of a GSO send may be shorter.
        self._fill = self._count = self._segment = 0
        self._closed = False
        self._to: DataPlanePeer | None = None
        self._ecn = 0

    def routes_changed(self) -> None:
        """Empty the route cache: a route, or a peer of one, changed."""
        self._cache.clear()

    def pump(self, now: float) -> bool:
        """Forward at most FRAMES_PER_WAKE frames. Return False if the TUN will never be readable again."""
        frame, buffers, counters = self._frame, [self._frame_view[:MAX_FRAME]], self._counters
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
            counters.tun_reads += 1
            if end <= FRAME_HEADER or not is_ip(frame, end):
                counters.drops[Drop.NOT_IP] += 1
                continue
            self._forward(end, now)
            if self._transmitter.is_blocked:
                break
        self.flush()
        return True

    def _forward(self, end: int, now: float) -> None:
        """Send the packets of the frame in `_frame[:end]`, or stage or drop them."""
        frame = self._frame
        is_v4 = frame[FRAME_HEADER] >> 4 == 4
        at = FRAME_HEADER + (16 if is_v4 else 24)
        destination = bytes(frame[at : at + (4 if is_v4 else 16)])
        try:
            peer = self._cache[destination]
        except KeyError:
            peer = self._lookup(destination)
        estimate = count_packets(frame, end)
        packets = split(frame, self._frame_view, end)
        if packets is None:
            self._counters.drops[Drop.BAD_OFFLOAD] += 1
            return
        codepoint = ecn.inner_codepoint(frame, FRAME_HEADER)
        if peer is None:
            self._drop_each(packets, Drop.NO_ROUTE)
        elif peer.address is None:
            self._drop_each(packets, Drop.NO_ENDPOINT)
        else:
            keypair = peer.current
            if keypair is not None and keypair.may_send(now, estimate):
                self.seal(keypair, frame, self._frame_view, packets, codepoint, now)
            else:
                for start, length in packets:
                    self._counters.tun_rx_packets += 1
                    self.send(peer, Staged(bytes(self._frame_view[start : start + length])), now)

    def _lookup(self, destination: bytes) -> DataPlanePeer | None:
        carriers = self._routes.lookup(destination)
        peer = carriers[0] if carriers else None
        if len(self._cache) >= ROUTE_CACHE:
            self._cache.clear()
        self._cache[destination] = peer
        return peer

    def _drop_each(self, packets: Packets, reason: Drop) -> None:
        count = sum(1 for _ in packets)
        self._counters.tun_rx_packets += count
        self._counters.count_drop(reason, count)

    def send(self, peer: DataPlanePeer, staged: Staged, now: float) -> None:
        """Seal one packet into the batch, or stage it if no keypair is usable. The caller flushes."""
        if peer.address is None:
            self._counters.count_drop(Drop.NO_ENDPOINT)
            return
        keypair = peer.current
        if keypair is None or not keypair.may_send(now):
            self._stage(peer, staged, now)
            return
        packet = staged.packet
        length = len(packet)
        self._single[:length] = packet
        codepoint = ecn.inner_codepoint(packet, 0) if packet else 0
        if staged.outer_df:
            self.flush()
        self.seal(keypair, self._single, self._single_view, ((0, length),), codepoint, now, own=True)
        if staged.outer_df:
            self.flush(outer_df=True)

    def _stage(self, peer: DataPlanePeer, staged: Staged, now: float) -> None:
        """Keep a packet until the next handshake ends, and request one. Keepalives are not kept."""
        if staged.packet:
            if len(peer.staged) >= MAX_STAGED_PACKETS:
                peer.staged.popleft()
                self._counters.count_drop(Drop.STAGED_OVERFLOW)
            peer.staged.append(staged)
        if peer.request_handshake(now, again_after=self._timing.rekey_timeout):
            self._events.post(HandshakeNeeded(peer.id))

    def send_staged(self, peer: DataPlanePeer, now: float) -> bool:
        """Send the packets staged for this peer; return False if there were none."""
        waiting, count = peer.staged, len(peer.staged)
        for _ in range(count):
            self.send(peer, waiting.popleft(), now)
        self.flush()
        return count > 0

    def seal(  # noqa: PLR0917  (once per frame: keywords cost)
        self,
        keypair: Keypair,
        plain: bytearray,
        view: memoryview,
        packets: Packets,
        codepoint: int,
        now: float,
        *,
        own: bool = False,
    ) -> None:
        """Seal packets that lie in `plain` into the batch, and send every batch that becomes full.

        The caller has checked `keypair.may_send` for all of them. `view` is a memoryview of `plain`, `codepoint` the
        ECN field of the outer header; `own` packets do not come from the TUN and are not counted as read from it.
        The bytes after a packet are overwritten with its padding while it is sealed, and restored.
        """
        peer = keypair.peer
        if self._count and (peer is not self._to or codepoint != self._ecn):
            self.flush()
        self._to, self._ecn = peer, codepoint
        out, out_view, mtu = self._out, self._out_view, self.mtu
        pack, encrypt_into, nonce = HEADER.pack_into, keypair.encrypt_into, keypair.nonce
        remote = keypair.keys.remote_index
        counter = first = keypair.counter
        fill, count, segment, closed = self._fill, self._count, self._segment, self._closed
        before = size = padding = -1
        sealed = 0
        try:
            for start, length in packets:
                if length != before:
                    before = length
                    padding = padding_of(length, mtu)
                    size = length + padding + OVERHEAD
                if count and (
                    closed or size > segment or count == MAX_BATCH_MESSAGES or fill + size > MAX_BATCH_BYTES
                ):
                    self._fill, self._count, self._segment = fill, count, segment
                    keypair.counter = counter
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
            keypair.counter = counter
            self._fill, self._count, self._segment, self._closed = fill, count, segment, closed
        sent = counter - first
        peer.tx_bytes += sealed
        peer.tx_packets += sent
        if not own:
            self._counters.tun_rx_packets += sent
        if peer.note_sent(now, data=before != 0):
            self._events.mark_changed(peer)
        if (now >= keypair.rekey_at or counter > keypair.rekey_after) and peer.request_handshake(now):
            self._events.post(HandshakeNeeded(peer.id))

    def flush(self, *, outer_df: bool = False) -> None:
        """Send the batch that is being filled; `outer_df` forbids its fragmentation."""
        count, peer = self._count, self._to
        if not count or peer is None:
            return
        self._count = 0
        self._closed = False
        fill, self._fill = self._fill, 0
        if peer.address is None:
            self._counters.count_drop(Drop.NO_ENDPOINT, count)
            return
        segment = self._segment
        batch = Batch(
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
        if count > 1 and (not self._transmitter.gso or segment >= peer.gso_limit):
            self._transmitter.send_one_by_one(batch)
        else:
            self._transmitter.send(batch)


def padding_of(length: int, mtu: int) -> int:
    """Return how many zero bytes to append, to hide the exact length (whitepaper §5.4.6).

    Packets are padded to a multiple of 16 bytes, but not beyond the MTU. Of a packet larger than the MTU, the part
    beyond a multiple of the MTU counts, as in the Linux kernel. MTU 0 means unknown.
    """
    if mtu == 0:
        return -length % PADDING
    last = length % mtu if length > mtu else length
    return min(-(-last // PADDING) * PADDING, mtu) - last
