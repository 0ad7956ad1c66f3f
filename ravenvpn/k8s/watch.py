"""A collection of the API, followed for as long as the process lives: listed once, then watched.

Whatever happens to the server, what is known stays known: a list after a 410 is compared with it, and only what
differs is handed on. `progress` decides; this module lists, watches and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from ravenvpn.k8s.client import SILENCE, WATCH_TIMEOUT, Client, Events
from ravenvpn.k8s.list_watch import ListWatch
from ravenvpn.k8s.resource import ApiError, Object, Resource, key_of, version_of

log = logging.getLogger(__name__)

EARLY = 5.0  # seconds by which a watch may end before the time it asked for, and yet for that reason


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes that came together. `deleted` holds keys (`resource.key_of`). `complete`: with this batch everything
    the server had when asked is known; false for the pages of a list but the last. `version` is where we are now."""

    changed: tuple[Object, ...] = ()
    deleted: tuple[str, ...] = ()
    complete: bool = True
    version: str = ""


@dataclass(slots=True)
class Connection:
    """How it stands with the server. Times are Unix seconds."""

    connected_since: float | None = None
    lost_since: float | None = None  # None too where there never was a connection
    heard_at: float | None = None  # a byte of a watch, bookmarks included
    error: str = ""  # the last failure, until a watch is accepted
    lists: int = 0  # begun
    watches: int = 0  # accepted
    events: int = 0


class Reflector:
    """Follows one collection, or the part of it that selectors pick. One consumer."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        labels: str = "",
        fields: str = "",
        version: str = "",
        known: Mapping[str, str] | None = None,
        silence: float = SILENCE,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_connection: Callable[[], None] = lambda: None,
        recheck: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`known` are the objects an earlier process had, key → resourceVersion, and `version` how far it had come:
        the watch is taken up there. `on_connection` is called when `connection` has changed for better or worse.

        `recheck` is awaited when a server answers again that was lost, before anything it says is taken: it may be
        another one's. An ApiError of it is one more failure; what else it raises ends `follow`."""
        self._client, self._resource, self._silence = client, resource, silence
        self._labels, self._fields = labels, fields
        self._draw, self._now, self._wall = draw, now, wall
        self._on_connection, self._recheck = on_connection, recheck
        self._doubt = False  # whether that is due
        self._known = dict(known or {})
        self._progress = ListWatch(draw, version)
        self._hurry = asyncio.Event()
        self.connection = Connection()

    def hurry(self) -> None:
        """Wait no longer before the next attempt."""
        self._hurry.set()

    async def follow(self) -> AsyncGenerator[WatchBatch, None]:
        """Batches of changes, without end. Close it (`contextlib.aclosing`) to let go of the connection."""
        while True:
            step = self._progress.step()
            self._hurry.clear()
            if step.after > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(step.after):
                        await self._hurry.wait()
            batches = self._watch(step.version) if step.version else self._list()
            async with aclosing(batches):
                try:
                    async for batch in batches:
                        yield batch
                except ApiError as error:
                    self._progress.failed(error, self._now())
                    self._lost(error)
                    if error.status == 404:  # it does not even know the kind
                        with contextlib.suppress(ApiError):
                            await self._settle_doubt()

    async def _list(self) -> AsyncGenerator[WatchBatch, None]:
        self.connection.lists += 1
        await self._settle_doubt()
        seen: set[str] = set()
        pages = self._client.list(self._resource, labels=self._labels, fields=self._fields)
        last: WatchBatch | None = None
        async with aclosing(pages):
            async for items, version in pages:
                if last is not None and last.changed:
                    yield last
                seen.update(map(key_of, items))
                last = WatchBatch(tuple(filter(self._is_new, items)), (), complete=False, version=version)
        if last is None:
            return
        gone = tuple(self._known.keys() - seen)
        for key in gone:
            del self._known[key]
        self._progress.listed(last.version)
        yield WatchBatch(last.changed, gone, complete=True, version=last.version)

    async def _watch(self, version: str) -> AsyncGenerator[WatchBatch, None]:
        # Spread, so that watches begun together do not end together.
        lasting = WATCH_TIMEOUT * (1.0 + self._draw())
        portions = self._client.watch_batches(
            self._resource,
            resource_version=version,
            labels=self._labels,
            fields=self._fields,
            timeout=lasting,
            silence=self._silence,
        )
        accepted_at: float | None = None
        async with aclosing(portions):
            async for events in portions:
                if accepted_at is None:
                    accepted_at = self._now()
                    await self._settle_doubt()
                    self._accepted()
                    yield WatchBatch(version=version)  # nothing new, and yet: what is known is the server's
                self.connection.heard_at = self._wall()
                if events and (batch := self._take(events)):
                    yield batch
        if accepted_at is None or self._now() - accepted_at < lasting - EARLY:
            self._doubt = True  # not for its time: the server is ending
        self._progress.ended(self._now())

    async def _settle_doubt(self) -> None:
        if self._doubt and self._recheck is not None:
            await self._recheck()
        self._doubt = False

    def _take(self, events: Events) -> WatchBatch | None:
        """What these events come to in the end."""
        changed: dict[str, Object] = {}
        deleted: dict[str, None] = {}
        version = ""
        for kind, thing in events:
            version = version_of(thing)
            if kind == "BOOKMARK":
                continue
            self.connection.events += 1
            key = key_of(thing)
            changed.pop(key, None)
            deleted.pop(key, None)
            if kind == "DELETED":
                if self._known.pop(key, None) is not None:
                    deleted[key] = None
            elif self._is_new(thing):
                changed[key] = thing
        self._progress.saw(version)
        return WatchBatch(tuple(changed.values()), tuple(deleted), version=version)

    def _is_new(self, thing: Object) -> bool:
        """Whether it differs from what was known; it is known from now on."""
        key, version = key_of(thing), version_of(thing)
        if version and self._known.get(key) == version:
            return False
        self._known[key] = version
        return True

    # How it stands with the server.

    def _accepted(self) -> None:
        self._progress.accepted(self._now())
        self.connection.watches += 1
        if self.connection.connected_since is None:
            if self.connection.error:
                log.info("watching %s again", self._resource)
            self.connection.connected_since, self.connection.lost_since = self._wall(), None
            self.connection.error = ""
            self._on_connection()

    def _lost(self, error: ApiError) -> None:
        self._doubt = True
        if str(error) != self.connection.error and error.status != 410:
            log.warning("%s cannot be watched: %s", self._resource, error)
        was_connected = self.connection.connected_since is not None
        if was_connected:
            self.connection.lost_since = self._wall()
        self.connection.connected_since = None
        if was_connected or str(error) != self.connection.error:
            self.connection.error = str(error)
            self._on_connection()
