"""Handshake messages as bytes and as values: types 1, 2 and 3 of the whitepaper's §5.4.

Everything is little endian and of fixed length. The three bytes after the type are reserved and zero, but for one
deviation: byte 1 of an initiation is the suite's marker (docs/protocol.md), which is zero for WireGuard's suite.
Parsers here raise MalformedMessage and nothing else, whatever the bytes. Type 4 belongs to the data plane.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ravenvpn.crypto.aead import Suite
from ravenvpn.errors import MalformedMessage

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_REPLY_BYTES: Final = 64

INITIATION_BODY_BYTES: Final = 108  # ephemeral 32, encrypted static 48, encrypted timestamp 28
RESPONSE_BODY_BYTES: Final = 48  # ephemeral 32, encrypted nothing 16

_INITIATION_HEAD = struct.Struct("<BBxxI")
_RESPONSE_HEAD = struct.Struct("<BxxxII")
_COOKIE_REPLY_HEAD = struct.Struct("<BxxxI")


@dataclass(frozen=True, slots=True)
class Initiation:
    """§5.4.2. `sender` is the initiator's index (u32), `body` the Noise message of 108 bytes."""

    sender: int
    suite: Suite
    body: bytes

    def pack(self) -> bytes:
        """The 116 bytes before mac1."""
        return _INITIATION_HEAD.pack(INITIATION, self.suite.marker, self.sender) + self.body

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) != INITIATION_BYTES or data[0] != INITIATION or data[2] or data[3]:
            raise MalformedMessage("not an initiation")
        suite = Suite.of_marker(data[1])
        if suite is None:
            raise MalformedMessage(f"an initiation with unknown suite marker {data[1]}")
        return cls(int.from_bytes(data[4:8], "little"), suite, data[8:116])


@dataclass(frozen=True, slots=True)
class Response:
    """§5.4.3. `sender` is the responder's index, `receiver` the initiator's, `body` the Noise message of 48 bytes."""

    sender: int
    receiver: int
    body: bytes

    def pack(self) -> bytes:
        """The 60 bytes before mac1."""
        return _RESPONSE_HEAD.pack(RESPONSE, self.sender, self.receiver) + self.body

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) != RESPONSE_BYTES or data[0] != RESPONSE or any(data[1:4]):
            raise MalformedMessage("not a response")
        return cls(int.from_bytes(data[4:8], "little"), int.from_bytes(data[8:12], "little"), data[12:60])


@dataclass(frozen=True, slots=True)
class CookieReply:
    """§5.4.7. `receiver` is the sender index of the message it answers; nonce 24 bytes, `sealed` 32."""

    receiver: int
    nonce: bytes
    sealed: bytes

    def pack(self) -> bytes:
        """All 64 bytes; a cookie reply carries no MACs."""
        return _COOKIE_REPLY_HEAD.pack(COOKIE_REPLY, self.receiver) + self.nonce + self.sealed

    @classmethod
    def parse(cls, data: bytes) -> Self:
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
    """The message a datagram claims to be; MalformedMessage if its type, length or reserved bytes are wrong."""
    parser = _PARSERS.get(data[0]) if data else None
    if parser is None:
        raise MalformedMessage("not a handshake message")
    return parser(data)
