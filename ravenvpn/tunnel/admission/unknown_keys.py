"""Initiations from keys that are nobody's yet.

A node that joins a mesh calls as soon as it knows whom, which is often a moment before the others have heard of it.
Its call is kept until it would be repeated anyway, so that it is answered the instant its peer is configured instead
of REKEY_TIMEOUT later. An initiation proves that its sender holds the key it names (Noise IK: es and ss come before
the timestamp), so nobody can push aside another's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ravenvpn.crypto.keys import PublicKey
from ravenvpn.tunnel.admission.queue import Waiting

MOST = 64  # of them; whoever makes up keys pushes out the oldest


class _Call(NamedTuple):
    waiting: Waiting
    stamp: bytes
    since: float


class UnknownKeys:
    def __init__(self, patience: float) -> None:
        """`patience` in seconds: how long a caller waits for an answer before it calls again."""
        self._patience = patience
        self._calls: dict[PublicKey, _Call] = {}  # oldest first

    def keep(self, static: PublicKey, stamp: bytes, waiting: Waiting, now: float) -> None:
        """The newest call of each key, by its own timestamp: an old one may have been recorded and sent again."""
        before = self._calls.get(static)
        if before is not None and stamp <= before.stamp:
            return
        self._calls.pop(static, None)
        if len(self._calls) >= MOST:
            del self._calls[next(iter(self._calls))]
        self._calls[static] = _Call(waiting, stamp, now)

    def take(self, keys: Iterable[PublicKey], now: float) -> list[Waiting]:
        """Calls made with one of these keys that are still waited for; they are kept no longer."""
        found = [self._calls.pop(key) for key in keys if key in self._calls]
        return [call.waiting for call in found if now < call.since + self._patience]

    def clear(self) -> None:
        self._calls.clear()
