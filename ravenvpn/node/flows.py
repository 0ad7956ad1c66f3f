"""Schedule the check of live flows (`conntrack`) after changes: in a thread, off the path of the change itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ravenvpn.backoff import Backoff
from ravenvpn.errors import HostError
from ravenvpn.node import conntrack
from ravenvpn.node.conntrack import FlowCheck

FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # seconds after a walk that the kernel refused, doubling


class FlowChecker:
    """Run one walk over the flows at a time; checks that are scheduled during a walk are merged into the next one.

    Owned by one event loop. A refused walk is retried with back-off and stays in `problem` until one succeeds.
    """

    def __init__(self, on_deleted: Callable[[int], None]) -> None:
        """`on_deleted` is called on the loop with the number of flows a walk deleted, if any."""
        self._on_deleted = on_deleted
        self._pending: FlowCheck | None = None  # everything scheduled since the last walk began
        self._task: asyncio.Task[None] | None = None
        self._walk: asyncio.Future[int] | None = None  # the walk in its thread
        self.problem: HostError | None = None  # why the last walk was refused

    def schedule(self, check: FlowCheck | None) -> None:
        """Have these flows checked soon; no effect for None."""
        if check is None:
            return
        self._pending = check.merge(self._pending)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_pending(), name="check live flows")

    async def stop(self) -> None:
        """Drop pending checks and wait for a walk under way. Nothing is lost: the next start checks all flows."""
        self._pending = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._walk is not None:  # a thread cannot be cancelled
            await asyncio.wait((self._walk,))

    async def _run_pending(self) -> None:
        """Walk until nothing is pending."""
        backoff = Backoff(first=FIRST_RETRY, limit=LAST_RETRY)
        while self._pending is not None:
            check, self._pending = self._pending, None
            self._walk = asyncio.ensure_future(asyncio.to_thread(conntrack.delete_misbound_flows, check))
            # Shielded: `stop` cancels this task but has to wait for the walk itself.
            try:
                deleted = await asyncio.shield(self._walk)
            except HostError as error:
                # The check runs again, together with those that were scheduled meanwhile.
                self.problem = error
                self._pending = check if self._pending is None else self._pending.merge(check)
                await asyncio.sleep(backoff.delay())
            else:
                self.problem = None
                backoff.reset()
                if deleted:
                    self._on_deleted(deleted)
