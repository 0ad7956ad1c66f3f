"""Priority queue of the next deadline of every peer, so that a thousand peers need one timer.

A binary heap with lazy deletion. A deadline that moves later leaves its entry in the heap: when that entry comes up,
the peer is looked at too early and scheduled again. Traffic moves most deadlines later, so a busy peer touches the
heap once per deadline, not once per packet.
"""

from __future__ import annotations

import heapq
import math

from ravenvpn.dataplane.contract import PeerId


class Deadlines:
    """Peer → the instant at which it has to be looked at. Instants are seconds on the caller's clock.

    `schedule` is O(log n), `next_due` O(1) amortized. `len()` is the number of peers with a deadline. The heap holds
    at most twice as many entries plus 64.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, PeerId]] = []
        self._scheduled: dict[PeerId, float] = {}  # the one valid heap entry of each peer

    def __len__(self) -> int:
        return len(self._scheduled)

    def schedule(self, peer: PeerId, at: float) -> None:
        """Make the peer due at `at` or earlier: a deadline that is already earlier stays."""
        if at < self._scheduled.get(peer, math.inf):
            self._scheduled[peer] = at
            heapq.heappush(self._heap, (at, peer))
            if len(self._heap) > 2 * len(self._scheduled) + 64:
                self._compact()

    def cancel(self, peer: PeerId) -> None:
        """Remove the peer's deadline, if it has one."""
        self._scheduled.pop(peer, None)

    def clear(self) -> None:
        """Remove all deadlines."""
        self._scheduled.clear()
        self._heap.clear()

    def next_due(self) -> float | None:
        """Return the earliest deadline, None if there is none."""
        self._remove_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[PeerId]:
        """Remove and return the peers whose deadline is not after `now`, earliest first. Schedule them again."""
        due: list[PeerId] = []
        self._remove_stale()
        while self._heap and self._heap[0][0] <= now:
            _, peer = heapq.heappop(self._heap)
            del self._scheduled[peer]
            due.append(peer)
            self._remove_stale()
        return due

    def _remove_stale(self) -> None:
        while self._heap and self._scheduled.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _compact(self) -> None:
        self._heap = [(at, peer) for peer, at in self._scheduled.items()]
        heapq.heapify(self._heap)
