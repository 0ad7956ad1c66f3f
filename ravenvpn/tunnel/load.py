"""Whether handshakes come in faster than we answer them (whitepaper §5.3: "under load").

As in the Linux kernel: under load from the moment an eighth of the queue is filled until a second after that was
last so. Only then does mac2 matter, and only then are cookies sent.
"""

from __future__ import annotations

from ravenvpn.dataplane.contract import MAX_DATAGRAMS

UNDER_LOAD_FROM = MAX_DATAGRAMS // 8
STAYS_FOR = 1.0  # seconds


class Load:
    def __init__(self) -> None:
        self._until = float("-inf")

    def observe(self, waiting: int, now: float) -> bool:
        """Told how many handshake messages wait; says whether we are under load."""
        if waiting >= UNDER_LOAD_FROM:
            self._until = now + STAYS_FOR
        return now < self._until
