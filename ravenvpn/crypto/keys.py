"""Curve25519 and preshared keys as values, and the only door to X25519.

A public key is an ordinary value. Secrets never show in a repr, compare in constant time and can be wiped, as far
as Python lets one: what we hold lies in a bytearray that `wipe` clears; a copy handed out as bytes lives until it is
collected. Nothing here draws random numbers; `generate` takes the source.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import ClassVar, Final, NoReturn, Self, final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ravenvpn.errors import ConfigError, MalformedMessage

KEY_BYTES = 32
_ZERO = bytes(KEY_BYTES)

# Static-static secrets kept per private key, the oldest goes; a peer beyond them costs a DH more per handshake.
MAX_REMEMBERED = 4096


def _decode_base64(text: str, kind: str) -> bytes:
    """wg's base64: 44 characters, the last one "=", and no bits set beyond the 256 of the key."""
    if len(text) != 44:
        raise ConfigError(f"a {kind} in base64 has 44 characters, not {len(text)}")
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ConfigError(f"this {kind} is not base64") from None
    if len(raw) != KEY_BYTES or base64.b64encode(raw).decode() != text:
        raise ConfigError(f"this {kind} is not {KEY_BYTES} bytes in canonical base64")
    return raw


def _decode_hex(text: str, kind: str) -> bytes:
    """The UAPI's form: 64 hexadecimal digits and nothing between them (`bytes.fromhex` would allow spaces)."""
    if len(text) != 2 * KEY_BYTES:
        raise ConfigError(f"a {kind} in hexadecimal has {2 * KEY_BYTES} digits, not {len(text)}")
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise ConfigError(f"this {kind} is not hexadecimal") from None


@final
class PublicKey:
    """A Curve25519 public key: 32 bytes (`raw`), any value. `str` gives wg's base64."""

    __slots__ = ("raw",)

    raw: Final[bytes]

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a public key has {KEY_BYTES} bytes, not {len(raw)}")
        self.raw = bytes(raw)

    @classmethod
    def from_base64(cls, text: str) -> Self:
        return cls(_decode_base64(text, "public key"))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        return cls(_decode_hex(text, "public key"))

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, PublicKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode()

    def __repr__(self) -> str:
        return f"PublicKey({str(self)!r})"


class _Secret:
    """32 bytes that must not leak: see the module's docstring."""

    __slots__ = ("_raw",)

    _kind: ClassVar[str]

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a {self._kind} has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = bytearray(raw)

    @classmethod
    def from_base64(cls, text: str) -> Self:
        return cls(_decode_base64(text, cls._kind))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        return cls(_decode_hex(text, cls._kind))

    @property
    def raw(self) -> bytes:
        """A copy, which cannot be wiped. ValueError once the key is wiped."""
        return bytes(self._held())

    def _held(self) -> bytearray:
        if not self._raw:
            raise ValueError(f"this {self._kind} was wiped")
        return self._raw

    def to_base64(self) -> str:
        return base64.b64encode(self.raw).decode()

    def to_hex(self) -> str:
        return self.raw.hex()

    def wipe(self) -> None:
        """Overwrite what this object holds; it is of no use afterwards. Safe to call twice."""
        self._raw[:] = bytes(len(self._raw))
        self._raw = bytearray()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self.raw)  # SipHash under the process's own key

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {self._kind} is neither copied nor pickled")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} hidden>"


@final
class PresharedKey(_Secret):
    """32 bytes mixed into a handshake; all zero is what Noise mixes in where there is none."""

    __slots__ = ()

    _kind = "preshared key"

    @classmethod
    def none(cls) -> Self:
        return cls(_ZERO)

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Self:
        return cls(random(KEY_BYTES))

    @property
    def is_none(self) -> bool:
        return hmac.compare_digest(self.raw, _ZERO)


@final
class PrivateKey(_Secret):
    """A Curve25519 private key, clamped (RFC 7748 §5) on the way in, as `wg` shows it. All zero is refused: it
    means "no key" wherever WireGuard is configured.
    """

    __slots__ = ("_openssl", "_public", "_remembered")

    _kind = "private key"

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        if hmac.compare_digest(self._raw, _ZERO):
            raise ConfigError("a private key of zeros is no key")
        self._raw[0] &= 248
        self._raw[31] = (self._raw[31] & 127) | 64
        # OpenSSL works out the public key when it loads a private one; that is half the cost of a DH, so once only.
        self._openssl: X25519PrivateKey | None = None
        self._public: PublicKey | None = None
        self._remembered: dict[PublicKey, bytearray] = {}

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Self:
        """A new key from 32 bytes of `random` (`os.urandom` outside tests)."""
        return cls(random(KEY_BYTES))

    @property
    def public(self) -> PublicKey:
        if self._public is None:
            self._public = PublicKey(self._loaded().public_key().public_bytes_raw())
        return self._public

    def agree(self, theirs: PublicKey) -> bytes:
        """X25519 with `theirs`: 32 secret bytes. MalformedMessage if they are all zero, as a point of low order
        makes them (whitepaper §5.4: abort)."""
        remembered = self._remembered.get(theirs)
        if remembered is not None:
            return bytes(remembered)
        ours = self._loaded()
        try:
            return ours.exchange(X25519PublicKey.from_public_bytes(theirs.raw))
        except ValueError:
            raise MalformedMessage("a public key of low order") from None

    def remember(self, theirs: PublicKey) -> None:
        """Keep `agree(theirs)`, wiped with this key or by `forget`.

        For static keys of configured peers only: every handshake with them needs it (the paper's §5.4.2, ss).
        Strangers must not be able to fill the memory.
        """
        if theirs not in self._remembered:
            secret = bytearray(self.agree(theirs))
            if len(self._remembered) >= MAX_REMEMBERED:
                self.forget(next(iter(self._remembered)))
            self._remembered[theirs] = secret

    @property
    def remembered(self) -> int:
        """How many secrets are kept."""
        return len(self._remembered)

    def forget(self, theirs: PublicKey) -> None:
        """Wipe what `remember` kept, if anything: the peer is gone."""
        secret = self._remembered.pop(theirs, None)
        if secret is not None:
            secret[:] = _ZERO

    def wipe(self) -> None:
        super().wipe()
        self._openssl = None  # OpenSSL cleanses its copy when it frees it
        for theirs in tuple(self._remembered):
            self.forget(theirs)

    def _loaded(self) -> X25519PrivateKey:
        if self._openssl is None:
            self._openssl = X25519PrivateKey.from_private_bytes(self._held())
        return self._openssl
