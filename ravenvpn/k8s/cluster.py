"""The world from a cluster (`source: cluster`): Gateways and Peers, watched, and saved on disk for times without API.

Every failure of the API server is a state, never an exception: the last good world stays in force, and an agent that
starts while the server is away plans from the saved world at once. Agents do not read Nodes; what they need of them
is in `Gateway.status` and in Peers.

Parts: `ClusterIdentity` reads which cluster this is, `ClusterFeeds` watches its collections, `WorldSaver` restores
and writes the saved world. `ClusterSource` decides which world is in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from ravenvpn.k8s.api_endpoints import discover_endpoints
from ravenvpn.k8s.assembly import Assembly, Feed
from ravenvpn.k8s.client import SILENCE, Client
from ravenvpn.k8s.cluster_identity import ClusterIdentity, OtherClusterError
from ravenvpn.k8s.feeds import ClusterFeeds, FeedChange
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.resource import ApiError
from ravenvpn.k8s.world_cache import SavedWorld, WorldCache
from ravenvpn.k8s.world_saver import WorldSaver
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import address_of

log = logging.getLogger(__name__)

MAX_ENDPOINTS = 8  # addresses of API servers that are remembered; each costs a routing rule


@dataclass(frozen=True, slots=True)
class ApiState:
    """State of the connection to the API server, summed over all watches. Times are Unix seconds."""

    server: str  # URL; "" before the first request
    connected_since: float | None = None  # None: not every watch is accepted now
    lost_since: float | None = None  # None too if there was no connection since this agent started
    heard_at: float | None = None  # when the last byte of a watch arrived, bookmarks included
    error: str = ""  # the last failure of a watch that is not accepted again yet
    saved_at: float | None = None  # when the world in force was saved; None: it comes from the server
    cluster: str = ""  # UID of namespace kube-system at the server; "" while not known
    world_of: str = ""  # the same, of the cluster that the world in force comes from
    lists: int = 0  # begun
    watches: int = 0  # accepted
    events: int = 0  # of watches, bookmarks not counted


class ClusterSource:
    """Source of snapshots from a cluster; see the module. One consumer, and all methods on its loop.

    The world in force goes through these states:
    * none: no snapshot is yielded;
    * saved: restored from disk, until every feed is confirmed by the server;
    * the server's: from the moment every feed is complete; kept while the server is away;
    * foreign: the server turned out to belong to another cluster; kept until that one's feeds are complete.

    `endpoints` are the addresses at which the API server is reached; the plan keeps them out of the tunnel.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        cache: WorldCache,
        *,
        mesh: str = "",
        silence: float = SILENCE,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Prepare the source; nothing is sent or read before `snapshots`.

        * `node`: name of this node.
        * `cache`: file of the saved world.
        * `mesh`: name of the mesh; if empty, the UID of namespace kube-system is its name.
        * `silence`: seconds without a byte after which a watch counts as broken.
        * `draw` draws evenly from 0.0 to 1.0, for jitter.
        """
        self._client, self._node, self._mesh = client, node, mesh
        self._silence, self._draw = silence, draw
        self._identity = ClusterIdentity(client, draw)
        self._saver = WorldSaver(cache, self._world_to_save)
        self._feeds: ClusterFeeds | None = None  # None until the cluster is identified
        self._lost_since: float | None = None  # Unix seconds; since the server turned out to be another cluster's
        # The world in force, the UID of its cluster, and when it was saved (None: it comes from the server).
        self._assembly = Assembly(mesh)
        self._world_of = ""
        self._saved_at: float | None = None
        self._saved_versions: dict[Feed, str] = {}  # resourceVersions of the saved world, until its watches resume
        self._wake = asyncio.Event()  # for `snapshots` to look again
        self._reloaded = False  # a snapshot is due even if nothing changed
        self._connection_changed = asyncio.Event()
        self.endpoints: tuple[ApiEndpoint, ...] = ()

    def __str__(self) -> str:
        return f"cluster {self._client.server}".strip()

    @property
    def api(self) -> ApiState:
        """State of the connection to the API server now."""
        connections = self._feeds.connections if self._feeds else []
        since = [connection.connected_since for connection in connections]
        lost = [connection.lost_since for connection in connections if connection.lost_since is not None]
        heard = [connection.heard_at for connection in connections if connection.heard_at is not None]
        return ApiState(
            server=self._client.server,
            connected_since=max((at for at in since if at is not None), default=None) if all(since) else None,
            lost_since=min(lost, default=self._lost_since),
            heard_at=max(heard, default=None),
            error=next((connection.error for connection in connections if connection.error), self._identity.error),
            saved_at=self._saved_at,
            cluster=self._identity.uid,
            world_of=self._world_of,
            lists=sum(connection.lists for connection in connections),
            watches=sum(connection.watches for connection in connections),
            events=sum(connection.events for connection in connections),
        )

    def reload(self) -> None:
        """Retry now if the server is away, and yield a snapshot even if nothing changed.

        Nothing is read again: watches keep the world up to date all the time.
        """
        self._reloaded = True
        self._identity.retry_now()
        if self._feeds is not None:
            self._feeds.retry_now()
        self._wake.set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the saved world at once if there is one, the server's once it is complete, and then each change."""
        await self._restore()
        # One future for the three tasks: the loop below also wakes up if one of them fails.
        work = asyncio.gather(self._follow_clusters(), self._learn_endpoints(), self._saver.run())
        work.add_done_callback(lambda _: self._wake.set())
        last: Snapshot | None = None
        last_endpoints = self.endpoints
        try:
            while not work.done():
                if self._saved_at is not None or self._is_foreign or self._is_complete:
                    now = Snapshot(self._assembly.world, self._assembly.problems)
                    same = last is not None and now.world is last.world and now.problems == last.problems
                    if self._reloaded or not same or self.endpoints != last_endpoints:
                        self._reloaded, last, last_endpoints = False, now, self.endpoints
                        yield now
                await self._wake.wait()
                self._wake.clear()
            await work  # ends only by a defect
        finally:
            # Save the resourceVersions even if nothing changed, so that the next start resumes the watches instead of
            # listing. They are collected first, because a watch that is cancelled drops its version.
            saved = self._world_to_save()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if saved is not None:
                await self._saver.save(saved)

    # The saved world.

    async def _restore(self) -> None:
        """Put the saved world in force, if there is one, and use its addresses of the API server."""
        restored = await self._saver.restore(self._mesh)
        if restored is None:
            return
        saved, self._assembly = restored
        self._world_of, self._saved_at = saved.cluster, saved.saved_at
        self._saved_versions = dict(saved.versions)
        self.endpoints = tuple(
            ApiEndpoint(address, port) for text, port in saved.api if (address := address_of(text)) is not None
        )
        age = max(0.0, time.time() - saved.saved_at)
        log.info("the world saved %.0f s ago is in force until the API server answers", age)

    def _world_to_save(self) -> SavedWorld | None:
        """The world in force; None while not everything in it was confirmed by the server."""
        if self._feeds is None or not self._feeds.is_complete:
            return None
        return SavedWorld(
            self._world_of,
            self._assembly.world.mesh,
            self._client.server,
            tuple((str(endpoint.address), endpoint.port) for endpoint in self.endpoints),
            time.time(),
            dict(self._feeds.versions),
            tuple(self._assembly.objects.values()),
        )

    # The server's world.

    async def _follow_clusters(self) -> None:
        """Watch the cluster at our address; start again whenever it is replaced by another one."""
        while True:
            await self._identity.read()
            self._feeds = self._feeds_of_cluster()
            try:
                await self._feeds.run()
            except* OtherClusterError:
                self._lost_since = time.time()

    def _feeds_of_cluster(self) -> ClusterFeeds:
        """Feeds that go on with the world in force if it is of this cluster and mesh, else build a new one."""
        cluster = self._identity.uid
        resumed = cluster == self._world_of and (self._mesh or cluster) == self._assembly.world.mesh
        if not resumed and self._is_foreign:
            log.warning(
                "the API server belongs to cluster %s; the world of cluster %s stays in force until its own is read",
                cluster,
                self._world_of,
            )
        elif not resumed and self._saved_at is not None:
            log.warning("the saved world is of another mesh; it stays in force until that of this mesh is known")
        versions, self._saved_versions = self._saved_versions, {}
        feeds = ClusterFeeds(
            self._client,
            self._node,
            self._assembly if resumed else Assembly(self._mesh or cluster),
            self._identity,
            versions=versions if resumed else {},
            silence=self._silence,
            draw=self._draw,
            on_change=self._observe,
            on_connection=self._connection_changed.set,
        )
        if resumed:
            feeds.locate_node()
        return feeds

    @property
    def _is_complete(self) -> bool:
        """Whether the server has confirmed everything in the world of the feeds."""
        return self._feeds is not None and self._feeds.is_complete

    @property
    def _is_foreign(self) -> bool:
        """Whether the world in force is of another cluster than the server."""
        return bool(self._identity.uid) and self._world_of not in ("", self._identity.uid)

    def _observe(self, change: FeedChange) -> None:
        """Put the world of the feeds in force once it is complete; have changes saved and yielded."""
        assert self._feeds is not None
        if change.completed:
            self._wake.set()
        is_new = self._feeds.assembly is not self._assembly
        if is_new and not self._feeds.is_complete:
            return
        if is_new and self._is_foreign:
            log.warning("the world of cluster %s replaces that of %s", self._identity.uid, self._world_of)
        if is_new or (self._saved_at is not None and self._feeds.is_complete):
            self._assembly, self._world_of, self._saved_at = self._feeds.assembly, self._identity.uid, None
            self._saver.mark_changed()
            self._wake.set()
        if change.world:
            self._saver.mark_changed()
        if change.world or change.problems:
            self._wake.set()

    async def _learn_endpoints(self) -> None:
        """Discover the addresses of the API server each time it has begun to answer."""
        while True:
            await self._connection_changed.wait()
            self._connection_changed.clear()
            if self.api.connected_since is None:
                continue
            with contextlib.suppress(ApiError):
                found = dict.fromkeys((*await discover_endpoints(self._client), *self.endpoints))
                # Each of several servers behind a load balancer names only itself, so earlier addresses are kept, up
                # to the limit.
                if not found.keys() <= set(self.endpoints):
                    self.endpoints = tuple(found)[:MAX_ENDPOINTS]
                    self._saver.mark_changed()
                    self._wake.set()
