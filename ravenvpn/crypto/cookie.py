"""mac1, mac2 and cookie replies: what keeps handshakes cheap for us and dear for a flood.

Whitepaper §5.3, §5.4.4 and §5.4.7. A handshake message ends in mac1 (16 bytes, made with the receiver's public key:
proof that the sender knows it) and mac2 (16 bytes, made with a cookie: proof that the sender owns its address).
`CookieChecker` is the receiving side, one per static key of ours; `CookieStamper` the sending side, one per peer.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from typing import final

from ravenvpn.crypto.aead import InvalidTag, open_xchacha, seal_xchacha
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.errors import MalformedMessage

MAC_BYTES = 16
MACS_BYTES = 2 * MAC_BYTES  # at the end of an initiation and of a response
COOKIE_REPLY_TYPE = b"\x03\0\0\0"
COOKIE_REPLY_BYTES = 64  # type 4, receiver index 4, nonce 24, encrypted cookie 32

# Whitepaper §5.4.7: a cookie's secret changes every two minutes. Seconds.
COOKIE_REFRESH_TIME = 120.0
# The Linux kernel stops using a cookie this much earlier, since it travels and the secret may be older. Seconds.
COOKIE_LATENCY = 5.0

_NO_MAC = bytes(MAC_BYTES)


def _hash(label: bytes, key: PublicKey) -> bytes:
    return hashlib.blake2s(label + key.raw).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, digest_size=MAC_BYTES, key=key).digest()


def packed_source(host: str, port: int) -> bytes:
    """Return the source a cookie is bound to: 4 or 16 address bytes and the port, network byte order, no zone."""
    # (A flood has many of them, and `ip_address` tries IPv4 and IPv6 by turns.)
    address = ipaddress.IPv6Address(host) if ":" in host else ipaddress.IPv4Address(host)
    return address.packed + port.to_bytes(2, "big")


@final
class CookieChecker:
    """Checks MACs of messages to our static key `ours`, and makes cookie replies.

    `random` is asked for 32-byte secrets and 24-byte nonces. Messages are whole datagrams of type 1 or 2 and of the
    right length; that is the caller's check.
    """

    __slots__ = ("_cookie_key", "_mac1_key", "_random", "_refresh", "_secret", "_secret_born")

    def __init__(
        self, ours: PublicKey, random: Callable[[int], bytes], refresh_time: float = COOKIE_REFRESH_TIME
    ) -> None:
        self._mac1_key = _hash(b"mac1----", ours)
        self._cookie_key = _hash(b"cookie--", ours)
        self._random = random
        self._refresh = refresh_time
        self._secret = b""
        self._secret_born = 0.0

    def mac1_is_valid(self, message: bytes) -> bool:
        """Return whether the sender knows our public key. Check it before any DH; drop a wrong one silently."""
        end = len(message) - MACS_BYTES
        return hmac.compare_digest(_mac(self._mac1_key, message[:end]), message[end : end + MAC_BYTES])

    def mac2_is_valid(self, message: bytes, source: bytes, now: float) -> bool:
        """Return whether the sender received our cookie at `source` (see `packed_source`). Only under load."""
        end = len(message) - MAC_BYTES
        return hmac.compare_digest(_mac(self._cookie(source, now), message[:end]), message[end:])

    def reply(self, message: bytes, source: bytes, now: float) -> bytes:
        """Return the 64-byte cookie reply to a message whose mac1 is valid. Send it to the source of the message."""
        sender = message[4:8]
        mac1 = message[-MACS_BYTES:-MAC_BYTES]
        nonce = self._random(24)
        sealed = seal_xchacha(self._cookie_key, nonce, self._cookie(source, now), mac1)
        return COOKIE_REPLY_TYPE + sender + nonce + sealed

    def _cookie(self, source: bytes, now: float) -> bytes:
        # A clock that went back makes a new secret too: `now` then says nothing about the old one's age.
        if not self._secret or not 0.0 <= now - self._secret_born < self._refresh:
            self._secret = self._random(32)
            self._secret_born = now
        return _mac(self._secret, source)


@final
class CookieStamper:
    """Adds mac1 and mac2 to messages to a peer whose static key is `theirs`, and stores its cookies."""

    __slots__ = ("_cookie", "_cookie_born", "_cookie_key", "_last_mac1", "_lifetime", "_mac1_key")

    def __init__(
        self, theirs: PublicKey, refresh_time: float = COOKIE_REFRESH_TIME, latency: float = COOKIE_LATENCY
    ) -> None:
        self._mac1_key = _hash(b"mac1----", theirs)
        self._cookie_key = _hash(b"cookie--", theirs)
        self._lifetime = refresh_time - latency
        self._last_mac1 = b""
        self._cookie = b""
        self._cookie_born = 0.0

    def stamp(self, head: bytes, now: float) -> bytes:
        """Return the message: `head` (all before mac1), mac1, and mac2, which is zeros without a fresh cookie."""
        self._last_mac1 = _mac(self._mac1_key, head)
        message = head + self._last_mac1
        if self._cookie and 0.0 <= now - self._cookie_born < self._lifetime:
            return message + _mac(self._cookie, message)
        self._cookie = b""
        return message + _NO_MAC

    def receive_reply(self, reply: bytes, now: float) -> None:
        """Store the cookie of a 64-byte reply to our last message; the next message carries it (§6.6: nothing is sent
        at once). MalformedMessage, and no change, if it answers no message of ours or does not authenticate.
        The reply proves nothing about the peer's address: do not roam on it.
        """
        if len(reply) != COOKIE_REPLY_BYTES or reply[:4] != COOKIE_REPLY_TYPE:
            raise MalformedMessage("no cookie reply")
        if not self._last_mac1:
            raise MalformedMessage("a cookie reply to nothing")
        try:
            cookie = open_xchacha(self._cookie_key, reply[8:32], reply[32:], self._last_mac1)
        except InvalidTag:
            raise MalformedMessage("a cookie reply that does not authenticate") from None
        self._cookie, self._cookie_born = cookie, now
        self._last_mac1 = b""  # one reply per message
