"""Exponential back-off: the delay before the next attempt doubles with every failure, up to a limit.

Pure: no clock and no randomness of its own. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST = 1.0  # upper bound of the first delay
LIMIT = 30.0  # upper bound of every delay


def doubled(first: float, times: int, limit: float) -> float:
    """Return `first` doubled `times` times, at most `limit`."""
    # 2**32 times any delay in use is past any limit in use, and the exponent cannot overflow a float.
    return min(limit, first * 2.0 ** min(times, 32))


class Backoff:
    """Delays between attempts at one thing.

    With `random` each delay is drawn evenly between zero and the bound that doubles ("full jitter"): when a thousand
    clients lose a server at the same instant, their attempts are spread over that bound. Without it each delay is the
    bound itself, for retries on this host that need no spreading.
    """

    def __init__(
        self, random: Callable[[], float] | None = None, *, first: float = FIRST, limit: float = LIMIT
    ) -> None:
        """`random` draws evenly from 0.0 to 1.0; `first` bounds the first delay, `limit` every delay."""
        self._random, self._first, self._limit = random, first, limit
        self._failures = 0  # since the last reset

    def reset(self) -> None:
        """Start again at the first delay; to be called after a success."""
        self._failures = 0

    def delay(self, at_least: float = 0.0) -> float:
        """Count one failure and return the seconds until the next attempt.

        `at_least` is added in full, for a server that asked for it (HTTP Retry-After): the jitter still spreads the
        clients that were all given the same figure.
        """
        bound = doubled(self._first, self._failures, self._limit)
        self._failures += 1
        return at_least + (bound if self._random is None else bound * self._random())
