"""The saved world during the life of an agent: restored at the start, written again some time after each change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ravenvpn.k8s.assembly import Assembly
from ravenvpn.k8s.world_cache import SavedWorld, WorldCache

log = logging.getLogger(__name__)

SAVE_AFTER = 1.0  # seconds from a change to the write; also the upper bound of what is lost if the agent is killed
# Bytes a second, upper bound of the average: a large world is written less often, to spare flash and SD cards.
WRITE_RATE = 200_000


class WorldSaver:
    """Writes the world to `cache`. The blocking calls run in threads; all methods run on one loop."""

    def __init__(self, cache: WorldCache, collect: Callable[[], SavedWorld | None]) -> None:
        """`collect` returns the world to save; None while that in force is not known completely."""
        self._cache, self._collect = cache, collect
        self._changed = asyncio.Event()  # set while there is a change that is not written

    def mark_changed(self) -> None:
        """Have the world written, `SAVE_AFTER` seconds from now or later."""
        self._changed.set()

    async def restore(self, mesh: str) -> tuple[SavedWorld, Assembly] | None:
        """Return the saved world and its objects; None, and a warning in the log, if there is none that can be used.

        `mesh` names the mesh; if empty, the saved one does."""
        saved = await asyncio.to_thread(self._cache.load)
        if self._cache.complaint:
            log.warning("%s", self._cache.complaint)
        if saved is None:
            return None
        assembly = Assembly(mesh or saved.mesh)
        try:
            assembly.restore(saved.objects)
        except ValueError as error:
            await asyncio.to_thread(self._cache.reject, str(error))
            log.warning("%s", self._cache.complaint)
            return None
        return saved, assembly

    async def run(self) -> None:
        """Write after changes, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(max(SAVE_AFTER, self._cache.size / WRITE_RATE))
            # Collected after the delay: one write covers all changes until now. With None the event stays set, and
            # the next round tries again.
            saved = self._collect()
            if saved is not None:
                self._changed.clear()
                await self.save(saved)

    async def save(self, saved: SavedWorld) -> None:
        """Write now. A failure is logged; the next change is the next attempt."""
        try:
            await asyncio.to_thread(self._cache.store, saved)
        except OSError as error:
            log.warning("the world cannot be saved in %s: %s", self._cache.path, error.strerror or error)
