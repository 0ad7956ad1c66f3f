"""The collections that an agent watches in one cluster, kept up to date in one Assembly.

Peers are watched with two selectors, since an agent talks to the gateways of all regions and to all nodes of its own:
those whose role is not `plain` or `none`, and those of its region. The first selector excludes roles instead of
naming them, so that it also selects a Peer without labels, written by hand for a router that runs no agent. The
second one selects the gateways of the region again, so that a node whose role changes never disappears in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from ravenvpn.k8s.assembly import Assembly, Feed
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.cluster_identity import ClusterIdentity
from ravenvpn.k8s.resource import GATEWAYS, PEERS, key_of
from ravenvpn.k8s.watch import Connection, Reflector, WatchBatch
from ravenvpn.mesh.model import GATEWAY_LABEL

ROLE_LABEL = "ravenvpn.io/role"  # on every Peer that an agent writes
LOCAL_ROLES = ("plain", "none")  # roles whose Peers only nodes of the same region need


@dataclass(frozen=True, slots=True)
class FeedChange:
    """Effect of one batch of changes on the Assembly."""

    world: bool  # the world is another one
    problems: bool  # the problems are other ones
    completed: bool  # a feed has for the first time everything that the server had


class ClusterFeeds:
    """Watches Gateways, Peers of gateways, and Peers of this node's region, for one cluster.

    All methods run on the loop of `run`. `on_change` is called after each batch that was applied to the Assembly,
    `on_connection` when a connection to the API server is established or lost.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        assembly: Assembly,
        identity: ClusterIdentity,
        *,
        versions: Mapping[Feed, str],
        silence: float,
        draw: Callable[[], float],
        on_change: Callable[[FeedChange], None],
        on_connection: Callable[[], None],
    ) -> None:
        """Prepare to watch; nothing is sent before `run`.

        * `node`: name of this node, whose region decides about the third feed.
        * `assembly`: objects known before, from the saved world, or an empty one.
        * `versions`: resourceVersions to resume watches from; a feed without one is listed first.
        * `silence`: seconds without a byte after which a watch counts as broken.
        * `draw` draws evenly from 0.0 to 1.0, for jitter.
        """
        self._client, self._node, self._identity = client, node, identity
        self._silence, self._draw = silence, draw
        self._on_change, self._on_connection = on_change, on_connection
        self._reflectors: dict[Feed, Reflector] = {}
        self._complete: set[Feed] = set()
        self._region: str | None = None  # "" in no region; None until the Gateways are known
        self._region_changed = asyncio.Event()
        self.assembly = assembly
        self.versions = dict(versions)  # resourceVersion that each feed has reached

    @property
    def connections(self) -> list[Connection]:
        """State of each watch."""
        return [reflector.connection for reflector in self._reflectors.values()]

    @property
    def is_complete(self) -> bool:
        """Whether every feed has what the server had when asked, counted from the resourceVersion it resumed from."""
        needed = {Feed.GATEWAYS, Feed.PEERS} | ({Feed.REGION} if self._region else set())
        return self._region is not None and needed <= self._complete

    def retry_now(self) -> None:
        """End the delay before the next attempt of every watch that is interrupted."""
        for reflector in self._reflectors.values():
            reflector.retry_now()

    def locate_node(self) -> None:
        """Find the region of this node in the Gateways known so far."""
        found = self.assembly.regions_of(self._node)
        # If two Gateways list the node, the first by name counts.
        region = found[0] if found else ""
        if region != self._region:
            self._region = region
            self._region_changed.set()

    async def run(self) -> None:
        """Watch until cancelled. Raises OtherClusterError (in a group) once the server belongs to another cluster."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(Feed.GATEWAYS))
                tasks.create_task(self._follow(Feed.PEERS))
                tasks.create_task(self._follow_region())
        finally:
            self._reflectors.clear()
            self.versions.clear()

    async def _follow_region(self) -> None:
        """Watch the Peers of our region; when the region changes, those of the new one instead."""
        while True:
            region = self._region
            self._region_changed.clear()
            if not region:
                # Peers of the region before stay until those of the new one are known; without a region they go.
                self.assembly.remove_feed(Feed.REGION)
                await self._region_changed.wait()
                continue
            following = asyncio.create_task(self._follow(Feed.REGION, region))
            changed = asyncio.create_task(self._region_changed.wait())
            try:
                await asyncio.wait((following, changed), return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()  # raises: a watch ends only by an error
            finally:
                for task in (following, changed):
                    task.cancel()
                await asyncio.gather(following, changed, return_exceptions=True)
                self._reflectors.pop(Feed.REGION, None)
                self._complete.discard(Feed.REGION)
                self.versions.pop(Feed.REGION, None)

    async def _follow(self, feed: Feed, region: str = "") -> None:
        """Watch one feed until cancelled or until the server belongs to another cluster."""
        labels = {
            Feed.GATEWAYS: "",
            Feed.PEERS: f"{ROLE_LABEL} notin ({','.join(LOCAL_ROLES)})",
            Feed.REGION: f"{GATEWAY_LABEL}={region}",
        }[feed]
        reflector = self._reflectors[feed] = Reflector(
            self._client,
            GATEWAYS if feed is Feed.GATEWAYS else PEERS,
            labels=labels,
            version=self.versions.get(feed, ""),
            known=self.assembly.resource_versions(feed),
            silence=self._silence,
            draw=self._draw,
            on_connection=self._on_connection,
            recheck=self._identity.verify,
        )
        batches = reflector.follow()
        async with aclosing(batches):
            async for batch in batches:
                self._apply(feed, batch)

    def _apply(self, feed: Feed, batch: WatchBatch) -> None:
        """Apply a batch to the Assembly and report its effect to `on_change`."""
        world, problems = self.assembly.world, self.assembly.problems
        for obj in batch.changed:
            self.assembly.put(feed, obj)
        for name in batch.deleted:
            self.assembly.remove(feed, name)
        completed = batch.complete and feed not in self._complete
        if batch.complete:
            self._complete.add(feed)
            self.versions[feed] = batch.version
        if feed is Feed.GATEWAYS and self._may_move_node(batch):
            self.locate_node()
        # A status of a Peer changes neither: nothing depends on it.
        self._on_change(FeedChange(self.assembly.world is not world, self.assembly.problems != problems, completed))

    def _may_move_node(self, batch: WatchBatch) -> bool:
        """Whether these Gateways may change the region of this node; spares a search through all Gateways."""
        if self._region is None:
            return batch.complete
        names = {key_of(obj) for obj in batch.changed}.union(batch.deleted)
        gateways = (self.assembly.world.gateways.get(name) for name in names)
        return self._region in names or any(
            gateway is not None and any(info.node == self._node for info in gateway.status.nodes)
            for gateway in gateways
        )
