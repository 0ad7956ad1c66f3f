"""Has live flows judged anew after a change (see `conntrack`), in a thread and behind everything else.

Changes that come while a walk is under way wait for the next one together. A refused walk is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ravenvpn.backoff import Backoff
from ravenvpn.errors import HostError
from ravenvpn.node import conntrack
from ravenvpn.node.conntrack import Rebinding

FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # seconds after a refusal, doubling


class FlowJudge:
    """For one loop. `problem` is why the last walk was refused, `on_deleted` hears how many flows a walk deleted."""

    def __init__(self, on_deleted: Callable[[int], None]) -> None:
        self._on_deleted = on_deleted
        self._waiting: Rebinding | None = None
        self._task: asyncio.Task[None] | None = None
        self._walk: asyncio.Future[int] | None = None
        self.problem: HostError | None = None

    def judge(self, rebinding: Rebinding | None) -> None:
        """Soon; nothing for None."""
        if rebinding is None:
            return
        self._waiting = rebinding.after(self._waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._walk_while_due(), name="judge live flows")

    async def stop(self) -> None:
        """Forget what waits: the next start judges all flows."""
        self._waiting = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._walk is not None:  # a thread at work can't be cancelled
            await asyncio.wait((self._walk,))

    async def _walk_while_due(self) -> None:
        backoff = Backoff(first=FIRST_RETRY, limit=LAST_RETRY)
        while self._waiting is not None:
            rebinding, self._waiting = self._waiting, None
            self._walk = asyncio.ensure_future(asyncio.to_thread(conntrack.forget, rebinding))
            try:
                deleted = await asyncio.shield(self._walk)
            except HostError as error:
                self.problem = error
                self._waiting = rebinding if self._waiting is None else self._waiting.after(rebinding)
                await asyncio.sleep(backoff.delay())
            else:
                self.problem = None
                backoff.reset()
                if deleted:
                    self._on_deleted(deleted)
