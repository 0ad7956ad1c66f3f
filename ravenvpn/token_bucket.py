"""Token bucket rate limiter: the one implementation for every rate limit in the package.

A bucket holds up to `burst` tokens and gains `rate` tokens per second. An action that costs tokens is allowed while
enough are left. The bucket reads no clock: callers pass `now`, always from the same clock of theirs. A clock that
steps back refills nothing for the time it repeats and does not block the bucket.
"""

from __future__ import annotations

import math


class TokenBucket:
    """One bucket, full at first. Not locked: use it from one thread. O(1) time, about 140 bytes."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float) -> None:
        """`rate` in tokens per second, `burst` in tokens; ValueError unless both are greater than zero."""
        if not (0 < rate < math.inf and 0 < burst < math.inf):
            raise ValueError(f"a token bucket needs a positive rate and burst, not {rate} and {burst}")
        self._rate = rate
        self._burst = burst
        self._tokens = burst  # below zero after a `spend` that cost more than was left
        self._updated = -math.inf  # the instant at which `_tokens` was true

    def tokens(self, now: float) -> float:
        """Return the number of tokens at `now`, after the refill; negative while the bucket is in debt."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated) * self._rate)
        self._updated = now
        return self._tokens

    def allow(self, now: float, cost: float = 1.0) -> bool:
        """Spend `cost` tokens and return True, or return False and spend nothing if fewer are left."""
        if self.tokens(now) < cost:
            return False
        self._tokens -= cost
        return True

    def spend(self, cost: float) -> None:
        """Take `cost` tokens unconditionally, for work whose cost is known only afterwards. Call `tokens` before."""
        self._tokens -= cost

    def ready_at(self, cost: float = 1.0) -> float:
        """Return the instant from which `cost` tokens are left: the last update or a later one, never an earlier one.

        Floats round: `allow` may fail at exactly this instant for less than a token's billionth.
        """
        return self._updated + max(0.0, cost - self._tokens) / self._rate

    def is_full(self, now: float) -> bool:
        """Return whether the bucket is full at `now`. A full bucket can be replaced by a new one without effect."""
        return self.tokens(now) >= self._burst
