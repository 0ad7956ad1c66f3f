"""Packets for the TUN: those that follow each other in one flow become one superpacket and cost one write.

The kernel takes a superpacket for whole and checked (NEEDS_CSUM says that sums are still to be made), so only packets
that are valid, complete and alike may be joined, and cutting the superpacket again must give the very same packets.
Everything else passes as it is. Within a flow nothing is overtaken: a packet that can't join its flow's last item
becomes the last item, and one that can't be assigned to a flow ends all flows.
"""

from __future__ import annotations

import struct
from typing import Final

from ravenvpn.dataplane.segmentation import (
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MORE_FRAGMENTS_AND_OFFSET,
    NEEDS_CSUM,
    PSH,
    TCP,
    UDP,
    VIRTIO_NET_HEADER,
    payload_sum,
    pseudo_header_sum,
    word_sum,
)

MAX_PACKET: Final = 65535
MAX_SEGMENTS: Final = 64  # what every kernel since 4.18 can cut again in one go (UDP_MAX_SEGMENTS)

ACK: Final = 0x10
TCP_FLAGS: Final = 0x0FFF  # with the reserved bits, which must be alike too
DONT_FRAGMENT: Final = 0x4000

# One look for all that is compared. Version, class and length first; then, v4: ID and fragment, TTL, protocol and
# checksum, addresses; v6: next header, hop limit, addresses. Then ports, and TCP's sequence, ack, flags and window.
_TCP4: Final = struct.Struct("!IIIQIIIHH2xH")
_TCP6: Final = struct.Struct("!IHH16s16sIIIHH2xH")
_UDP4: Final = struct.Struct("!IIIQIHH")
_UDP6: Final = struct.Struct("!IHH16s16sIHH")
# What the next packet of a bulk flow is compared by, all at once: everything up to the window but IPv4's ID and
# checksum and the sequence number.
_NEXT4: Final = struct.Struct("!4sH4sH12sI8s")
_NEXT6: Final = struct.Struct("!8s36sI8s")
_HALFWORD: Final = struct.Struct("!H")

PLAIN_HEADER: Final = VIRTIO_NET_HEADER.pack(0, GSO_NONE, 0, 0, 0, 0)

# What no second packet of a flow may differ in; its fields depend on family and protocol.
Alike = tuple[int | bytes, ...]


class Item:
    """One write to the TUN: packets of one flow that follow each other, `full` bytes each, the last one `last`.

    `starts` says where in the buffer each begins. `header` and `transport` count from there, to the payload and to
    the TCP or UDP header; 0 for what nothing can join.
    """

    __slots__ = (
        "alike", "checked", "full", "header", "identification", "ip_sum", "kept", "last", "next_sequence", "open",
        "owner", "pseudo", "psh", "same", "starts", "tail", "total", "transport",
    )  # fmt: skip

    def __init__(self, start: int, length: int, owner: object) -> None:
        self.owner = owner  # who sent the first packet
        self.starts = [start]
        self.full = self.last = self.total = length
        self.header = self.transport = 0
        self.open = False
        self.checked = False  # the first packet's checksums: only verified when a second one comes
        self.psh = False
        self.alike: Alike = ()
        self.next_sequence = 0
        self.identification = -1  # expected IPv4 ID; -1 where any will do (DF: RFC 6864 gives it no meaning)
        self.ip_sum = 0  # IPv4 ID and checksum; in packets that are alike otherwise it is the same
        self.pseudo = 0
        self.kept = b""  # the first header as it came
        # For `extend`: what _NEXT4 or _NEXT6 must find again, and the TCP header from its urgent pointer on.
        self.same: tuple[bytes, ...] = ()
        self.tail = b""


class Coalescer:
    """Collects the packets of one batch; then `items` is what to write, in order, and `frame` how.

    Packets lie in `buffer` (and `view` of it) and stay there untouched until `clear`. `tcp` and `udp` say what may
    be joined.
    """

    def __init__(self, buffer: bytearray, view: memoryview, *, tcp: bool, udp: bool) -> None:
        self.buffer, self.view = buffer, view
        self.tcp, self.udp = tcp, udp
        self.items: list[Item] = []
        self._flows: dict[Alike, Item] = {}
        self._latest: Item | None = None  # where the last TCP packet went

    def clear(self) -> None:
        """Forget every item; the arena may be filled anew."""
        self.items = []
        self._flows = {}
        self._latest = None

    def extend(self, start: int, end: int, owner: object) -> bool:
        """The short way for bulk TCP: take the packet at `start` if it is just what the last one lets expect.

        It is then of the same flow, size and owner as packets that passed every test before, and valid itself;
        behind it, up to `end`, there may be padding. False changes nothing: `add` decides.
        """
        item = self._latest
        if item is None or not item.open or item.owner is not owner or start + item.full > end:
            return False
        buffer, transport = self.buffer, item.transport
        if transport == 20:
            first, identification, middle, checksum, flow, sequence, rest = _NEXT4.unpack_from(buffer, start)
            if (
                (first, middle, flow, rest) != item.same
                # In a header that is otherwise the same, only the sum of these two can be right.
                or (identification + checksum) % 65535 != item.ip_sum
                or (identification != item.identification and item.identification >= 0)
            ):
                return False
        else:
            first, flow, sequence, rest = _NEXT6.unpack_from(buffer, start)
            identification = 0
            if (first, flow, rest) != item.same:
                return False
        header, full = item.header, item.full
        stop = start + full
        if (
            sequence != item.next_sequence
            or buffer[start + transport + 18 : start + header] != item.tail
            or item.total + full - header > MAX_PACKET
            or len(item.starts) == MAX_SEGMENTS
            or not (item.checked or self._check_first(item))
            or (payload_sum(self.view, start + transport, stop) % 65535 * 256 + item.pseudo + full - transport)
            % 65535
        ):
            return False
        item.starts.append(start)
        item.total += full - header
        item.next_sequence = sequence + full - header & 0xFFFFFFFF
        if item.identification >= 0:
            item.identification = identification + 1 & 0xFFFF
        return True

    def add(self, start: int, length: int, owner: object) -> None:
        """Take the IP packet buffer[start:start+length], whose length field says `length`."""
        buffer = self.buffer
        first = buffer[start]
        if first == 0x45:  # any other header has options, and a packet with options passes alone
            protocol = buffer[start + 9]
            if protocol == TCP and self.tcp and length >= 40:
                kind, idf, ttl, addresses, ports, sequence, ack, flags, window, urgent = _TCP4.unpack_from(
                    buffer, start
                )
                if not idf & MORE_FRAGMENTS_AND_OFFSET:
                    self._add_tcp(
                        start, length, owner, 20, (addresses, ports), sequence, flags,
                        (kind >> 16, idf & 0xFFFF, ttl >> 16, ack, flags & ~PSH, window, urgent),
                        -1 if idf & DONT_FRAGMENT else idf >> 16,
                        (idf >> 16) + (ttl & 0xFFFF),
                    )  # fmt: skip
                    return
            elif protocol == UDP and self.udp and length >= 28:
                kind, idf, ttl, addresses, ports, size, checksum = _UDP4.unpack_from(buffer, start)
                if not idf & MORE_FRAGMENTS_AND_OFFSET:
                    self._add_udp(
                        start, length, owner, 20, (addresses, ports, UDP), size, checksum,
                        (kind >> 16, idf & 0xFFFF, ttl >> 16),
                        -1 if idf & DONT_FRAGMENT else idf >> 16,
                        (idf >> 16) + (ttl & 0xFFFF),
                    )  # fmt: skip
                    return
        elif first >> 4 == 6:
            protocol = buffer[start + 6]  # an extension header, a fragment's among them, is neither
            if protocol == TCP and self.tcp and length >= 60:
                kind, _, hops, here, there, ports, sequence, ack, flags, window, urgent = _TCP6.unpack_from(
                    buffer, start
                )
                self._add_tcp(
                    start, length, owner, 40, (here, there, ports), sequence, flags,
                    (kind, hops, ack, flags & ~PSH, window, urgent), -1, 0,
                )  # fmt: skip
                return
            if protocol == UDP and self.udp and length >= 48:
                kind, _, hops, here, there, ports, size, checksum = _UDP6.unpack_from(buffer, start)
                self._add_udp(
                    start, length, owner, 40, (here, there, ports, UDP), size, checksum, (kind, hops), -1, 0
                )  # fmt: skip
                return
        self._flows.clear()
        self._latest = None
        self.items.append(Item(start, length, owner))

    def frame(self, item: Item) -> list[bytes | memoryview]:
        """The parts of one write. A superpacket's first header is rewritten in the buffer; `plain` undoes it."""
        view, starts = self.view, item.starts
        start = starts[0]
        count = len(starts)
        if count == 1:
            return [PLAIN_HEADER, view[start : start + item.full]]
        header = item.header
        self._make_super_header(item)
        parts: list[bytes | memoryview] = [self._offload_header(item), view[start : start + item.full]]
        full = item.full
        parts += [view[at + header : at + full] for at in starts[1:-1]]
        at = starts[-1]
        parts.append(view[at + header : at + item.last])
        return parts

    def plain(self, item: Item) -> list[list[bytes | memoryview]]:
        """The same packets one by one, as they came: for a kernel that refused the superpacket."""
        if item.kept:
            start = item.starts[0]
            self.buffer[start : start + len(item.kept)] = item.kept
        view, last = self.view, item.starts[-1]
        parts: list[list[bytes | memoryview]] = [[PLAIN_HEADER, view[at : at + item.full]] for at in item.starts[:-1]]
        parts.append([PLAIN_HEADER, view[last : last + item.last]])
        return parts

    def is_udp(self, item: Item) -> bool:
        """Return True if the item's transport header is UDP's, which has 8 bytes; TCP's has at least 20."""
        return item.header - item.transport == 8

    def _add_tcp(  # noqa: PLR0917  (once per packet: keywords cost)
        self, start: int, length: int, owner: object, transport: int, key: Alike, sequence: int, flags: int,
        alike: Alike, identification: int, ip_sum: int,
    ) -> None:  # fmt: skip
        header = transport + (flags >> 12) * 4
        payload = length - header
        psh = flags & PSH
        if payload <= 0 or header < transport + 20 or flags & TCP_FLAGS & ~PSH != ACK:
            # Nothing may join it, or what comes after it would be before it.
            self._flows.pop(key, None)
            self._latest = None
            self.items.append(Item(start, length, owner))
            return
        item = self._flows.get(key)
        if (
            item is not None
            and item.next_sequence == sequence
            and item.open
            and item.alike == alike
            and self._joins(item, start, length, identification, ip_sum)
        ):
            item.next_sequence = sequence + payload & 0xFFFFFFFF
            if psh:
                item.psh = True
                item.open = False
            self._latest = item
            return
        item = Item(start, length, owner)
        item.header, item.transport = header, transport
        item.alike, item.open = alike, not psh
        self._latest = item
        if not psh:
            if transport == 20:
                first, _, middle, _, flow, _, rest = _NEXT4.unpack_from(self.buffer, start)
                item.same = (first, middle, flow, rest)
            else:
                first, flow, _, rest = _NEXT6.unpack_from(self.buffer, start)
                item.same = (first, flow, rest)
            item.tail = bytes(self.view[start + transport + 18 : start + header])
        item.next_sequence = sequence + payload & 0xFFFFFFFF
        item.identification = -1 if identification < 0 else identification + 1 & 0xFFFF
        item.ip_sum = ip_sum % 65535
        self._flows[key] = item
        self.items.append(item)

    def _add_udp(  # noqa: PLR0917
        self, start: int, length: int, owner: object, transport: int, key: Alike, size: int, checksum: int,
        alike: Alike, identification: int, ip_sum: int,
    ) -> None:  # fmt: skip
        if size != length - transport or size <= 8 or not checksum:
            # Without a checksum (IPv4 may) the kernel would be told to make one: not the same packet.
            self._flows.pop(key, None)
            self.items.append(Item(start, length, owner))
            return
        item = self._flows.get(key)
        if (
            item is not None
            and item.open
            and item.alike == alike
            and self._joins(item, start, length, identification, ip_sum)
        ):
            return
        item = Item(start, length, owner)
        item.header, item.transport = transport + 8, transport
        item.alike, item.open = alike, True
        item.identification = -1 if identification < 0 else identification + 1 & 0xFFFF
        item.ip_sum = ip_sum % 65535
        self._flows[key] = item
        self.items.append(item)

    def _joins(self, item: Item, start: int, length: int, identification: int, ip_sum: int) -> bool:
        """Join a packet that is alike, if size, IPv4 ID and checksums allow; otherwise the item is closed."""
        header, full = item.header, item.full
        item.open = False
        if (
            length > full
            or item.total + length - header > MAX_PACKET
            or len(item.starts) >= MAX_SEGMENTS
            or identification != item.identification
        ):
            return False
        view, transport = self.view, item.transport
        first = item.starts[0]
        if (
            header > transport + 20
            and view[start + transport + 20 : start + header] != view[first + transport + 20 : first + header]
        ):
            return False  # other TCP options
        if not item.checked and not self._check_first(item):
            return False
        # The IPv4 header differs from one whose sum is right in ID, checksum and, if this is the last, length.
        if (transport == 20 and (ip_sum + length - full) % 65535 != item.ip_sum) or (
            payload_sum(view, start + transport, start + length) % 65535 * 256 + item.pseudo + length - transport
        ) % 65535:
            return False
        item.starts.append(start)
        item.last = length
        item.total += length - header
        item.open = length == full
        if identification >= 0:
            item.identification = identification + 1 & 0xFFFF
        return True

    def _check_first(self, item: Item) -> bool:
        start, transport = item.starts[0], item.transport
        protocol = UDP if self.is_udp(item) else TCP
        item.pseudo = pseudo_header_sum(self.view, start, protocol, 0)
        item.checked = (transport == 40 or not word_sum(self.view, start, start + 20)) and not (
            word_sum(self.view, start + transport, start + item.full) + item.pseudo + item.full - transport
        ) % 65535
        return item.checked

    def _make_super_header(self, item: Item) -> None:
        """Lengths of the whole, PSH if the last packet had it, and checksums as NEEDS_CSUM wants them."""
        buffer, start, transport = self.buffer, item.starts[0], item.transport
        item.kept = bytes(self.view[start : start + item.header])
        size = item.total - transport
        if transport == 20:
            _HALFWORD.pack_into(buffer, start + 2, item.total)
            _HALFWORD.pack_into(buffer, start + 10, 0)
            _HALFWORD.pack_into(buffer, start + 10, 65535 - (word_sum(self.view, start, start + 20) or 65535))
        else:
            _HALFWORD.pack_into(buffer, start + 4, size)
        partial = (item.pseudo + size) % 65535 or 65535
        if self.is_udp(item):
            _HALFWORD.pack_into(buffer, start + transport + 4, size)
            _HALFWORD.pack_into(buffer, start + transport + 6, partial)
        else:
            if item.psh:
                buffer[start + transport + 13] |= PSH
            _HALFWORD.pack_into(buffer, start + transport + 16, partial)

    def _offload_header(self, item: Item) -> bytes:
        size = item.full - item.header
        if self.is_udp(item):
            return VIRTIO_NET_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, item.header, size, item.transport, 6)
        kind = GSO_TCPV4 if item.transport == 20 else GSO_TCPV6
        return VIRTIO_NET_HEADER.pack(NEEDS_CSUM, kind, item.header, size, item.transport, 16)
