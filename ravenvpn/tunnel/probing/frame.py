"""The probe's frame and the packet around it (docs/protocol.md): what two ravenvpn nodes say to each other inside
their tunnel, on port 10277 between their tunnel addresses.

Parsers raise MalformedMessage and nothing else. All numbers are in network byte order.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, NamedTuple, Self

from ravenvpn.errors import MalformedMessage
from ravenvpn.overhead import IPV6_HEADER, MIN_IPV6_MTU, UDP_HEADER

VERSION: Final = 1
PORT: Final = 10277

_HEADER: Final = struct.Struct("!BBHIIQQQI")
_EXTENSION: Final = struct.Struct("!HH")
_VERDICT: Final = struct.Struct("!QB")

HEADER_BYTES: Final = _HEADER.size  # 40
MAX_FRAME_BYTES: Final = MIN_IPV6_MTU - IPV6_HEADER - UDP_HEADER  # fits the smallest MTU of IPv6; padding not counted
MAX_VERDICTS: Final = 128

OVERHEAD_BYTES: Final = IPV6_HEADER + UDP_HEADER
MAX_PACKET_BYTES: Final = IPV6_HEADER + 0xFFFF

_VERDICTS: Final = 1  # extension types
_SIZE: Final = 2

_UDP: Final = 17
_HOP_LIMIT: Final = 64


class ProbeKind(enum.IntEnum):
    REQUEST = 1
    REPLY = 2


_KINDS: Final = {kind.value for kind in ProbeKind}


class Forwarding(enum.IntEnum):
    """Whether traffic is carried for a subject."""

    UNKNOWN = 0
    FORWARDS = 1
    DOES_NOT = 2


class ForwardingVerdict(NamedTuple):
    """Whether the sender carries traffic for `subject`, the 64-bit hash of a node's name (docs/protocol.md)."""

    subject: int
    forwarding: Forwarding


_FORWARDINGS: Final = {forwarding.value for forwarding in Forwarding}


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame. `session` is drawn when a prober begins, so that a reply to its predecessor is not taken for one
    to it; `sent_ns` is the requester's clock, echoed and opaque to the other end; `held_ns` how long a reply was
    held back; `role` (u32) and `epoch` (u64) are the sender's, their meaning is the mesh's."""

    kind: ProbeKind
    sequence: int
    session: int
    sent_ns: int
    held_ns: int = 0
    epoch: int = 0
    role: int = 0
    verdicts: tuple[ForwardingVerdict, ...] = ()
    size: int = 0  # in a reply to an MTU probe: how many bytes the inner packet had on arrival

    def pack(self, pad_to: int = 0) -> bytes:
        """The frame, with zeros behind it up to `pad_to` bytes."""
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
        """A frame and the padding behind it. Unknown extensions are skipped, an unknown version is not ours."""
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
                raise MalformedMessage("a probe with half an extension")
            what, extent = _EXTENSION.unpack_from(data, at)
            at += _EXTENSION.size
            value = data[at : at + extent]
            at += extent
            if at > length:
                raise MalformedMessage("a probe whose extension leaves it")
            if what == _VERDICTS:
                verdicts = _parse_verdicts(value)
            elif what == _SIZE:
                if extent != 4:
                    raise MalformedMessage("a probe with a size that is none")
                size = int.from_bytes(value, "big")
        return cls(ProbeKind(kind), sequence, session, sent_ns, held_ns, epoch, role, verdicts, size)


def _parse_verdicts(value: bytes) -> tuple[ForwardingVerdict, ...]:
    if len(value) % _VERDICT.size or len(value) > MAX_VERDICTS * _VERDICT.size:
        raise MalformedMessage("a probe with verdicts that are none")
    # What a later version may say about forwarding, this one does not know.
    return tuple(
        ForwardingVerdict(subject, Forwarding(state if state in _FORWARDINGS else Forwarding.UNKNOWN))
        for subject, state in _VERDICT.iter_unpack(value)
    )


class ProbePacket(NamedTuple):
    source: IPv6Address
    destination: IPv6Address
    payload: bytes


def wrap(packet: ProbePacket) -> bytes:
    """The whole inner packet: IPv6 (RFC 8200 §3), UDP with its checksum, both ports 10277."""
    length = UDP_HEADER + len(packet.payload)
    source, destination = packet.source.packed, packet.destination.packed
    udp = struct.pack("!HHH", PORT, PORT, length)
    # RFC 8200 §8.1: over IPv6 the checksum is not optional, and one of zero is sent as all ones.
    checksum = _checksum(source, destination, udp + b"\0\0" + packet.payload) or 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, length, _UDP, _HOP_LIMIT) + source + destination
    return header + udp + checksum.to_bytes(2, "big") + packet.payload


def unwrap(data: bytes) -> ProbePacket:
    """The opposite of `wrap`; MalformedMessage unless headers, ports, lengths and checksum are right."""
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
    """Of UDP over IPv6 (RFC 8200 §8.1): of everything, checksum included, it is zero."""
    data = source + destination + len(udp).to_bytes(4, "big") + _UDP.to_bytes(4, "big") + udp
    if len(data) % 2:
        data += b"\0"
    # A number of 16-bit digits is its digit sum modulo 2^16 − 1, which is what ones' complement addition makes.
    remainder = int.from_bytes(data, "big") % 0xFFFF
    return (0xFFFF - remainder) % 0xFFFF
