"""Callers that wait for a reload: until the source was read again, and the result is in force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class ReloadWaiters:
    """Futures of the callers of `Agent.reload`, in two stages. Owned by the event loop.

    A planning pass that runs while the source is read does not contain what was read, so a caller is released by the
    first pass that starts after the source's next snapshot arrived.
    """

    def __init__(self) -> None:
        self._requested: list[asyncio.Future[None]] = []  # wait for a snapshot
        self._read: list[asyncio.Future[None]] = []  # wait for a pass to start

    def add(self) -> asyncio.Future[None]:
        """Return a future for a new caller, resolved by `release`."""
        waiter = asyncio.get_running_loop().create_future()
        self._requested.append(waiter)
        return waiter

    def snapshot_arrived(self) -> bool:
        """Move everybody who waits for a snapshot on; return whether there was anybody."""
        moved = bool(self._requested)
        self._read += self._requested
        self._requested.clear()
        return moved

    def take(self) -> list[asyncio.Future[None]]:
        """Return the callers whose snapshot the pass that starts now contains; to be given to `release` at its
        end."""
        taken, self._read = self._read, []
        return taken

    @staticmethod
    def release(waiters: Iterable[asyncio.Future[None]]) -> None:
        """Resolve these futures; one whose caller was cancelled is left alone."""
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
