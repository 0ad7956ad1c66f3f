"""The world from a cluster (`source: cluster`): Gateways and Peers, followed, and kept on disk for the day the API
server is away.

Whatever happens to the server is a state, never an exception: the last good world stays in force, and an agent that
starts without the server goes by the saved one at once. Agents do not read Nodes; what they need of them stands in
`Gateway.status` and in Peers.

Peers are followed by two selectors, since an agent talks to gateways of all regions and to all nodes of its own:
those whose role is not `plain`, and those of our region. The first is told by exclusion so that a Peer written by
hand, for a router that runs no agent, is seen without labels. The second takes in our region's gateways again: a node
whose role changes never disappears in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.api_endpoints import dialed
from ravenvpn.k8s.assembly import Assembly, Feed
from ravenvpn.k8s.client import GATEWAYS, NAMESPACES, PEERS, SILENCE, Client
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.resource import ApiError, key_of
from ravenvpn.k8s.watch import Reflector, WatchBatch
from ravenvpn.k8s.world_cache import Saved, WorldCache
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import GATEWAY_LABEL, address_of

log = logging.getLogger(__name__)

ROLE_LABEL = "ravenvpn.io/role"
NOT_FOR_ALL = ("plain", "none")  # roles whose Peers only their own region needs

# Seconds.
SAVE_AFTER = 1.0  # a change until it is written
BYTES_A_SECOND = 200_000  # written at most, so that a large world is written less often

MAX_ENDPOINTS = 8


@dataclass(frozen=True, slots=True)
class ApiState:
    """How it stands with the API server. Times are Unix seconds.

    `connected_since` None: not connected now; `lost_since` None too: not since this agent started. `saved_at`: the
    world in force is the one saved then; None when it came from the server. `cluster` is the UID of namespace
    kube-system there, `world_of` of the cluster that the world in force comes from; empty where not known."""

    server: str
    connected_since: float | None = None
    lost_since: float | None = None
    heard_at: float | None = None
    error: str = ""
    saved_at: float | None = None
    cluster: str = ""
    world_of: str = ""
    lists: int = 0
    watches: int = 0
    events: int = 0


class _OtherClusterError(Exception):
    """Behind the address stands another cluster than before."""


class ClusterSource:
    """See the module. `endpoints` are the addresses at which the API server is reached, for the plan's rules."""

    def __init__(
        self,
        client: Client,
        node: str,
        file: WorldCache,
        *,
        mesh: str = "",
        silence: float = SILENCE,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`mesh` names the mesh; empty: the UID of namespace kube-system does."""
        self._client, self._node, self._file = client, node, file
        self._mesh, self._silence, self._draw = mesh, silence, draw
        self._cluster = ""  # UID of namespace kube-system of the one that is followed
        self._assembly = Assembly(mesh)  # what is in force
        self._world_of = ""  # of which cluster that is
        self._reflectors: dict[Feed, Reflector] = {}
        self._complete: set[Feed] = set()
        self._versions: dict[Feed, str] = {}
        self._region: str | None = None  # known once Gateways are
        self._region_changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._again = False
        self._error = ""  # before anything is followed
        self._lost_since: float | None = None  # the same
        self._hurry = asyncio.Event()
        self._saved_at: float | None = None
        self._unsaved = asyncio.Event()
        self._answered = asyncio.Event()
        self.endpoints: tuple[ApiEndpoint, ...] = ()

    def __str__(self) -> str:
        return f"cluster {self._client.server}".strip()

    @property
    def api(self) -> ApiState:
        connections = [reflector.connection for reflector in self._reflectors.values()]
        since = [connection.connected_since for connection in connections]
        lost = [connection.lost_since for connection in connections if connection.lost_since is not None]
        heard = [connection.heard_at for connection in connections if connection.heard_at is not None]
        return ApiState(
            server=self._client.server,
            connected_since=max((at for at in since if at is not None), default=None) if all(since) else None,
            lost_since=min(lost, default=self._lost_since),
            heard_at=max(heard, default=None),
            error=next((connection.error for connection in connections if connection.error), self._error),
            saved_at=self._saved_at,
            cluster=self._cluster,
            world_of=self._world_of,
            lists=sum(connection.lists for connection in connections),
            watches=sum(connection.watches for connection in connections),
            events=sum(connection.events for connection in connections),
        )

    def reload(self) -> None:
        """Try again now if the server is away. What it says is followed all the time, so there is nothing to read
        anew; a snapshot comes all the same."""
        self._again = True
        self._hurry.set()
        for reflector in self._reflectors.values():
            reflector.hurry()
        self._wake.set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The saved world at once, if there is one; the server's as soon as it is known, and after each change."""
        await self._restore()
        work = asyncio.gather(self._follow_all(), self._learn_endpoints(), self._save_forever())
        work.add_done_callback(lambda _: self._wake.set())
        last: Snapshot | None = None
        last_endpoints = self.endpoints
        try:
            while not work.done():
                if self._saved_at is not None or self._is_foreign or self._is_whole():
                    now = Snapshot(self._assembly.world, self._assembly.problems)
                    same = last is not None and now.world is last.world and now.problems == last.problems
                    if self._again or not same or self.endpoints != last_endpoints:
                        self._again, last, last_endpoints = False, now, self.endpoints
                        yield now
                await self._wake.wait()
                self._wake.clear()
            await work  # ends only by a defect
        finally:
            # How far we had come, if nothing else, so that the next start lists nothing; whoever follows forgets it.
            come_to = self._to_save() if self._is_whole() else None
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if come_to is not None:
                await self._store(come_to)

    # The saved world.

    async def _restore(self) -> None:
        saved = await asyncio.to_thread(self._file.load)
        if self._file.complaint:
            log.warning("%s", self._file.complaint)
        if saved is None:
            return
        assembly = Assembly(self._mesh or saved.mesh)
        try:
            assembly.restore(saved.objects)
        except ValueError as error:
            await asyncio.to_thread(self._file.reject, str(error))
            log.warning("%s", self._file.complaint)
            return
        self._assembly, self._saved_at, self._versions = assembly, saved.saved_at, dict(saved.versions)
        self._world_of = saved.cluster
        self.endpoints = tuple(
            ApiEndpoint(address, port) for text, port in saved.api if (address := address_of(text)) is not None
        )
        self._find_region()
        age = max(0.0, time.time() - saved.saved_at)
        log.info("going by the world saved %.0f s ago until the API server answers", age)

    async def _save_forever(self) -> None:
        while True:
            await self._unsaved.wait()
            await asyncio.sleep(max(SAVE_AFTER, self._file.size / BYTES_A_SECOND))
            await self._save()

    async def _save(self) -> None:
        """Write the world if it has changed."""
        if self._unsaved.is_set() and self._is_whole():
            self._unsaved.clear()
            await self._store(self._to_save())

    def _to_save(self) -> Saved:
        return Saved(
            self._world_of,
            self._assembly.world.mesh,
            self._client.server,
            tuple((str(endpoint.address), endpoint.port) for endpoint in self.endpoints),
            time.time(),
            dict(self._versions),
            tuple(self._assembly.kept.values()),
        )

    async def _store(self, saved: Saved) -> None:
        """What cannot be written is said, and tried again with the next change."""
        try:
            await asyncio.to_thread(self._file.store, saved)
        except OSError as error:
            log.warning("the world cannot be saved in %s: %s", self._file.path, error.strerror or error)

    # Following.

    async def _follow_all(self) -> None:
        while True:
            assembly = self._assembly_for(await self._kube_system())
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow(Feed.GATEWAYS, assembly))
                    tasks.create_task(self._follow(Feed.PEERS, assembly))
                    tasks.create_task(self._follow_region(assembly))
            except* _OtherClusterError:
                self._reflectors.clear()
                self._versions.clear()
                self._lost_since = time.time()

    def _assembly_for(self, cluster: str) -> Assembly:
        """Where to put what this cluster says: together with what is in force, unless that is of another one."""
        self._cluster = cluster
        self._complete.clear()
        if cluster == self._world_of and (self._mesh or cluster) == self._assembly.world.mesh:
            self._find_region()
            return self._assembly
        if self._is_foreign:
            said = "the API server is of cluster %s, and the world in force of cluster %s until this one's is known"
            log.warning(said, cluster, self._world_of)
        elif self._saved_at is not None:
            log.warning("the saved world is of another mesh; it goes when this one's is known")
        self._versions.clear()
        self._region = None
        return Assembly(self._mesh or cluster)

    @property
    def _is_foreign(self) -> bool:
        return bool(self._cluster) and self._world_of not in ("", self._cluster)

    async def _same_cluster(self) -> None:
        """Whoever comes back may be another: one that was set up anew behind the same address."""
        if await self._kube_system_uid() != self._cluster:
            raise _OtherClusterError

    async def _kube_system_uid(self) -> str:
        """Of the namespace; no two clusters share it."""
        uid = (await self._client.get(NAMESPACES, "kube-system")).get("metadata", {}).get("uid")
        if not isinstance(uid, str) or not uid:
            raise ApiError("namespace kube-system has no UID", reason="Malformed")
        return uid

    async def _kube_system(self) -> str:
        """The same, however long it takes."""
        backoff = Backoff(self._draw)
        while True:
            self._hurry.clear()
            try:
                uid = await self._kube_system_uid()
                self._error = ""
                return uid
            except ApiError as error:
                if str(error) != self._error:
                    log.warning("the cluster cannot be read: %s", error)
                self._error = str(error)
                delay = backoff.delay(error.retry_after or 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hurry.wait()

    async def _follow_region(self, assembly: Assembly) -> None:
        """Peers of the region we are in, and of another one as soon as we are there."""
        while True:
            region = self._region
            self._region_changed.clear()
            if region:
                following = asyncio.create_task(self._follow(Feed.REGION, assembly, region))
                changed = asyncio.create_task(self._region_changed.wait())
                try:
                    await asyncio.wait((following, changed), return_when=asyncio.FIRST_COMPLETED)
                    if following.done():
                        following.result()
                finally:
                    for task in (following, changed):
                        task.cancel()
                    await asyncio.gather(following, changed, return_exceptions=True)
                    self._reflectors.pop(Feed.REGION, None)
                    self._complete.discard(Feed.REGION)
                    self._versions.pop(Feed.REGION, None)
            else:
                # What the region we left had stays until another one's Peers are known, or there is none.
                assembly.drop(Feed.REGION)
                await self._region_changed.wait()

    async def _follow(self, feed: Feed, assembly: Assembly, region: str = "") -> None:
        labels = {
            Feed.GATEWAYS: "",
            Feed.PEERS: f"{ROLE_LABEL} notin ({','.join(NOT_FOR_ALL)})",
            Feed.REGION: f"{GATEWAY_LABEL}={region}",
        }[feed]
        reflector = self._reflectors[feed] = Reflector(
            self._client,
            GATEWAYS if feed is Feed.GATEWAYS else PEERS,
            labels=labels,
            version=self._versions.get(feed, ""),
            known=assembly.known(feed),
            silence=self._silence,
            draw=self._draw,
            on_connection=self._connection_changed,
            recheck=self._same_cluster,
        )
        batches = reflector.follow()
        async with aclosing(batches):
            async for batch in batches:
                self._take(feed, assembly, batch)

    def _take(self, feed: Feed, assembly: Assembly, batch: WatchBatch) -> None:
        world, problems = assembly.world, assembly.problems
        for thing in batch.changed:
            assembly.put(feed, thing)
        for name in batch.deleted:
            assembly.remove(feed, name)
        if batch.complete:
            if feed not in self._complete:
                self._complete.add(feed)
                self._wake.set()
            self._versions[feed] = batch.version
        if feed is Feed.GATEWAYS and self._moves_us(assembly, batch):
            self._find_region(assembly)
        if assembly is not self._assembly and not self._is_whole():
            return  # until then the world of another cluster is all there is
        if assembly is not self._assembly and self._is_foreign:
            log.warning("the world of cluster %s is gone, that of cluster %s in force", self._world_of, self._cluster)
        if assembly is not self._assembly or (self._saved_at is not None and self._is_whole()):
            self._assembly, self._world_of, self._saved_at = assembly, self._cluster, None
            self._unsaved.set()
            self._wake.set()
        if assembly.world is not world:  # not the status of a Peer, which nobody goes by
            self._unsaved.set()
            self._wake.set()
        elif assembly.problems != problems:
            self._wake.set()

    def _moves_us(self, assembly: Assembly, batch: WatchBatch) -> bool:
        """Whether these Gateways may put this node into another region."""
        if self._region is None:
            return batch.complete
        names = {key_of(thing) for thing in batch.changed}.union(batch.deleted)
        gateways = (assembly.world.gateways.get(name) for name in names)
        return self._region in names or any(
            gateway is not None and any(info.node == self._node for info in gateway.status.nodes)
            for gateway in gateways
        )

    def _is_whole(self) -> bool:
        """All that is wanted has been read from the server, by this process or the one that saved it."""
        wanted = {Feed.GATEWAYS, Feed.PEERS} | ({Feed.REGION} if self._region else set())
        return self._region is not None and wanted <= self._complete

    def _find_region(self, assembly: Assembly | None = None) -> None:
        found = (assembly or self._assembly).regions_of(self._node)
        region = found[0] if found else ""
        if region != self._region:
            self._region = region
            self._region_changed.set()

    # The server.

    def _connection_changed(self) -> None:
        self._answered.set()

    async def _learn_endpoints(self) -> None:
        """Find out where the server is, each time it has begun to answer."""
        while True:
            await self._answered.wait()
            self._answered.clear()
            if self.api.connected_since is None:
                continue
            with contextlib.suppress(ApiError):
                found = dict.fromkeys((*await dialed(self._client), *self.endpoints))
                # Of several servers each names itself; the ones of before stay, until there are too many.
                if not found.keys() <= set(self.endpoints):
                    self.endpoints = tuple(found)[:MAX_ENDPOINTS]
                    self._unsaved.set()
                    self._wake.set()
