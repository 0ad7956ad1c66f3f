"""Explicit congestion notification (ECN) through the tunnel: RFC 6040, normal mode. DSCP is copied in no direction.

Encapsulation copies the inner codepoint to the outer header. Decapsulation combines the two by RFC 6040 figure 4, so
that the inner TCP learns of congestion at a router between two regions.
"""

from __future__ import annotations

import struct
from typing import Final

# Codepoints of the two low bits of the DS field (RFC 3168 §5).
NOT_ECT: Final = 0  # the transport does not support ECN
ECT_1: Final = 1
ECT_0: Final = 2
CE: Final = 3  # congestion experienced

_HALFWORD = struct.Struct("!H")


def inner_codepoint(packet: bytearray | memoryview | bytes, start: int) -> int:
    """Return the ECN field of the IPv4 or IPv6 packet at `start`."""
    if packet[start] >> 4 == 4:
        return packet[start + 1] & 3
    return packet[start + 1] >> 4 & 3


def decapsulate(packet: bytearray, start: int, outer: int) -> bool:
    """Combine the outer codepoint into the inner packet at `start`; return False if the packet must be dropped.

    Only CE over an inner not-ECT packet drops it (RFC 6040 §4.2): a drop is the only congestion signal that such a
    transport understands. IPv4's header checksum is updated.
    """
    inner = inner_codepoint(packet, start)
    if outer == CE:
        if inner == NOT_ECT:
            return False
        combined = CE
    elif outer == ECT_1 and inner == ECT_0:
        combined = ECT_1
    else:
        return True
    if combined != inner:
        _set_codepoint(packet, start, combined)
    return True


def _set_codepoint(packet: bytearray, start: int, codepoint: int) -> None:
    if packet[start] >> 4 == 6:
        packet[start + 1] = packet[start + 1] & 0xCF | codepoint << 4
        return
    old = packet[start + 1]
    new = packet[start + 1] = old & 0xFC | codepoint
    # RFC 1624 §3: HC' = ~(~HC + ~m + m'), where m is the 16-bit word that holds the field.
    (checksum,) = _HALFWORD.unpack_from(packet, start + 10)
    total = (checksum ^ 0xFFFF) + (0xFFFF - old) + new
    total = (total & 0xFFFF) + (total >> 16)
    _HALFWORD.pack_into(packet, start + 10, ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF)
