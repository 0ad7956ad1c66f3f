"""Make and parse inner packets, as seen by the process that holds the TUN."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58


class Packet(NamedTuple):
    source: str
    destination: str
    protocol: int
    payload: bytes  # transport header first

    @property
    def ports(self) -> tuple[int, int]:
        low, high = struct.unpack_from("!HH", self.payload)
        return low, high

    @property
    def mss(self) -> int | None:
        """The MSS option of a TCP segment."""
        at, end = 20, (self.payload[12] >> 4) * 4
        while at < end and self.payload[at]:
            if self.payload[at] == 1:
                at += 1
                continue
            if self.payload[at] == 2:
                return int(struct.unpack_from("!H", self.payload, at + 2)[0])
            at += self.payload[at + 1]
        return None


def parse(data: bytes) -> Packet:
    if data[0] >> 4 == 4:
        header = (data[0] & 15) * 4
        return Packet(str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20])), data[9], data[header:])
    return Packet(str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40])), data[6], data[40:])


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes = b"hello") -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return _with_header(source, destination, UDP, segment, 6)


def syn(source: str, destination: str, sport: int, dport: int, mss: int) -> bytes:
    segment = struct.pack("!HHIIBBHHHBBH", sport, dport, 1, 0, 6 << 4, 2, 65535, 0, 0, 2, 4, mss)
    return _with_header(source, destination, TCP, segment, 16)


def to(destination: str, protocol: int = UDP) -> Callable[[bytes], bool]:
    """Return a predicate that accepts packets to this address."""
    return lambda data: parse(data).destination == destination and parse(data).protocol == protocol


def _with_header(source: str, destination: str, protocol: int, segment: bytes, checksum_at: int) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    pseudo = addresses + struct.pack("!IBBBB", len(segment), 0, 0, 0, protocol)
    checksum = _sum(pseudo + segment) or 0xFFFF
    segment = segment[:checksum_at] + struct.pack("!H", checksum) + segment[checksum_at + 2 :]
    if ip_address(source).version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64) + addresses + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0) + addresses
    return header[:10] + struct.pack("!H", _sum(header)) + header[12:] + segment


def _sum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Capture:
    """Capture of all packets of a device in both directions. Create and read it inside its namespace."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(3))
        self._socket.bind((device, 3))

    def packets(self) -> list[Packet]:
        """Return the IP packets since the last call."""
        found: list[Packet] = []
        while True:
            try:
                data = self._socket.recv(65535)
            except BlockingIOError:
                return found
            if data[:1] and data[0] >> 4 in (4, 6) and len(data) >= 20:
                found.append(parse(data))

    def close(self) -> None:
        self._socket.close()
