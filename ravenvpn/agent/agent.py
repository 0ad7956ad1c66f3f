"""The agent of one node: world in, plan out, tunnel and host kept as planned.

Everything that may change the plan sets one flag; one task takes it down and converges, so changes that come together
are planned together and no two convergences cross. The loop never waits for the kernel: that is `upkeep`'s thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.host import HostKeeper
from ravenvpn.agent.introspection import Introspection
from ravenvpn.agent.own_peer import OwnPeer
from ravenvpn.agent.peer_liveness import PeerLiveness
from ravenvpn.agent.subject_index import SubjectIndex
from ravenvpn.agent.tunnel_owner import TunnelOwner
from ravenvpn.agent.underlay import Underlay
from ravenvpn.dataplane import boottime
from ravenvpn.errors import HostError
from ravenvpn.k8s.cluster import ApiState
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.peer_writer import PeerWriter
from ravenvpn.mesh.hoststate import TUNNEL_DEVICE
from ravenvpn.mesh.local_facts import ApiEndpoint, LocalFacts
from ravenvpn.mesh.model import EndpointType, World
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import IdentityKeys, Intent, Situation
from ravenvpn.node.reconciler import WantedState
from ravenvpn.tunnel.driver import Listeners
from ravenvpn.tunnel.session_events import SessionLost, SessionUp

log = logging.getLogger(__name__)

# Seconds.
HEARTBEAT = 1.0  # how often the loop is felt; a heartbeat that comes late is how blocking shows
SAVE_INTERVAL = 1.0  # between writes of where peers were last seen: an agent that is killed forgets no more than that
RETRY = 2.0  # after a tunnel could not be opened
LOOK_SHARE = 0.01  # of the loop's time may go into looking at all peers; a thousand of them are looked at less often


class WorldSource(Protocol):
    """Where worlds come from: a directory, or a cluster. `str()` is how a person names it.

    `api` says how it stands with the API server, None where there is none; `endpoints` are its addresses, and another
    snapshot follows when they change."""

    @property
    def api(self) -> ApiState | None: ...

    @property
    def endpoints(self) -> tuple[ApiEndpoint, ...]: ...

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """The present one first, then each that differs."""

    def reload(self) -> None:
        """Look again now, and yield a snapshot even if nothing differs."""


class Agent:
    """See the module. `run` until cancelled; the rest is what the control socket asks for."""

    def __init__(
        self,
        node: str,
        source: WorldSource,
        planner: Planner,
        last_seen: LastSeen,
        *,
        intent: Intent,
        keys: IdentityKeys,
        state_file: Path,
        make_tunnel_owner: Callable[[Callable[[], None], Listeners], TunnelOwner],
        peer_writer: PeerWriter | None = None,
        own_peer: OwnPeer,
    ) -> None:
        """`intent` and `keys` go into every situation that is planned from. `state_file` remembers sysctls of others'
        devices.
        `peer_writer` writes this node's Peer as `own_peer` draws it, where there is somebody to tell.
        `make_tunnel_owner` gets what to call when names resolve anew, and who listens to its tunnels. HostError where
        this host cannot carry an agent at all."""
        self._source, self._planner, self._last_seen = source, planner, last_seen
        self._host = HostKeeper(state_file, self._addresses_changed, self._device_gone)
        self._intent, self._keys = intent, keys
        self._work = asyncio.Event()
        self._tunnel_owner = make_tunnel_owner(
            self._names_resolved, Listeners(on_report=self._report, on_inner=self._probe_came)
        )
        self._liveness = PeerLiveness(
            *intent.probe_intervals, random=os.urandom, on_change=self._work.set, node_of=self._node_of
        )
        self._probe_timer: asyncio.TimerHandle | None = None
        self._node, self._peer_writer, self._own_peer = node, peer_writer, own_peer
        self.introspection = Introspection(
            node,
            source,
            planner=planner,
            tunnel_owner=self._tunnel_owner,
            liveness=self._liveness,
            host=self._host,
            peer_writer=peer_writer,
        )
        self._snapshot: Snapshot | None = None
        self._facts: LocalFacts | None = None
        self._underlay = Underlay(node)
        self._subjects = SubjectIndex()
        self._resolved = False
        self._reopen = False
        self._reloads: list[asyncio.Future[None]] = []  # wait for a snapshot
        self._reloaded: list[asyncio.Future[None]] = []  # wait until it is in force
        self.converged = asyncio.Event()  # set once the first world is in force

    # Life.

    async def run(self, *, cleanup: bool = False) -> None:
        """Until cancelled, or until a defect ends one of its tasks, which ends all.

        At the end the host's routes stay, so that nothing leaves in clear until the next start; with `cleanup` an
        agent that is cancelled takes all of them along."""
        self._host.start()
        leaving = False
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_source(), name="follow source")
                tasks.create_task(self._converge_forever(), name="converge")
                tasks.create_task(self._beat(), name="heartbeat")
                tasks.create_task(self._host.ended(), name="watch upkeep")
                if self._peer_writer is not None:
                    tasks.create_task(self._peer_writer.run(), name="announce")
        except asyncio.CancelledError:
            leaving = cleanup
            raise
        finally:
            if self._probe_timer is not None:
                self._probe_timer.cancel()
            self._last_seen.save()
            await self._tunnel_owner.close()
            if leaving:
                await self._host.cleanup()
            await self._host.stop()

    async def reload(self) -> None:
        """Read the source and this host's facts again; returns when what was read is in force."""
        done = asyncio.get_running_loop().create_future()
        self._reloads.append(done)
        self._source.reload()
        await done

    # What wakes it.

    async def _follow_source(self) -> None:
        async for snapshot in self._source.snapshots():
            before = self.introspection.snapshot.problems if self.introspection.snapshot else ()
            for problem in snapshot.problems:
                if problem not in before:
                    log.warning("%s", problem)
            self.introspection.snapshot = snapshot
            if snapshot.readable:
                self.introspection.world_at = time.time()
                self._snapshot = snapshot
            elif self._snapshot is None:
                # A source that can not be read says nothing: what an earlier agent left on the host, the routes that
                # keep traffic from leaving in clear above all, stays until there is a world.
                log.warning("no world yet; the host stays as it is")
            if self._reloads:
                self._underlay.invalidate()
                self._reloaded += self._reloads
                self._reloads.clear()
            self._work.set()

    def _names_resolved(self) -> None:
        self._resolved = True
        self._work.set()

    def _addresses_changed(self) -> None:
        self._underlay.invalidate()
        self._work.set()

    def _device_gone(self, name: str) -> None:
        """Without its TUN a tunnel is of no use: open another. (Where there is no tunnel it was our own, of an
        attempt that failed, and the next attempt has its time.)"""
        if name == TUNNEL_DEVICE and self._tunnel_owner.tunnel is not None:
            self._reopen = True
            self._work.set()

    def _report(self, report: SessionUp | SessionLost) -> None:
        match report:
            case SessionUp():
                log.info("session with %s is up, at %s", report.name, report.endpoint)
            case SessionLost():
                # Without a failure it only ended: nobody needed it, or our own device went down. That proves nothing.
                why = f": {report.failure.value}" if report.failure else ""
                log.warning("session with %s is lost%s", report.name, why)
                if report.failure is not None:
                    self._liveness.handshake_failed(report.name, boottime())

    # Probing.

    def _probe(self) -> None:
        """Probe whom the tunnel has, say who we are, and come back when the next question is due."""
        tunnel, settings = self._tunnel_owner.tunnel, self._planner.tunnel_settings()
        self._liveness.attach(tunnel, settings.own_address)
        self._liveness.set_peers(self._tunnel_owner.peer_plans(), boottime())
        self._liveness.set_role(*self._introduction())
        self._ask()

    def _ask(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        now = boottime()
        again = self._liveness.tick(now)
        if again is not None:
            self._probe_timer = asyncio.get_running_loop().call_later(again - now, self._ask)

    def _probe_came(self, name: str, packet: bytes, _: bool) -> None:
        self._liveness.receive(name, packet, boottime())

    def _introduction(self) -> tuple[int, int]:
        """Our role and epoch as docs/protocol.md writes them."""
        role = self._planner.role
        gateway = self._snapshot.world.gateways.get(self._planner.region) if self._snapshot else None
        active = gateway.status.active if gateway else ()
        epochs = [endpoint.epoch for endpoint in active if endpoint.type is EndpointType.TUNNEL]
        return role.number, max(epochs, default=0)

    def _node_of(self, hashed: int) -> str | None:
        if self._snapshot is None:
            return None
        return self._subjects.lookup(hashed, self._snapshot.world)

    # Converging.

    async def _converge_forever(self) -> None:
        retry: asyncio.TimerHandle | None = None
        while True:
            await self._work.wait()
            self._work.clear()
            if retry is not None:
                retry.cancel()
                retry = None
            answered, self._reloaded = self._reloaded, []
            if self._snapshot is not None:
                await self._converge(self._snapshot.world)
                if self.introspection.tunnel_problem:
                    retry = asyncio.get_running_loop().call_later(RETRY, self._work.set)
                self.converged.set()
            for done in answered:
                if not done.done():
                    done.set_result(None)

    async def _converge(self, world: World) -> None:
        if (query := self._underlay.query(world)) is not None:
            port = self._planner.tunnel_settings().listen_port
            self._facts = await self._host.discover(query.destinations, query.pods, port)
        if self._facts is not None and self._facts.api != self._source.endpoints:
            self._facts = dataclasses.replace(self._facts, api=self._source.endpoints)
        began = time.monotonic()
        facts = self._facts if self._facts is not None else LocalFacts()
        delta = self._planner.update(Situation(world, self._liveness.liveness, facts, self._intent, self._keys))
        self._announce(world)
        if self._reopen:
            self._reopen = False
            await self._tunnel_owner.close()
        opened = False
        try:
            opened = await self._tunnel_owner.apply_additions(self._planner.plan, delta.tunnel)
        except HostError as error:
            if str(error) != self.introspection.tunnel_problem:
                log.error("no tunnel: %s", error)
            self.introspection.tunnel_problem = str(error)
        else:
            self.introspection.tunnel_problem = ""
        if self._resolved:
            self._resolved = False
            self._tunnel_owner.update_endpoints()
        wanted = WantedState(self._planner.host, self._planner.host_frame)
        await self._host.apply(delta.host, wanted, whole=opened, began=began)
        self._tunnel_owner.apply_removals(delta.tunnel)
        if delta.tunnel.peers_removed:
            self._last_seen.retain(self._tunnel_owner.peer_plans())
        self._probe()

    def _announce(self, world: World) -> None:
        """Say in our Peer what others need to know of this node."""
        if self._peer_writer is None or self._facts is None:
            return
        planner = self._planner
        self._peer_writer.set_content(
            self._own_peer.content(world, planner.role, planner.region, self._facts, self._host.addresses)
        )
        self._peer_writer.observe(world.peers.get(self._node))

    async def _beat(self) -> None:
        """Feel the loop, and do what is due now and then."""
        loop = asyncio.get_running_loop()
        saved = expected = look = loop.time()
        while True:
            expected += HEARTBEAT
            await asyncio.sleep(max(0.0, expected - loop.time()))
            now = loop.time()
            self.introspection.lag.record(expected, now)
            expected = max(expected, now)
            if now >= look:
                self._look(now)
                look = now + (loop.time() - now) / LOOK_SHARE
            if now - saved >= SAVE_INTERVAL and self._last_seen.unsaved:
                saved = now
                await asyncio.to_thread(self._last_seen.save)

    def _look(self, now: float) -> None:
        """Take in what the data plane has counted."""
        statuses = self._tunnel_owner.statuses()
        self.introspection.rates.update(statuses, now)
        self._last_seen.observe(statuses)
        self._liveness.observe(statuses, boottime())
        self._ask()
