"""IP packets and TUN frames for tests, built in a slow and obvious way, independent of the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

PLAIN = bytes(10)  # a virtio-net header without offload requests

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))


def internet_checksum(data: bytes) -> int:
    """Return the internet checksum of RFC 1071, computed word by word."""
    if len(data) % 2:
        data += b"\0"
    total = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def pseudo_header(source: str, destination: str, protocol: int, length: int) -> bytes:
    here, there = ip_address(source).packed, ip_address(destination).packed
    if len(here) == 4:
        return here + there + struct.pack("!BBH", 0, protocol, length)
    return here + there + struct.pack("!IHBB", length, 0, 0, protocol)


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    tos: int = 0,
    ttl: int = 64,
    identification: int = 0,
    fragment: int = 0x4000,
    options: bytes = b"",
    label: int = 0,
) -> bytes:
    """Return an IPv4 or IPv6 packet, depending on its addresses.

    `tos` is the DS field, `fragment` the flags and offset of IPv4.
    """
    here, there = ip_address(source).packed, ip_address(destination).packed
    if len(here) == 16:
        return struct.pack("!IHBB", 6 << 28 | tos << 20 | label, len(payload), protocol, ttl) + here + there + payload
    size = 20 + len(options)
    header = bytearray(
        struct.pack(
            "!BBHHHBBH", 0x40 | size // 4, tos, size + len(payload), identification, fragment, ttl, protocol, 0
        )
        + here
        + there
        + options
    )
    struct.pack_into("!H", header, 10, internet_checksum(bytes(header)))
    return bytes(header) + payload


def udp(
    source: str, destination: str, payload: bytes = b"", *, ports: tuple[int, int] = (1000, 2000), **more
) -> bytes:
    segment = bytearray(struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload)
    checksum = internet_checksum(pseudo_header(source, destination, 17, len(segment)) + segment) or 0xFFFF
    struct.pack_into("!H", segment, 6, checksum)
    return ip(source, destination, 17, bytes(segment), **more)


def tcp(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (1000, 2000),
    sequence: int = 1,
    ack: int = 1,
    flags: int = ACK,
    window: int = 500,
    tcp_options: bytes = b"",
    **more,
) -> bytes:
    offset = 5 + len(tcp_options) // 4
    segment = bytearray(
        struct.pack("!HHIIBBHHH", *ports, sequence, ack, offset << 4, flags, window, 0, 0) + tcp_options + payload
    )
    struct.pack_into(
        "!H", segment, 16, internet_checksum(pseudo_header(source, destination, 6, len(segment)) + segment)
    )
    return ip(source, destination, 6, bytes(segment), **more)


@dataclass(frozen=True)
class VirtioHeader:
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        return struct.pack(
            "=BBHHHH", self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
        )

    @classmethod
    def of(cls, frame: bytes) -> VirtioHeader:
        return cls(*struct.unpack_from("=BBHHHH", frame))


def superpacket(packet: bytes, gso_size: int, **changes: int) -> bytes:
    """Return the TUN frame of the kernel for this packet: its checksum field holds the pseudo-header's sum."""
    is_v4 = packet[0] >> 4 == 4
    transport = (packet[0] & 15) * 4 if is_v4 else 40
    protocol = packet[9] if is_v4 else packet[6]
    source, destination = (packet[12:16], packet[16:20]) if is_v4 else (packet[8:24], packet[24:40])
    seed = 0xFFFF ^ internet_checksum(
        pseudo_header(str(ip_address(source)), str(ip_address(destination)), protocol, len(packet) - transport)
    )
    offset = 16 if protocol == 6 else 6
    body = bytearray(packet)
    struct.pack_into("!H", body, transport + offset, seed)
    header = {
        "flags": 1,
        "gso_type": 5 if protocol == 17 else 1 if is_v4 else 4,
        "hdr_len": 0xBAD,  # wrong on the forwarding path, so the code must not use it
        "gso_size": gso_size,
        "csum_start": transport,
        "csum_offset": offset,
    }
    return VirtioHeader(**(header | changes)).pack() + bytes(body)


def is_valid(packet: bytes) -> bool:
    """Recompute lengths and checksums of a TCP or UDP packet without extension headers."""
    is_v4 = packet[0] >> 4 == 4
    transport = (packet[0] & 15) * 4 if is_v4 else 40
    protocol = packet[9] if is_v4 else packet[6]
    total = struct.unpack_from("!H", packet, 2 if is_v4 else 4)[0] + (0 if is_v4 else 40)
    if total != len(packet) or (is_v4 and internet_checksum(packet[:transport])):
        return False
    source, destination = (packet[12:16], packet[16:20]) if is_v4 else (packet[8:24], packet[24:40])
    pseudo = pseudo_header(str(ip_address(source)), str(ip_address(destination)), protocol, len(packet) - transport)
    if protocol == 17 and struct.unpack_from("!H", packet, transport + 4)[0] != len(packet) - transport:
        return False
    return internet_checksum(pseudo + packet[transport:]) == 0


def apart(frame: bytes) -> list[bytes]:
    """Split a frame written to the TUN into its packets, as the kernel does.

    One difference: UDP packets with DF keep the IPv4 ID of the first. Receivers ignore it (RFC 6864).
    """
    header, packet = VirtioHeader.of(frame), frame[10:]
    if header.gso_type == 0:
        return [packet]
    transport, is_tcp = header.csum_start, header.csum_offset == 16
    source, destination = (packet[12:16], packet[16:20]) if transport == 20 else (packet[8:24], packet[24:40])
    addresses = (str(ip_address(source)), str(ip_address(destination)))
    payload, pieces = packet[header.hdr_len :], []
    for at in range(0, len(payload), header.gso_size):
        data = payload[at : at + header.gso_size]
        body = bytearray(packet[transport : header.hdr_len] + data)
        if is_tcp:
            struct.pack_into("!I", body, 4, (struct.unpack_from("!I", body, 4)[0] + at) & 0xFFFFFFFF)
            if at + header.gso_size < len(payload):
                body[13] &= ~(PSH | FIN)
        else:
            struct.pack_into("!H", body, 4, len(body))
        struct.pack_into("!H", body, header.csum_offset, 0)
        checksum = internet_checksum(pseudo_header(*addresses, 6 if is_tcp else 17, len(body)) + body)
        struct.pack_into("!H", body, header.csum_offset, checksum if is_tcp else checksum or 0xFFFF)
        head = bytearray(packet[:transport])
        if transport == 20:
            struct.pack_into("!H", head, 2, 20 + len(body))
            if is_tcp or not head[6] & 0x40:
                identification = struct.unpack_from("!H", head, 4)[0] + at // header.gso_size
                struct.pack_into("!H", head, 4, identification & 0xFFFF)
            struct.pack_into("!H", head, 10, 0)
            struct.pack_into("!H", head, 10, internet_checksum(bytes(head)))
        else:
            struct.pack_into("!H", head, 4, len(body))
        pieces.append(bytes(head + body))
    return pieces
