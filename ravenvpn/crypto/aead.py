"""AEAD suites of sessions and their properties; the only module that imports the libraries of their ciphers.

Both suites take 32-byte keys, 12-byte nonces and append a 16-byte tag. Transport messages carry no associated data.
"""

from __future__ import annotations

import enum
import re
from typing import Literal, Protocol, Self

import nacl.bindings
import nacl.exceptions
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ravenvpn.crypto.keys import KEY_BYTES

NONCE_BYTES = 12
TAG_BYTES = 16

__all__ = [
    "NONCE_BYTES",
    "TAG_BYTES",
    "Aead",
    "InvalidTag",
    "Suite",
    "cipher",
    "cpu_accelerates_aes",
    "open_xchacha",
    "seal_xchacha",
]

Buffer = bytes | bytearray | memoryview


@enum.unique
class Suite(enum.Enum):
    """Value: the name in `Peer.spec.suites`. Both use 32-byte keys and 16-byte tags."""

    # Limits: whitepaper §6.1. The upper one keeps a replay window's distance from the end: no counter can wrap.
    CHACHA20POLY1305 = (
        "chacha20poly1305",
        b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        0,
        2**60,
        2**64 - 2**13 - 1,
        "little",
    )
    # Limits: AES-GCM wears out with the blocks under one key. A message has at most 2^12 blocks (64 KiB), so 2^29 of
    # them stay below 2^41: a distinguisher's advantage of 2^-46 by the birthday bound σ²/2^128.
    AES256GCM = ("aes256gcm", b"Noise_IKpsk2_25519_AESGCM_BLAKE2s", 1, 2**28, 2**29, "big")

    _value_: str
    noise_name: bytes  # protocol name that starts the handshake hash (Noise §8)
    marker: int  # first reserved byte of a type 1 message; plain WireGuard answers to 0 only
    rekey_after_messages: int  # messages sent under one keypair after which a new handshake begins
    reject_after_messages: int  # no counter at or above this is sent or accepted
    _byte_order: Literal["little", "big"]

    def __new__(  # noqa: PLR0917  (an enum hands a member over as a tuple)
        cls,
        name: str,
        noise_name: bytes,
        marker: int,
        rekey_after_messages: int,
        reject_after_messages: int,
        byte_order: Literal["little", "big"],
    ) -> Self:
        """Make a member from its row; the first column becomes the enum value."""
        suite = object.__new__(cls)
        suite._value_ = name
        suite.noise_name = noise_name
        suite.marker = marker
        suite.rekey_after_messages = rekey_after_messages
        suite.reject_after_messages = reject_after_messages
        suite._byte_order = byte_order
        return suite

    @classmethod
    def of_marker(cls, marker: int) -> Suite | None:
        """Return the suite that a type 1 message asks for by its marker; None if no suite has it."""
        return _BY_MARKER.get(marker)

    def nonce(self, counter: int) -> bytes:
        """Return 12 bytes: 4 of zero, then the counter in 64 bits, in the order Noise §12 gives for the cipher."""
        return b"\0\0\0\0" + counter.to_bytes(8, self._byte_order)


_BY_MARKER = {suite.marker: suite for suite in Suite}


class Aead(Protocol):
    """A keyed cipher of `cryptography`. The `_into` forms write to a buffer of exactly the right size, return
    the number of bytes written, and are what batches use. A wrong tag raises `InvalidTag`.
    """

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes:
        """Return ciphertext and tag: 16 bytes more than `data`."""

    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes:
        """Return the plaintext: 16 bytes less than `data`."""

    def encrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: bytearray | memoryview
    ) -> int:
        """Write ciphertext and tag to `buf`, which has 16 bytes more than `data`."""

    def decrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: bytearray | memoryview
    ) -> int:
        """Write the plaintext to `buf`, which has 16 bytes less than `data`. `buf` is undefined after InvalidTag."""


def cipher(suite: Suite, key: bytes) -> Aead:
    """Return the suite's cipher under a 32-byte key. ValueError for other lengths; AESGCM alone would take 16."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a {suite.value} key has {KEY_BYTES} bytes, not {len(key)}")
    return ChaCha20Poly1305(key) if suite is Suite.CHACHA20POLY1305 else AESGCM(key)


def seal_xchacha(key: bytes, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Seal by XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) and return ciphertext and tag.

    `nonce` has 24 random bytes. WireGuard uses this cipher for cookie replies only (whitepaper §5.4.7).
    """
    return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, associated_data, nonce, key)


def open_xchacha(key: bytes, nonce: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    """Return the plaintext. InvalidTag if ciphertext, nonce or associated data were changed."""
    try:
        return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, associated_data, nonce, key)
    except nacl.exceptions.CryptoError:
        raise InvalidTag from None


def cpu_accelerates_aes(cpuinfo: str) -> bool:
    """Return whether /proc/cpuinfo's text shows AES *and* carry-less multiplication (GHASH) on every CPU listed.

    x86 calls them `aes` and `pclmulqdq` under `flags`, arm64 `aes` and `pmull` under `Features`. Without them
    AES-GCM is slower than ChaCha20-Poly1305, and its software form is hard to keep constant-time.
    """
    listed = [set(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)]
    return bool(listed) and all("aes" in cpu and cpu & {"pclmulqdq", "pmull"} for cpu in listed)
