"""Handshake messages on the wire, compared with those of an independent implementation, and random bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.handshake import messages

# Complete messages made by snow and the RustCrypto crates; see tests/crypto/vectors/README.md.
VECTORS = json.loads((Path(__file__).parent.parent / "crypto" / "vectors" / "exchange.json").read_text())
EXCHANGES = VECTORS["exchanges"]
INITIATION = bytes.fromhex(next(one["initiation"] for one in EXCHANGES if one["suite"] == "chacha20poly1305"))
AES_INITIATION = bytes.fromhex(next(one["initiation"] for one in EXCHANGES if one["suite"] == "aes256gcm"))
RESPONSE = bytes.fromhex(EXCHANGES[0]["response"])


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda one: f"{one['suite']}-{'psk' if one['psk'] else 'no-psk'}")
def test_messages_of_an_independent_implementation_are_parsed_and_packed_alike(exchange: dict[str, str]) -> None:
    initiation, response = bytes.fromhex(exchange["initiation"]), bytes.fromhex(exchange["response"])
    read = messages.parse(initiation)
    assert isinstance(read, messages.Initiation)
    assert read.suite.value == exchange["suite"]
    assert read.sender.to_bytes(4, "little") == initiation[4:8]
    assert read.pack() == initiation[:116]
    read_response = messages.parse(response)
    assert isinstance(read_response, messages.Response)
    assert read_response.receiver == read.sender
    assert read_response.pack() == response[:60]


def test_a_cookie_reply_is_parsed_and_packed_alike() -> None:
    message = messages.CookieReply(0x01020304, bytes(range(24)), bytes(range(100, 132)))
    packed = message.pack()
    assert packed[:8] == b"\x03\0\0\0\x04\x03\x02\x01"
    assert len(packed) == 64
    assert messages.parse(packed) == message


def test_the_suite_marker_is_the_first_reserved_byte_of_an_initiation_and_zero_in_plain_wireguard() -> None:
    assert INITIATION[:4] == b"\x01\0\0\0"
    assert AES_INITIATION[:4] == b"\x01\x01\0\0"
    assert messages.Initiation.parse(AES_INITIATION).suite is Suite.AES256GCM


@pytest.mark.parametrize("message", [INITIATION, RESPONSE, messages.CookieReply(7, bytes(24), bytes(32)).pack()])
@pytest.mark.parametrize("change", ["shorter", "longer", "byte 1", "byte 2", "byte 3", "type"])
def test_a_wrong_length_type_or_reserved_byte_is_malformed(message: bytes, change: str) -> None:
    altered = bytearray(message)
    match change:
        case "shorter":
            del altered[-1]
        case "longer":
            altered.append(0)
        case "type":
            altered[0] = 4
        case _:
            altered[int(change[-1])] = 2
    with pytest.raises(MalformedMessage):
        messages.parse(bytes(altered))


def test_an_empty_datagram_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        messages.parse(b"")


@given(st.binary(max_size=200) | st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 5), st.binary()))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = messages.parse(data)
    except MalformedMessage:
        return
    assert data.startswith(message.pack())
