"""Superpackets from the TUN: what a virtio-net header says, and how one is cut into the packets it stands for.

The kernel hands over up to 64 KiB of one TCP or UDP flow as one packet, with instructions (struct virtio_net_hdr,
include/uapi/linux/virtio_net.h) for whoever has to cut it, and with checksums that hold the pseudo-header's sum only.
The way back, many packets to one superpacket, is `coalesce`.

Checksums are sums of 16-bit words modulo 65535 (RFC 1071). Python's fastest way to such a sum is to read the bytes as
one big integer and take the remainder, since 2^16 ≡ 1 (mod 65535). Read little-endian, an odd last byte needs no
padding, and a factor of 256 puts the sum into network order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

# struct virtio_net_hdr, native byte order: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VIRTIO_NET_HEADER: Final = struct.Struct("=BBHHHH")
FRAME_HEADER: Final = VIRTIO_NET_HEADER.size  # the IP packet begins here
NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5  # 3 is UDP fragmentation offload, which Linux dropped in 4.14 and we never ask for
GSO_ECN: Final = 0x80

TCP: Final = 6
UDP: Final = 17
FIN: Final = 0x01
PSH: Final = 0x08
CWR: Final = 0x80
MORE_FRAGMENTS_AND_OFFSET: Final = 0x3FFF

# Ours. 64 KiB at the smallest segment Linux lets a peer negotiate (net.ipv4.tcp_min_snd_mss, 48) are fewer.
MAX_SEGMENTS: Final = 1400

_IPV6_EXTENSIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination options: the ones TCP may follow
_HALFWORD: Final = struct.Struct("!H")
_WORD: Final = struct.Struct("!I")

# A run of packets inside one buffer: (start, length) of each. From `split` they come one after the other, and the
# buffer holds a packet only until the next is asked for.
Packets = Iterator[tuple[int, int]] | tuple[tuple[int, int], ...]


def payload_sum(view: memoryview, start: int, end: int) -> int:
    """Sum of the little-endian 16-bit words of view[start:end], congruent modulo 65535 but neither reduced nor small.

    In four parts, added: the remainder, the dearest step, then has a fourth of the digits to divide.
    """
    quarter = (end - start) // 4 & ~1
    one = start + quarter
    two = one + quarter
    three = two + quarter
    read = int.from_bytes
    return (
        read(view[start:one], "little")
        + read(view[one:two], "little")
        + read(view[two:three], "little")
        + read(view[three:end], "little")
    )


def word_sum(view: memoryview, start: int, end: int) -> int:
    """Sum of the big-endian 16-bit words of view[start:end] modulo 65535; an odd last byte counts as high byte."""
    return int.from_bytes(view[start:end], "little") * 256 % 65535


def pseudo_header_sum(view: memoryview, ip: int, protocol: int, length: int) -> int:
    """Of the TCP or UDP pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), not complemented, modulo 65535."""
    addresses = word_sum(view, ip + 12, ip + 20) if view[ip] >> 4 == 4 else word_sum(view, ip + 8, ip + 40)
    return (addresses + protocol + length) % 65535


def is_ip(frame: bytearray | memoryview, end: int) -> bool:
    """Whether frame[FRAME_HEADER:end] can be an IP packet: a version we know and room for its fixed header."""
    length = end - FRAME_HEADER
    return (length >= 20 and frame[FRAME_HEADER] >> 4 == 4) or (length >= 40 and frame[FRAME_HEADER] >> 4 == 6)


def split(frame: bytearray, view: memoryview, end: int) -> Packets | None:
    """The packets that the TUN frame in frame[:end] stands for, checksums complete; None if it contradicts itself.

    `view` is a memoryview of `frame`; the IP packet must have passed `is_ip`. The packets are made in place: a
    header is stamped in front of each payload, over the end of the payload before it. So nothing is copied, and a
    packet has to be used before the next one is asked for.
    """
    flags, gso_type, _, gso_size, csum_start, csum_offset = VIRTIO_NET_HEADER.unpack_from(frame)
    gso_type &= ~GSO_ECN
    if gso_type == GSO_NONE:
        if flags & NEEDS_CSUM and not _complete_checksum(frame, view, end, csum_start, csum_offset):
            return None
        return ((FRAME_HEADER, end - FRAME_HEADER),)
    # hdr_len is not read: on the forwarding path the kernel's figure is that of the device the packet came from.
    protocol = UDP if gso_type == GSO_UDP_L4 else TCP
    version = frame[FRAME_HEADER] >> 4
    transport = FRAME_HEADER + csum_start
    if (
        not flags & NEEDS_CSUM
        or gso_size == 0
        or gso_type not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4)
        or (gso_type == GSO_TCPV4 and version != 4)
        or (gso_type == GSO_TCPV6 and version != 6)
        or csum_offset != (16 if protocol == TCP else 6)
        or transport + (20 if protocol == TCP else 8) > end
        or not _leads_to(frame, end, csum_start, protocol)
    ):
        return None
    header = (transport + (frame[transport + 12] >> 4) * 4 if protocol == TCP else transport + 8) - FRAME_HEADER
    payload = end - FRAME_HEADER - header
    if header < csum_start + (20 if protocol == TCP else 8) or payload <= 0 or payload > MAX_SEGMENTS * gso_size:
        return None
    return _segments(frame, view, end, csum_start, header, gso_size, protocol)


def count_packets(frame: bytearray, end: int) -> int:
    """At least as many as `split` will make of this frame."""
    _, gso_type, _, gso_size, _, _ = VIRTIO_NET_HEADER.unpack_from(frame)
    return 1 if gso_type == GSO_NONE or gso_size == 0 else -(-(end - FRAME_HEADER) // gso_size)


def _complete_checksum(frame: bytearray, view: memoryview, end: int, csum_start: int, csum_offset: int) -> bool:
    start = FRAME_HEADER + csum_start
    field = start + csum_offset
    if csum_start < 20 or field + 2 > end:
        return False
    # The field holds the pseudo-header's sum already, so that it takes part in the sum as it is. A result of zero
    # is sent as all ones, which for UDP it must be (RFC 768) and for everything else it may be.
    _HALFWORD.pack_into(frame, field, 65535 - word_sum(view, start, end))
    return True


def _leads_to(frame: bytearray, end: int, csum_start: int, protocol: int) -> bool:
    """Whether the IP headers, read in order, end at `csum_start` with `protocol`, and the lengths are right."""
    ip = FRAME_HEADER
    length = end - ip
    if frame[ip] >> 4 == 4:
        (total,) = _HALFWORD.unpack_from(frame, ip + 2)
        (fragment,) = _HALFWORD.unpack_from(frame, ip + 6)
        return (
            csum_start == (frame[ip] & 15) * 4
            and csum_start >= 20
            and frame[ip + 9] == protocol
            and total == length
            and not fragment & MORE_FRAGMENTS_AND_OFFSET
        )
    (payload,) = _HALFWORD.unpack_from(frame, ip + 4)
    if payload + 40 != length:
        return False
    kind, at = frame[ip + 6], 40
    while kind in _IPV6_EXTENSIONS and at + 8 <= csum_start:
        kind, at = frame[ip + at], at + (frame[ip + at + 1] + 1) * 8
    return kind == protocol and at == csum_start


def _segments(  # noqa: PLR0917
    frame: bytearray, view: memoryview, end: int, csum_start: int, header: int, gso_size: int, protocol: int
) -> Iterator[tuple[int, int]]:
    """Cut a checked superpacket; `header` counts from the IP header to the payload, `csum_start` to the transport."""
    ip = FRAME_HEADER
    is_v4 = frame[ip] >> 4 == 4
    template = bytes(view[ip : ip + header])
    addresses = pseudo_header_sum(view, ip, protocol, 0)
    pack_word, pack_half = _WORD.pack_into, _HALFWORD.pack_into
    if is_v4:
        (identification,) = _HALFWORD.unpack_from(frame, ip + 4)
        # The header's sum without what differs from packet to packet: length, identification and itself.
        ip_sum = sum(struct.unpack_from(f"!6x{csum_start // 2 - 3}H", frame, ip))
        ip_sum += _HALFWORD.unpack_from(frame, ip)[0] - _HALFWORD.unpack_from(frame, ip + 10)[0]
    if protocol == TCP:
        (sequence,) = _WORD.unpack_from(frame, ip + csum_start + 4)
        flags = frame[ip + csum_start + 13]
        first_flags, other_flags, last_flags = flags & ~(FIN | PSH), flags & ~(FIN | PSH | CWR), flags & ~CWR
        fixed = word_sum(view, ip + csum_start, ip + header)
        (seed,) = _HALFWORD.unpack_from(frame, ip + csum_start + 16)
        # Without sequence number, flags and checksum.
        fixed -= (sequence >> 16) + (sequence & 0xFFFF) + flags + seed
    else:
        fixed = word_sum(view, ip + csum_start, ip + csum_start + 4)  # the ports
    fixed += addresses
    first = ip + header
    transport_header = header - csum_start
    for payload in range(first, end, gso_size):
        stop = payload + gso_size
        if stop > end:  # noqa: PLR1730  (a call of min costs)
            stop = end
        start = payload - header
        frame[start:payload] = template
        transport = start + csum_start
        length = stop - start
        if is_v4:
            pack_word(frame, start + 2, length << 16 | identification)
            pack_half(frame, start + 10, 65535 - ((ip_sum + length + identification) % 65535 or 65535))
            identification = identification + 1 & 0xFFFF
        else:
            pack_half(frame, start + 4, length - 40)
        # The payload's sum is nearly all that splitting costs.
        total = payload_sum(view, payload, stop) % 65535 * 256 + fixed
        if protocol == TCP:
            now = last_flags if stop == end else other_flags
            if payload == first:
                now = flags if stop == end else first_flags
            pack_word(frame, transport + 4, sequence)
            frame[transport + 13] = now
            total = (total + sequence + now + transport_header + stop - payload) % 65535
            pack_half(frame, transport + 16, 65535 - (total or 65535))
            sequence = sequence + gso_size & 0xFFFFFFFF
        else:
            size = stop - payload + 8
            pack_half(frame, transport + 4, size)
            # The length counts twice, in the header and in the pseudo-header.
            pack_half(frame, transport + 6, 65535 - (total + size + size) % 65535)
        yield start, length
