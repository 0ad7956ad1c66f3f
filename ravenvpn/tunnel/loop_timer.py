"""The one timer of a tunnel: all work, due now or later, is done in one callback on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ravenvpn.dataplane import boottime

# Seconds. The loop's clock stops while the machine is suspended, CLOCK_BOOTTIME does not: after a resume a deadline
# is noticed at most this late.
MAX_SLEEP = 10.0
RETRY_AFTER_ERROR = 1.0  # seconds


class LoopTimer:
    """Calls `callback(now)` in the loop's next turn after `wake`, and again at the instant that it returned, if any.

    `now` is CLOCK_BOOTTIME in seconds. An instant in the past means the next turn, so I/O is served in between.
    """

    def __init__(self, callback: Callable[[float], float | None]) -> None:
        self._callback = callback
        self._loop: asyncio.AbstractEventLoop | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start, with a first call in the next turn."""
        self._loop = loop
        self.wake()

    def stop(self) -> None:
        """Stop calling. Safe to call twice, and from within the callback."""
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = self._loop = None

    def wake(self) -> None:
        """Have the callback called in the next turn; never at once, since the caller may be in the middle of a
        change. No effect before `start`."""
        if self._loop is not None and self._soon is None:
            self._soon = self._loop.call_soon(self._on_wake)

    def _on_wake(self) -> None:
        self._soon = None
        self._run()

    def _on_deadline(self) -> None:
        self._timer = None
        self._run()

    def _run(self) -> None:
        now = boottime()
        try:
            deadline = self._callback(now)
        except BaseException:
            # The loop reports it. A defect in the handling of one peer must not stop all timers.
            self._arm(now, now + RETRY_AFTER_ERROR)
            raise
        self._arm(now, deadline)

    def _arm(self, now: float, deadline: float | None) -> None:
        """Have the callback called at `deadline` or earlier; None leaves an armed timer as it is."""
        if deadline is None or self._loop is None:
            return
        if deadline <= now:
            self.wake()
        # A timer that fires too early finds nothing due and is armed again: cheaper than moving it each time.
        elif self._timer is None or deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            delay = min(deadline - now, MAX_SLEEP)
            self._timer_at = now + delay
            self._timer = self._loop.call_later(delay, self._on_deadline)
