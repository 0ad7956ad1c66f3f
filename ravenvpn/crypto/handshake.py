"""WireGuard's handshake, Noise_IKpsk2: the only door to `noiseprotocol`.

What passes here are Noise messages without WireGuard's header and MACs: an initiation of 108 bytes (ephemeral 32,
encrypted static 48, encrypted timestamp 28) and a response of 48 (ephemeral 32, encrypted nothing 16). Whitepaper
§5.4.2 and §5.4.3; Noise specification, revision 34.

A message that does not fit raises MalformedMessage and nothing else, and changes nothing: state that a message
could spoil is copied before the library reads it, because the library works in place.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
from collections.abc import Callable
from typing import Any, NamedTuple, final

from cryptography.exceptions import InvalidTag
from noise.backends.default.backend import DefaultNoiseBackend
from noise.functions.dh import DH
from noise.functions.hash import Hash
from noise.functions.keypair import KeyPair
from noise.noise_protocol import NoiseProtocol

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PrivateKey, PublicKey
from ravenvpn.crypto.tai64n import STAMP_BYTES
from ravenvpn.errors import ConfigError, MalformedMessage

PROLOGUE = b"WireGuard v1 zx2c4 Jason@zx2c4.com"  # the paper's Identifier, mixed in as Noise's prologue
INITIATION_BYTES = 108
RESPONSE_BYTES = 48


class TransportKeys(NamedTuple):
    """Result of a handshake: two 32-byte keys, named as seen from this side."""

    send: bytes
    receive: bytes

    def __repr__(self) -> str:
        return "<TransportKeys hidden>"


# A backend is where noiseprotocol takes its functions from. Ours replaces three of them: X25519 works on our key
# types, which inject the ephemeral key, remember static-static secrets and refuse all-zero results; BLAKE2s and its
# HMAC come from the standard library, where they cost a ninth and a half of what the default's objects do.


class _NoiseKey(KeyPair):
    """A KeyPair whose `private` and `public` are ours."""

    @classmethod
    def from_private_bytes(cls, private_bytes: bytes) -> _NoiseKey:
        return cls.ours(PrivateKey(private_bytes))

    @classmethod
    def from_public_bytes(cls, public_bytes: bytes) -> _NoiseKey:
        return cls.theirs(PublicKey(public_bytes))

    @classmethod
    def ours(cls, key: PrivateKey) -> _NoiseKey:
        return cls(private=key, public=key.public, public_bytes=key.public.raw)

    @classmethod
    def theirs(cls, key: PublicKey) -> _NoiseKey:
        return cls(public=key, public_bytes=key.raw)


class _X25519(DH):
    klass = _NoiseKey
    dhlen = 32

    def generate_keypair(self) -> _NoiseKey:
        raise AssertionError("ephemeral keys are injected, never generated here")

    def dh(self, private_key: PrivateKey, public_key: PublicKey) -> bytes:
        return private_key.agree(public_key)


class _Blake2s(Hash):
    fn = hashlib.blake2s
    hashlen = 32
    blocklen = 64

    def hash(self, data: bytes) -> bytes:
        return hashlib.blake2s(data).digest()


def hmac_blake2s(key: bytes, data: bytes, algorithm: Any = hashlib.blake2s) -> bytes:
    """HMAC (RFC 2104), from which Noise makes its HKDF; BLAKE2s's own keyed mode is another function."""
    return hmac.new(key, data, algorithm).digest()


def _protocol(suite: Suite) -> Any:
    backend = DefaultNoiseBackend()
    backend.diffie_hellmans["25519"] = _X25519
    backend.keypairs["25519"] = _NoiseKey
    backend.hashes["BLAKE2s"] = _Blake2s
    backend.hmac = hmac_blake2s
    return NoiseProtocol(suite.noise_name, backend)


_PROTOCOLS = {suite: _protocol(suite) for suite in Suite}


def _begin(suite: Suite, initiator: bool, **keys: _NoiseKey) -> Any:
    """A HandshakeState before its first message. The protocol's parsed name and functions are shared; what a
    handshake changes is its own. Hashing prologue and responder's key anew takes about a microsecond, less than
    copying a prepared state would.
    """
    protocol = copy.copy(_PROTOCOLS[suite])
    protocol.initiator = initiator
    protocol.prologue = PROLOGUE
    protocol.keypairs = keys
    protocol.initialise_handshake_state()
    return _freed(protocol.handshake_state)


def _freed(state: Any) -> Any:
    """Cut the library's cycle (its protocol object points back at the handshake), so that a handshake's secrets go
    when the last reference goes, without waiting for the collector, however many messages a flood brings."""
    state.noise_protocol.handshake_state = state.noise_protocol.symmetric_state = None
    return state


def _copied(state: Any) -> Any:
    """The same handshake at the same point, sharing nothing that reading a message writes to."""
    twin = copy.copy(state)
    twin.noise_protocol = protocol = copy.copy(state.noise_protocol)
    twin.message_patterns = list(state.message_patterns)
    twin.symmetric_state = symmetric = copy.copy(state.symmetric_state)
    symmetric.noise_protocol = protocol
    symmetric.cipher_state = protocol.cipher_state_handshake = copy.copy(symmetric.cipher_state)
    symmetric.cipher_state.cipher = copy.copy(symmetric.cipher_state.cipher)
    return twin


def _read(state: Any, body: bytes) -> bytes:
    payload = bytearray()
    try:
        state.read_message(body, payload)
    except InvalidTag:
        raise MalformedMessage("does not authenticate") from None
    return bytes(payload)


def _finish(state: Any, psk: PresharedKey | None, message: Callable[[], object]) -> TransportKeys:
    """Write or read (`message`) what ends the handshake, and take the session's keys."""
    protocol = state.noise_protocol
    protocol.psks = [(psk or PresharedKey.none()).raw]
    protocol.handshake_state, protocol.symmetric_state = state, state.symmetric_state  # Split() looks for them
    try:
        message()
    finally:
        _freed(state)
    return TransportKeys(send=protocol.cipher_state_encrypt.k, receive=protocol.cipher_state_decrypt.k)


@final
class PendingInitiation:
    """An initiation on its way, waiting for its response. Holds the ephemeral key until it is finished or wiped."""

    __slots__ = ("_state", "suite")

    def __init__(self, state: Any, suite: Suite) -> None:
        self._state = state
        self.suite = suite

    def finish(self, body: bytes, psk: PresharedKey | None = None) -> TransportKeys:
        """Read the 48-byte response. MalformedMessage leaves everything as it was, so that the right response still
        works; success wipes the handshake, and a second response is refused."""
        if self._state is None:
            raise MalformedMessage("this handshake is over")
        if len(body) != RESPONSE_BYTES:
            raise MalformedMessage(f"a response has {RESPONSE_BYTES} bytes, not {len(body)}")
        twin = _copied(self._state)
        keys = _finish(twin, psk, lambda: _read(twin, bytes(body)))
        self.wipe()
        return keys

    def wipe(self) -> None:
        """Give up: the ephemeral key goes, and no response can be read any more."""
        if self._state is not None:
            self._state.e.private.wipe()
            self._state = None


def initiate(
    ours: PrivateKey,
    theirs: PublicKey,
    suite: Suite,
    timestamp: bytes,
    ephemeral: PrivateKey,
) -> tuple[bytes, PendingInitiation]:
    """The 108-byte initiation to `theirs`, and what is needed to read its response.

    `timestamp` is 12 bytes of TAI64N; `ephemeral` is fresh, belongs to this handshake from here on and is wiped
    with it. A preshared key enters with the response only (psk2). ConfigError if `theirs` is of low order:
    such a key may be configured, but nothing can be sent to it.
    """
    if len(timestamp) != STAMP_BYTES:
        raise ValueError(f"a timestamp has {STAMP_BYTES} bytes, not {len(timestamp)}")
    state = _begin(suite, True, s=_NoiseKey.ours(ours), e=_NoiseKey.ours(ephemeral), rs=_NoiseKey.theirs(theirs))
    body = bytearray()
    try:
        ours.remember(theirs)
        state.write_message(timestamp, body)
    except MalformedMessage:
        raise ConfigError(f"public key {theirs} is a point of low order, no secret can be shared with it") from None
    return bytes(body), PendingInitiation(state, suite)


@final
class ReceivedInitiation:
    """An initiation that authenticates: who sent it (`static`) and when (`timestamp`, 12 bytes).

    Look at both before `respond`: an unknown peer, an old timestamp or a flood is dropped by dropping this.
    """

    __slots__ = ("_ours", "_state", "static", "suite", "timestamp")

    def __init__(self, ours: PrivateKey, state: Any, suite: Suite, timestamp: bytes) -> None:
        self._ours = ours
        self._state = state
        self.suite = suite
        self.static: PublicKey = state.rs.public
        self.timestamp = timestamp

    def respond(self, psk: PresharedKey | None, ephemeral: PrivateKey) -> tuple[bytes, TransportKeys]:
        """The 48-byte response and the keys; once only (RuntimeError), or two sessions would share an ephemeral.

        `ephemeral` is fresh and is wiped.
        """
        state, self._state = self._state, None
        if state is None:
            raise RuntimeError("an initiation is answered once")
        self._ours.remember(self.static)
        state.e = _NoiseKey.ours(ephemeral)
        body = bytearray()
        keys = _finish(state, psk, lambda: state.write_message(b"", body))
        ephemeral.wipe()
        return bytes(body), keys


def receive_initiation(ours: PrivateKey, body: bytes, suite: Suite) -> ReceivedInitiation:
    """Read a 108-byte initiation to our static key. MalformedMessage if it is none.

    Check mac1 first: this costs one DH, and a second one for a peer that was never answered or called before.
    """
    if len(body) != INITIATION_BYTES:
        raise MalformedMessage(f"an initiation has {INITIATION_BYTES} bytes, not {len(body)}")
    state = _begin(suite, False, s=_NoiseKey.ours(ours))
    return ReceivedInitiation(ours, state, suite, timestamp=_read(state, bytes(body)))
