"""Curve25519 and preshared keys as values; the only module that imports X25519.

A public key is an ordinary value. Secrets never show in a repr, compare in constant time and can be wiped, as far
as CPython allows: the secret lies in a bytearray that `wipe` clears; a copy returned as bytes lives until its memory
is reused. Nothing here draws random numbers; `generate` takes the source.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import ClassVar, Final, NoReturn, Self, final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ravenvpn.errors import ConfigError, MalformedMessage

KEY_BYTES = 32  # of public, private, preshared and transport keys alike
_ZERO = bytes(KEY_BYTES)

# Static-static secrets cached per private key. The oldest is dropped beyond that; a peer without a cached secret
# costs one X25519 more per handshake.
MAX_REMEMBERED = 4096


def _decode_base64(text: str, kind: str) -> bytes:
    """Return the key of wg's base64: 44 characters, the last one "=", and no bits set beyond the 256 of the key."""
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
    """Return the key of the UAPI's form: 64 hexadecimal digits, no spaces (`bytes.fromhex` would allow them)."""
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
        """Return the key from wg's base64, 44 characters. ConfigError if malformed or not canonical."""
        return cls(_decode_base64(text, "public key"))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Return the key from 64 hexadecimal digits, as the UAPI has it. ConfigError if malformed."""
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
        """Return the key from wg's base64. ConfigError, which does not quote the text, if malformed."""
        return cls(_decode_base64(text, cls._kind))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Return the key from 64 hexadecimal digits. ConfigError, which does not quote the text, if malformed."""
        return cls(_decode_hex(text, cls._kind))

    @property
    def raw(self) -> bytes:
        """Return a copy, which cannot be wiped. ValueError if the key was wiped."""
        return bytes(self._held())

    def _held(self) -> bytearray:
        if not self._raw:
            raise ValueError(f"this {self._kind} was wiped")
        return self._raw

    def to_base64(self) -> str:
        """Return wg's base64, which cannot be wiped: for key files and `wg showconf` only."""
        return base64.b64encode(self.raw).decode()

    def to_hex(self) -> str:
        """Return 64 hexadecimal digits, which cannot be wiped: for the UAPI only."""
        return self.raw.hex()

    def wipe(self) -> None:
        """Overwrite the secret. The object cannot be used afterwards; calling twice is safe."""
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
    """32 bytes mixed into a handshake. All zero stands for none, as in WireGuard (whitepaper §5.4)."""

    __slots__ = ()

    _kind = "preshared key"

    @classmethod
    def none(cls) -> Self:
        """Return the key of zeros: no preshared key."""
        return cls(_ZERO)

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Self:
        """Return a new key from 32 bytes of `random` (`os.urandom` outside tests)."""
        return cls(random(KEY_BYTES))

    @property
    def is_none(self) -> bool:
        """Whether this is the key of zeros. Compared in constant time."""
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
        """Return a new key from 32 bytes of `random` (`os.urandom` outside tests)."""
        return cls(random(KEY_BYTES))

    @property
    def public(self) -> PublicKey:
        """The public key, computed once. ValueError if the key was wiped before."""
        if self._public is None:
            self._public = PublicKey(self._loaded().public_key().public_bytes_raw())
        return self._public

    def agree(self, theirs: PublicKey) -> bytes:
        """Return X25519 of this key and `theirs`: 32 secret bytes.

        MalformedMessage if they are all zero, which a point of low order causes (whitepaper §5.4: abort).
        """
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
        Unknown keys are never cached: a flood of them would fill the memory.
        """
        if theirs not in self._remembered:
            secret = bytearray(self.agree(theirs))
            if len(self._remembered) >= MAX_REMEMBERED:
                self.forget(next(iter(self._remembered)))
            self._remembered[theirs] = secret

    @property
    def remembered(self) -> int:
        """Number of cached secrets."""
        return len(self._remembered)

    def forget(self, theirs: PublicKey) -> None:
        """Wipe the cached secret of `theirs`, if there is one: the peer was removed."""
        secret = self._remembered.pop(theirs, None)
        if secret is not None:
            secret[:] = _ZERO

    def wipe(self) -> None:
        """Wipe the key and every cached secret."""
        super().wipe()
        self._openssl = None  # OpenSSL cleanses its copy when it frees it
        for theirs in tuple(self._remembered):
            self.forget(theirs)

    def _loaded(self) -> X25519PrivateKey:
        if self._openssl is None:
            self._openssl = X25519PrivateKey.from_private_bytes(self._held())
        return self._openssl
