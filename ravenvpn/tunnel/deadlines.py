"""One structure for the next deadline of every peer, so that a thousand peers cost one timer.

A heap with lazy deletion. A deadline that moves later leaves its entry where it is: when that comes up, the peer is
asked again. Traffic moves most deadlines later, so a busy peer touches the heap once per deadline, not per packet.
"""

from __future__ import annotations

import heapq
import math

from ravenvpn.dataplane.contract import PeerId


class Deadlines:
    """`expect` is O(log n), `next` O(1). Instants are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, PeerId]] = []
        self._scheduled: dict[PeerId, float] = {}  # the one entry that counts for each peer

    def __len__(self) -> int:
        return len(self._scheduled)

    def expect(self, peer: PeerId, at: float) -> None:
        """Come back to this peer at `at` at the latest; coming earlier is allowed."""
        if at < self._scheduled.get(peer, math.inf):
            self._scheduled[peer] = at
            heapq.heappush(self._heap, (at, peer))
            if len(self._heap) > 2 * len(self._scheduled) + 64:
                self._compact()

    def forget(self, peer: PeerId) -> None:
        self._scheduled.pop(peer, None)

    def next(self) -> float | None:
        """When to come back at the earliest; None if nothing is expected. Never later than any `expect`."""
        self._skip_stale()
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> list[PeerId]:
        """The peers whose time has come. They are forgotten here: `expect` them again."""
        due: list[PeerId] = []
        self._skip_stale()
        while self._heap and self._heap[0][0] <= now:
            _, peer = heapq.heappop(self._heap)
            del self._scheduled[peer]
            due.append(peer)
            self._skip_stale()
        return due

    def _skip_stale(self) -> None:
        while self._heap and self._scheduled.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _compact(self) -> None:
        self._heap = [(at, peer) for peer, at in self._scheduled.items()]
        heapq.heapify(self._heap)
