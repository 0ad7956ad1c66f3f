"""Event loop lag: how late heartbeats run, kept long enough for a health probe to see a block.

A blocked loop handles no handshake, no probe and no timer, so /readyz reports it. Pure: the clock comes in as values.
"""

from __future__ import annotations

from collections import deque

# Seconds for which a late heartbeat counts. A kubelet probes every 10 s by default and systemd less often still; five
# seconds make a block visible to a probe that comes shortly after it without reporting it for ever.
MEMORY = 5.0


class LoopLag:
    """The largest delay of the heartbeats of the last `MEMORY` seconds, in seconds of the loop's clock."""

    def __init__(self) -> None:
        # (instant, delay) of the heartbeats that can still be the maximum: delays fall from left to right, so the
        # maximum of the window is the leftmost one (a monotonic queue, amortized O(1) a heartbeat).
        self._maxima: deque[tuple[float, float]] = deque()

    def record(self, expected: float, now: float) -> None:
        """Add a heartbeat that was due at `expected` and ran at `now`; one that ran early counts as on time."""
        late = max(0.0, now - expected)
        while self._maxima and self._maxima[-1][1] <= late:
            self._maxima.pop()
        self._maxima.append((now, late))
        while self._maxima[0][0] < now - MEMORY:
            self._maxima.popleft()

    @property
    def worst(self) -> float:
        """Largest delay within the window, in seconds; 0.0 before the first heartbeat."""
        return self._maxima[0][1] if self._maxima else 0.0
