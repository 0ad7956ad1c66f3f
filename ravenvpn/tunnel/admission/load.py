"""Whether handshakes come in faster than we answer them, and how much of our time they get then (whitepaper §5.3).

As in the Linux kernel: under load from the moment an eighth of the queue is filled until a second after that was
last so. Only then does mac2 matter, and only then are cookies sent.
"""

from __future__ import annotations

from typing import Final

from ravenvpn.dataplane.contract import MAX_DATAGRAMS

UNDER_LOAD_FROM: Final = MAX_DATAGRAMS // 8
STAYS_FOR: Final = 1.0  # seconds

# Ours. One loop moves packets and shakes hands, and whoever knows our public key can have us shake hands as fast as
# the queue is emptied, under load or not. So handshakes get a share: 200 a second are 12 % of a core at 0.6 ms each,
# and what a thousand peers that retry every five seconds ask for. The burst is 40 ms of work.
HANDSHAKES_PER_SECOND: Final = 200.0
BURST: Final = 64.0
# What turning a message away costs, beside a handshake: a cookie reply is two hashes, one XChaCha20 and a send, a
# sixteenth, and as much again in the kernel, which carries it to whoever it may be.
REFUSAL: Final = 1 / 8


class UnderLoad:
    def __init__(self) -> None:
        self._until = float("-inf")

    def observe(self, waiting: int, now: float) -> bool:
        """Told how many handshake messages wait; says whether we are under load."""
        if waiting >= UNDER_LOAD_FROM:
            self._until = now + STAYS_FOR
        return now < self._until


class Pace:
    """A token bucket of handshakes' worth of work."""

    def __init__(self, rate: float = HANDSHAKES_PER_SECOND, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, float("-inf")

    def available(self, now: float) -> float:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        return self._tokens

    def spend(self, handshakes: float) -> None:
        self._tokens -= handshakes

    def resumes(self) -> float:
        """When there is enough for another handshake; not later than any instant at which there is enough now."""
        return self._at + max(0.0, 1.0 - self._tokens) / self._rate
