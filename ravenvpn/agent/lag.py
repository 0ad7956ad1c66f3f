"""How late the event loop is: felt by heartbeats, remembered long enough for a probe to see it."""

from __future__ import annotations

from collections import deque

MEMORY = 5.0  # seconds a late heartbeat is held against us; who probes seldom must see a block, too


class Lag:
    """Told of every heartbeat, in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()  # (when, how late), each later than those after it

    def felt(self, expected: float, now: float) -> None:
        """A heartbeat due at `expected` came at `now`."""
        late = max(0.0, now - expected)
        while self._late and self._late[-1][1] <= late:
            self._late.pop()
        self._late.append((now, late))
        while self._late[0][0] < now - MEMORY:
            self._late.popleft()

    @property
    def worst(self) -> float:
        """Seconds; the worst of the last ones."""
        return self._late[0][1] if self._late else 0.0
