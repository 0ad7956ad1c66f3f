"""The one timer of a tunnel: whatever must be done, now or later, is done in one call on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ravenvpn.dataplane import boottime

# The loop's timer stands still while the machine sleeps, CLOCK_BOOTTIME does not. After a resume a deadline is
# noticed at most this late. Seconds.
MAX_SLEEP = 10.0
AFTER_FAILURE = 1.0


class LoopTimer:
    """Calls `beat(now)` on the loop's next turn after `wake`, and again at the instant it returned, if any.

    An instant that has passed means the next turn, after I/O had its own.
    """

    def __init__(self, beat: Callable[[float], float | None]) -> None:
        self._beat = beat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wake()

    def stop(self) -> None:
        """Safe to call twice, and from within a beat."""
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = self._loop = None

    def wake(self) -> None:
        """There is something to do. Never beats at once: whoever calls may be in the middle of a change."""
        if self._loop is not None and self._soon is None:
            self._soon = self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._soon = None
        self._run()

    def _due(self) -> None:
        self._timer = None
        self._run()

    def _run(self) -> None:
        now = boottime()
        try:
            deadline = self._beat(now)
        except BaseException:
            # The loop reports it. A defect in one peer's business must not be the end of all timers.
            self._arm(now, now + AFTER_FAILURE)
            raise
        self._arm(now, deadline)

    def _arm(self, now: float, deadline: float | None) -> None:
        if deadline is None or self._loop is None:
            return
        if deadline <= now:
            self.wake()
        # A timer that comes too early finds nothing due and is armed again: cheaper than moving it each time.
        elif self._timer is None or deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            delay = min(deadline - now, MAX_SLEEP)
            self._timer_at = now + delay
            self._timer = self._loop.call_later(delay, self._due)
