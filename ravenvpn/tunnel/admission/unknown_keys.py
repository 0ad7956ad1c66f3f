"""Initiations from static keys that no peer has yet.

A node that joins a mesh initiates as soon as it knows its peers, which is often a moment before they know the node.
Its initiation is kept until it would be repeated anyway, so that it is answered in the instant at which its peer is
configured, not REKEY_TIMEOUT later. An initiation proves that its sender holds the key it names (Noise IK: es and ss
come before the timestamp), so nobody can replace the initiation of another key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ravenvpn.crypto.keys import PublicKey
from ravenvpn.tunnel.admission.handshake_filter import QueuedMessage

MAX_UNKNOWN_KEYS = 64  # initiations kept; a sender with many made-up keys pushes out the oldest


class _StoredInitiation(NamedTuple):
    message: QueuedMessage
    timestamp: bytes  # TAI64N, compared as bytes
    stored_at: float  # seconds


class UnknownKeys:
    """The newest initiation of each unknown key, at most MAX_UNKNOWN_KEYS of them."""

    def __init__(self, lifetime: float) -> None:
        """`lifetime` in seconds: how long an initiator waits for the response before it sends another initiation."""
        self._lifetime = lifetime
        self._initiations: dict[PublicKey, _StoredInitiation] = {}  # oldest first

    def store(self, static: PublicKey, timestamp: bytes, message: QueuedMessage, now: float) -> None:
        """Keep this initiation unless a newer one of the key is kept: an older one may be a replay."""
        before = self._initiations.get(static)
        if before is not None and timestamp <= before.timestamp:
            return
        self._initiations.pop(static, None)
        if len(self._initiations) >= MAX_UNKNOWN_KEYS:
            del self._initiations[next(iter(self._initiations))]
        self._initiations[static] = _StoredInitiation(message, timestamp, now)

    def pop(self, keys: Iterable[PublicKey], now: float) -> list[QueuedMessage]:
        """Remove the initiations of these keys; return those whose sender still waits for the response."""
        found = [self._initiations.pop(key) for key in keys if key in self._initiations]
        return [stored.message for stored in found if now < stored.stored_at + self._lifetime]

    def clear(self) -> None:
        """Remove all: our own key changed, or the interface went down."""
        self._initiations.clear()
