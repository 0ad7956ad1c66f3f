"""The AEAD suites a session may use, what is particular to each, and the only door to their ciphers.

Both suites take 32-byte keys, 12-byte nonces and append a 16-byte tag. Transport messages carry no associated data.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

__all__ = ["KEY_BYTES", "NONCE_BYTES", "TAG_BYTES", "Aead", "InvalidTag", "Suite", "cipher", "cpu_accelerates_aes"]

Buffer = bytes | bytearray | memoryview


class Suite(enum.Enum):
    """Value: the name in `Peer.spec.suites`. Both use 32-byte keys and 16-byte tags."""

    CHACHA20POLY1305 = "chacha20poly1305"
    AES256GCM = "aes256gcm"

    noise_name: bytes
    """Protocol name that starts the handshake hash (Noise specification §8)."""

    marker: int
    """First reserved byte of a type 1 message. Plain WireGuard demands 0 there and ignores anything else."""

    rekey_after_messages: int
    """An initiator that has sent this many messages under one keypair begins a new handshake."""

    reject_after_messages: int
    """No counter at or above this is sent or accepted."""

    nonce: Callable[[int], bytes]
    """Counter to 12-byte nonce: 4 zero bytes, then 64 bits in the order Noise §12 gives for the cipher."""


def _nonce_little_endian(counter: int) -> bytes:
    return b"\0\0\0\0" + counter.to_bytes(8, "little")


def _nonce_big_endian(counter: int) -> bytes:
    return b"\0\0\0\0" + counter.to_bytes(8, "big")


Suite.CHACHA20POLY1305.noise_name = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
Suite.CHACHA20POLY1305.marker = 0
Suite.CHACHA20POLY1305.nonce = _nonce_little_endian
# Whitepaper §6.1. The upper limit keeps a replay window's distance from the end, so that no counter can wrap.
Suite.CHACHA20POLY1305.rekey_after_messages = 2**60
Suite.CHACHA20POLY1305.reject_after_messages = 2**64 - 2**13 - 1

Suite.AES256GCM.noise_name = b"Noise_IKpsk2_25519_AESGCM_BLAKE2s"
Suite.AES256GCM.marker = 1
Suite.AES256GCM.nonce = _nonce_big_endian
# AES-GCM loses confidentiality with the number of blocks under one key. A message of 64 KiB is 2^12 blocks, so 2^29
# of them stay at 2^41 blocks: an advantage of 2^-46 by the bound σ²/2^128 that NIST SP 800-38D's limits rest on.
Suite.AES256GCM.rekey_after_messages = 2**28
Suite.AES256GCM.reject_after_messages = 2**29


class Aead(Protocol):
    """A keyed cipher of `cryptography`. The `_into` forms write to a buffer of exactly the right size, return
    the number of bytes written, and are what batches use. A wrong tag raises `InvalidTag`.
    """

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...

    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...

    def encrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: bytearray | memoryview
    ) -> int: ...

    def decrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: bytearray | memoryview
    ) -> int: ...


def cipher(suite: Suite, key: bytes) -> Aead:
    """The suite's cipher under a 32-byte key; ValueError for any other length (AESGCM alone would take 16 or 24)."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a {suite.value} key has {KEY_BYTES} bytes, not {len(key)}")
    return ChaCha20Poly1305(key) if suite is Suite.CHACHA20POLY1305 else AESGCM(key)


def cpu_accelerates_aes(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo's text shows AES *and* carry-less multiplication (GHASH) on every CPU listed.

    x86 calls them `aes` and `pclmulqdq` under `flags`, arm64 `aes` and `pmull` under `Features`. Without them
    AES-GCM is slower than ChaCha20-Poly1305, and its software form is hard to keep constant-time.
    """
    listed = [set(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)]
    return bool(listed) and all("aes" in cpu and cpu & {"pclmulqdq", "pmull"} for cpu in listed)
