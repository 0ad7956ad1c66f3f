"""Reflector: follows a collection of the API for as long as the process lives, by one list and then watches.

Named after client-go's Reflector. Failures of the server never clear what is known: a list after 410 Expired is
compared with it, and only the differences are yielded. `list_watch` decides; this module sends requests and waits.

Only key and resourceVersion of each object are kept here; the consumer keeps the objects. Batches go through an async
generator, so a slow consumer slows the reading of the socket down, and no queue can grow.
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

# Seconds before its timeoutSeconds at which the end of a watch still counts as that timeout.
EARLY = 5.0


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes that arrived together."""

    changed: tuple[Object, ...] = ()  # added or modified
    deleted: tuple[str, ...] = ()  # keys (`resource.key_of`)
    # With this batch everything is known that the server had when asked; False for all pages of a list but the last.
    complete: bool = True
    version: str = ""  # resourceVersion reached


@dataclass(slots=True)
class Connection:
    """State of the connection to the API server for one collection. Times are Unix seconds."""

    connected_since: float | None = None  # None: no watch is accepted
    lost_since: float | None = None  # None too if there never was a connection
    heard_at: float | None = None  # last byte of a watch, bookmarks included
    error: str = ""  # last failure, until a watch is accepted
    lists: int = 0  # begun
    watches: int = 0  # accepted
    events: int = 0  # bookmarks not counted


class Reflector:
    """Follows one collection, or the part of it that selectors pick. One consumer, on one loop."""

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
        """Prepare to follow `resource`; nothing is sent before `follow`.

        * `labels`, `fields`: selectors, as kubectl takes them.
        * `known`: objects an earlier process had, key → resourceVersion; `version`: the resourceVersion it had
          reached, from which the watch resumes. Without `version` the collection is listed.
        * `silence`: seconds without a byte after which a watch counts as broken.
        * `draw` draws evenly from 0.0 to 1.0; `now` is a monotonic clock, `wall` Unix time, in seconds.
        * `on_connection` is called when a connection is established or lost.
        * `recheck` is awaited when a server that was lost answers again, before any of its data is used, since it may
          belong to another cluster. An ApiError of it counts as one more failure; other exceptions end `follow`.
        """
        self._client, self._resource, self._silence = client, resource, silence
        self._labels, self._fields = labels, fields
        self._draw, self._now, self._wall = draw, now, wall
        self._on_connection, self._recheck = on_connection, recheck
        self._recheck_due = False
        self._known = dict(known or {})  # key → resourceVersion of every object the consumer has
        self._list_watch = ListWatch(draw, version)
        self._retry_now = asyncio.Event()
        self.connection = Connection()

    def retry_now(self) -> None:
        """End the delay before the next attempt."""
        self._retry_now.set()

    async def follow(self) -> AsyncGenerator[WatchBatch, None]:
        """Yield batches of changes, without end. Close it (`contextlib.aclosing`) to close the connection."""
        while True:
            request = self._list_watch.next_request()
            self._retry_now.clear()
            if request.after > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(request.after):
                        await self._retry_now.wait()
            batches = self._watch(request.version) if request.version else self._list()
            async with aclosing(batches):
                try:
                    async for batch in batches:
                        yield batch
                except ApiError as error:
                    self._list_watch.request_failed(error, self._now())
                    self._connection_lost(error)
                    if error.status == 404:  # a cluster without our definitions: perhaps another one
                        with contextlib.suppress(ApiError):
                            await self._recheck_server()

    async def _list(self) -> AsyncGenerator[WatchBatch, None]:
        """List all pages; yield new and changed objects page by page, and deletions with the last one."""
        self.connection.lists += 1
        await self._recheck_server()
        listed: set[str] = set()
        pages = self._client.list(self._resource, labels=self._labels, fields=self._fields)
        last: WatchBatch | None = None
        async with aclosing(pages):
            async for items, version in pages:
                if last is not None and last.changed:
                    yield last
                listed.update(map(key_of, items))
                last = WatchBatch(tuple(filter(self._record, items)), (), complete=False, version=version)
        if last is None:
            return
        # Deletions during an outage leave no events: objects that the list no longer has.
        gone = tuple(self._known.keys() - listed)
        for key in gone:
            del self._known[key]
        self._list_watch.list_completed(last.version)
        yield WatchBatch(last.changed, gone, complete=True, version=last.version)

    async def _watch(self, version: str) -> AsyncGenerator[WatchBatch, None]:
        """Watch from `version` until the server ends it."""
        # Jitter, so that the watches of many agents that began together do not end together.
        timeout = WATCH_TIMEOUT * (1.0 + self._draw())
        portions = self._client.watch(
            self._resource,
            resource_version=version,
            labels=self._labels,
            fields=self._fields,
            timeout=timeout,
            silence=self._silence,
        )
        accepted_at: float | None = None
        async with aclosing(portions):
            async for events in portions:
                if accepted_at is None:
                    accepted_at = self._now()
                    await self._recheck_server()
                    self._watch_accepted()
                    yield WatchBatch(version=version)  # empty: what is known is what the server has
                self.connection.heard_at = self._wall()
                if events and (batch := self._merge(events)):
                    yield batch
        if accepted_at is None or self._now() - accepted_at < timeout - EARLY:
            self._recheck_due = True  # ended before its timeout: the server is shutting down
        self._list_watch.watch_ended(self._now())

    async def _recheck_server(self) -> None:
        """Await `recheck` if it is due. It stays due if it raises."""
        if self._recheck_due and self._recheck is not None:
            await self._recheck()
        self._recheck_due = False

    def _merge(self, events: Events) -> WatchBatch | None:
        """One batch with the last state of each object in `events`."""
        changed: dict[str, Object] = {}
        deleted: dict[str, None] = {}
        version = ""
        for kind, obj in events:
            version = version_of(obj)
            if kind == "BOOKMARK":
                continue
            self.connection.events += 1
            key = key_of(obj)
            # Only the last state counts: an object may be deleted and created again within one batch.
            changed.pop(key, None)
            deleted.pop(key, None)
            if kind == "DELETED":
                if self._known.pop(key, None) is not None:
                    deleted[key] = None
            elif self._record(obj):
                changed[key] = obj
        self._list_watch.event_received(version)
        return WatchBatch(tuple(changed.values()), tuple(deleted), version=version)

    def _record(self, obj: Object) -> bool:
        """Record the resourceVersion of `obj`; return whether it is new or differs from the one known."""
        key, version = key_of(obj), version_of(obj)
        if version and self._known.get(key) == version:
            return False
        self._known[key] = version
        return True

    # State of the connection.

    def _watch_accepted(self) -> None:
        """Update `connection` once the server has accepted a watch."""
        self._list_watch.watch_accepted(self._now())
        self.connection.watches += 1
        if self.connection.connected_since is None:
            if self.connection.error:
                log.info("%s: the watch is established again", self._resource)
            self.connection.connected_since, self.connection.lost_since = self._wall(), None
            self.connection.error = ""
            self._on_connection()

    def _connection_lost(self, error: ApiError) -> None:
        """Update `connection` after a failure. Each new error is logged once; 410 is part of normal operation."""
        self._recheck_due = True
        if str(error) != self.connection.error and error.status != 410:
            log.warning("%s cannot be watched: %s; retrying", self._resource, error)
        was_connected = self.connection.connected_since is not None
        if was_connected:
            self.connection.lost_since = self._wall()
        self.connection.connected_since = None
        if was_connected or str(error) != self.connection.error:
            self.connection.error = str(error)
            self._on_connection()
