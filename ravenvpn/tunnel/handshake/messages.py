"""Handshake messages on the wire: types 1, 2 and 3 of the whitepaper's §5.4.

All numbers are little endian, all lengths fixed. The three bytes after the type are reserved and zero, with one
deviation: byte 1 of an initiation is the marker of the suite (docs/protocol.md §1), which is zero for WireGuard's
suite. Parsers raise MalformedMessage and nothing else, whatever the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ravenvpn.crypto.aead import Suite
from ravenvpn.errors import MalformedMessage

# Message types, byte 0. Type 4, transport data, belongs to the data plane.
INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3

# Whole messages. The first two end with mac1 and mac2, 16 bytes each.
INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_REPLY_BYTES: Final = 64

INITIATION_BODY_BYTES: Final = 108  # ephemeral 32, encrypted static 48, encrypted timestamp 28

_INITIATION_HEAD = struct.Struct("<BBxxI")  # type, suite marker, sender
_RESPONSE_HEAD = struct.Struct("<BxxxII")  # type, sender, receiver
_COOKIE_REPLY_HEAD = struct.Struct("<BxxxI")  # type, receiver


@dataclass(frozen=True, slots=True)
class Initiation:
    """Handshake initiation, type 1 (§5.4.2)."""

    sender: int  # index chosen by the initiator, u32
    suite: Suite
    body: bytes  # the Noise message, 108 bytes

    def pack(self) -> bytes:
        """Return the 116 bytes before mac1."""
        return _INITIATION_HEAD.pack(INITIATION, self.suite.marker, self.sender) + self.body

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a whole message of 148 bytes; mac1 and mac2 are not verified here."""
        if len(data) != INITIATION_BYTES or data[0] != INITIATION or data[2] or data[3]:
            raise MalformedMessage("not an initiation")
        suite = Suite.of_marker(data[1])
        if suite is None:
            raise MalformedMessage(f"an initiation with unknown suite marker {data[1]}")
        return cls(int.from_bytes(data[4:8], "little"), suite, data[8:116])


@dataclass(frozen=True, slots=True)
class Response:
    """Handshake response, type 2 (§5.4.3)."""

    sender: int  # index chosen by the responder, u32
    receiver: int  # `sender` of the initiation
    body: bytes  # the Noise message, 48 bytes: ephemeral 32, encrypted nothing 16

    def pack(self) -> bytes:
        """Return the 60 bytes before mac1."""
        return _RESPONSE_HEAD.pack(RESPONSE, self.sender, self.receiver) + self.body

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a whole message of 92 bytes; mac1 and mac2 are not verified here."""
        if len(data) != RESPONSE_BYTES or data[0] != RESPONSE or any(data[1:4]):
            raise MalformedMessage("not a response")
        return cls(int.from_bytes(data[4:8], "little"), int.from_bytes(data[8:12], "little"), data[12:60])


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Cookie reply, type 3 (§5.4.7)."""

    receiver: int  # `sender` of the message that it answers
    nonce: bytes  # 24 bytes, of XChaCha20-Poly1305
    sealed: bytes  # the encrypted cookie, 32 bytes

    def pack(self) -> bytes:
        """Return the whole message of 64 bytes; a cookie reply has no mac1 and mac2."""
        return _COOKIE_REPLY_HEAD.pack(COOKIE_REPLY, self.receiver) + self.nonce + self.sealed

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a whole message of 64 bytes; the cookie is not decrypted here."""
        if len(data) != COOKIE_REPLY_BYTES or data[0] != COOKIE_REPLY or any(data[1:4]):
            raise MalformedMessage("not a cookie reply")
        return cls(int.from_bytes(data[4:8], "little"), data[8:32], data[32:64])


Message = Initiation | Response | CookieReply

_PARSERS: Final[dict[int, Callable[[bytes], Message]]] = {
    INITIATION: Initiation.parse,
    RESPONSE: Response.parse,
    COOKIE_REPLY: CookieReply.parse,
}


def parse(data: bytes) -> Message:
    """Parse a datagram. Raises MalformedMessage if its type, length or reserved bytes are wrong."""
    parser = _PARSERS.get(data[0]) if data else None
    if parser is None:
        raise MalformedMessage("not a handshake message")
    return parser(data)
