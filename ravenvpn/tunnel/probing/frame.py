"""Frame of the in-tunnel probe, and the IPv6 and UDP headers around it (docs/protocol.md §2).

Two ravenvpn nodes exchange probes between their tunnel addresses, from UDP port 10277 to port 10277. Parsers raise
MalformedMessage and nothing else, whatever the bytes. All numbers are in network byte order.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, NamedTuple, Self

from ravenvpn.errors import MalformedMessage
from ravenvpn.overhead import IPV6_HEADER, MIN_IPV6_MTU, UDP_HEADER

VERSION: Final = 1  # of the frame; receivers drop every other
PORT: Final = 10277  # UDP, source and destination

# version, kind, length, sequence, session, sent, held, epoch, role
_HEADER: Final = struct.Struct("!BBHIIQQQI")
_EXTENSION: Final = struct.Struct("!HH")  # type, length of the value
_VERDICT: Final = struct.Struct("!QB")  # subject, forwarding

HEADER_BYTES: Final = _HEADER.size  # 40
# A frame without its padding passes every IPv6 link.
MAX_FRAME_BYTES: Final = MIN_IPV6_MTU - IPV6_HEADER - UDP_HEADER
MAX_VERDICTS: Final = 128  # 1,152 bytes, which leaves room for the header and one more extension

OVERHEAD_BYTES: Final = IPV6_HEADER + UDP_HEADER  # around the frame
MAX_PACKET_BYTES: Final = IPV6_HEADER + 0xFFFF  # IPv6's payload length has 16 bits

# Extension types.
_VERDICTS: Final = 1
_SIZE: Final = 2

_UDP: Final = 17  # IP protocol number
_HOP_LIMIT: Final = 64  # any: the packet is never forwarded


class ProbeKind(enum.IntEnum):
    """Kind of a frame. Values are on the wire."""

    REQUEST = 1
    REPLY = 2


_KINDS: Final = {kind.value for kind in ProbeKind}


class Forwarding(enum.IntEnum):
    """Whether a node forwards traffic of a subject. Values are on the wire."""

    UNKNOWN = 0
    FORWARDS = 1
    DOES_NOT = 2


class ForwardingVerdict(NamedTuple):
    """Observation of another node by the sender: whether its packets get there."""

    subject: int  # the first 64 bits of the SHA-256 of the node's name
    forwarding: Forwarding


_FORWARDINGS: Final = {forwarding.value for forwarding in Forwarding}


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame. The mesh gives role, epoch and verdicts their meaning."""

    kind: ProbeKind
    sequence: int  # u32, one more for each request
    session: int  # u32, random for each prober: a reply to a prober from before a restart does not match
    sent_ns: int  # u64, the requester's clock in nanoseconds; a reply returns it unchanged
    held_ns: int = 0  # u64, nanoseconds between the request's arrival and the reply
    epoch: int = 0  # u64, the sender's
    role: int = 0  # u32, the sender's
    verdicts: tuple[ForwardingVerdict, ...] = ()
    size: int = 0  # in a reply to an MTU probe: bytes of the whole inner packet on arrival

    def pack(self, pad_to: int = 0) -> bytes:
        """Return the frame, padded with zeros to `pad_to` bytes. ValueError for too many verdicts."""
        extensions = b""
        if self.verdicts:
            if len(self.verdicts) > MAX_VERDICTS:
                raise ValueError(f"more than {MAX_VERDICTS} verdicts")
            value = b"".join(_VERDICT.pack(*verdict) for verdict in self.verdicts)
            extensions += _EXTENSION.pack(_VERDICTS, len(value)) + value
        if self.size:
            extensions += _EXTENSION.pack(_SIZE, 4) + self.size.to_bytes(4, "big")
        length = HEADER_BYTES + len(extensions)
        header = _HEADER.pack(
            VERSION,
            self.kind,
            length,
            self.sequence,
            self.session,
            self.sent_ns,
            self.held_ns,
            self.epoch,
            self.role,
        )
        return (header + extensions).ljust(pad_to, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a UDP payload: a frame and its padding. Unknown extensions are skipped.

        Raises MalformedMessage, for an unknown version too.
        """
        if len(data) < HEADER_BYTES:
            raise MalformedMessage("shorter than a probe")
        version, kind, length, sequence, session, sent_ns, held_ns, epoch, role = _HEADER.unpack_from(data)
        if version != VERSION:
            raise MalformedMessage(f"a probe of version {version}")
        if kind not in _KINDS or not HEADER_BYTES <= length <= min(len(data), MAX_FRAME_BYTES):
            raise MalformedMessage("a probe of unknown kind or wrong length")
        verdicts: tuple[ForwardingVerdict, ...] = ()
        size = 0
        at = HEADER_BYTES
        while at < length:
            if at + _EXTENSION.size > length:
                raise MalformedMessage("a probe with a truncated extension")
            extension, extent = _EXTENSION.unpack_from(data, at)
            at += _EXTENSION.size
            value = data[at : at + extent]
            at += extent
            if at > length:
                raise MalformedMessage("a probe with an extension beyond its end")
            if extension == _VERDICTS:
                verdicts = _parse_verdicts(value)
            elif extension == _SIZE:
                if extent != 4:
                    raise MalformedMessage("a probe with a size of wrong length")
                size = int.from_bytes(value, "big")
        return cls(ProbeKind(kind), sequence, session, sent_ns, held_ns, epoch, role, verdicts, size)


def _parse_verdicts(value: bytes) -> tuple[ForwardingVerdict, ...]:
    if len(value) % _VERDICT.size or len(value) > MAX_VERDICTS * _VERDICT.size:
        raise MalformedMessage("a probe with verdicts of wrong length")
    # A value of a later version counts as unknown.
    return tuple(
        ForwardingVerdict(subject, Forwarding(state if state in _FORWARDINGS else Forwarding.UNKNOWN))
        for subject, state in _VERDICT.iter_unpack(value)
    )


class ProbePacket(NamedTuple):
    """Inner addresses and UDP payload of a packet between probe ports."""

    source: IPv6Address
    destination: IPv6Address
    payload: bytes


def wrap(packet: ProbePacket) -> bytes:
    """Return the whole inner packet: IPv6 header (RFC 8200 §3), UDP header with checksum, payload."""
    length = UDP_HEADER + len(packet.payload)
    source, destination = packet.source.packed, packet.destination.packed
    udp = struct.pack("!HHH", PORT, PORT, length)
    # RFC 8200 §8.1: over IPv6 the checksum is not optional, and one of zero is sent as all ones.
    checksum = _checksum(source, destination, udp + b"\0\0" + packet.payload) or 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, length, _UDP, _HOP_LIMIT) + source + destination
    return header + udp + checksum.to_bytes(2, "big") + packet.payload


def unwrap(data: bytes) -> ProbePacket:
    """Parse what `wrap` makes. Raises MalformedMessage unless headers, ports, lengths and checksum are right."""
    if len(data) < OVERHEAD_BYTES or data[0] >> 4 != 6 or data[6] != _UDP:
        raise MalformedMessage("not UDP over IPv6")
    length = int.from_bytes(data[4:6], "big")
    source_port, port, udp_length, checksum = struct.unpack_from("!HHHH", data, IPV6_HEADER)
    if length != udp_length or length < UDP_HEADER or len(data) != IPV6_HEADER + length:
        raise MalformedMessage("lengths that contradict each other")
    if (source_port, port) != (PORT, PORT):
        raise MalformedMessage("not from probe port to probe port")
    if checksum == 0 or _checksum(data[8:24], data[24:40], data[IPV6_HEADER:]):
        raise MalformedMessage("a wrong checksum")
    return ProbePacket(IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[OVERHEAD_BYTES:])


def _checksum(source: bytes, destination: bytes, udp: bytes) -> int:
    """Return the checksum of UDP over IPv6 (RFC 8200 §8.1); zero if `udp` holds its correct checksum already."""
    data = source + destination + len(udp).to_bytes(4, "big") + _UDP.to_bytes(4, "big") + udp
    if len(data) % 2:
        data += b"\0"
    # The ones' complement sum of 16-bit words is the whole number modulo 2^16 − 1: one operation instead of a loop.
    remainder = int.from_bytes(data, "big") % 0xFFFF
    return (0xFFFF - remainder) % 0xFFFF
