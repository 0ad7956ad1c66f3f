"""The agent of one node: plan from one `Situation`, and keep tunnel and host as planned.

Every source (cluster or manifests, configuration, probing, kernel) replaces one field of the situation and wakes one
task. That task plans and applies, so changes that arrive together are planned together, and no two plans are applied
at the same time. Kernel calls run in the thread of `HostKeeper`; the event loop never waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.host import HostKeeper
from ravenvpn.agent.introspection import Introspection
from ravenvpn.agent.own_peer import peer_content
from ravenvpn.agent.peer_liveness import PeerLiveness
from ravenvpn.agent.reload_waiters import ReloadWaiters
from ravenvpn.agent.subject_index import SubjectIndex
from ravenvpn.agent.tunnel_owner import TunnelOwner
from ravenvpn.agent.underlay import Underlay
from ravenvpn.dataplane import boottime
from ravenvpn.errors import HostError
from ravenvpn.k8s.cluster import ApiState
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.peer_writer import PeerWriter
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import EndpointType
from ravenvpn.mesh.nodeplan import TunnelDelta
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import IdentityKeys, Intent, Observations, Situation
from ravenvpn.node.reconciler import WantedState
from ravenvpn.tunnel.driver import Listeners
from ravenvpn.tunnel.session_events import SessionLost, SessionUp

log = logging.getLogger(__name__)

# Seconds.
HEARTBEAT = 1.0  # between heartbeats of the event loop; how late one runs is the loop's lag
SAVE_INTERVAL = 1.0  # between writes of peers' endpoints: upper bound of what is lost if the agent is killed
RETRY = 2.0  # after a tunnel could not be opened or a port could not be bound
# Share of the loop's time that may go into reading counters. Reading a few peers every heartbeat costs nothing; with
# a thousand of them the pause between two readings grows until it does not cost more than this.
OBSERVE_SHARE = 0.01


class WorldSource(Protocol):
    """Source of worlds: a directory of manifests, or a cluster. `str()` names it for people."""

    @property
    def api(self) -> ApiState | None:
        """State of the connection to the API server; None where there is none."""

    @property
    def endpoints(self) -> tuple[ApiEndpoint, ...]:
        """Addresses at which the API server is dialled. A snapshot follows when they change."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the present snapshot, then each that differs from the one before."""

    def reload(self) -> None:
        """Read the source again now, and yield a snapshot even if nothing differs."""


class Agent:
    """One node's agent. Everything but `run` is called on the event loop while `run` runs."""

    def __init__(
        self,
        node: str,
        source: WorldSource,
        intent: Intent,
        keys: IdentityKeys,
        *,
        last_seen: LastSeen,
        state_file: Path,
        body: str | None = None,
        peer_writer: PeerWriter | None = None,
    ) -> None:
        """Open the host; HostError where it cannot carry an agent (CAP_NET_ADMIN is missing).

        `state_file` holds the former values of sysctls that other programs own. `body` forces a data plane, see
        `TunnelOwner`. `peer_writer` writes our Peer object; None where the world does not come from a cluster."""
        self._node, self._source, self._last_seen, self._peer_writer = node, source, last_seen, peer_writer
        self._situation = Situation(intent=intent, keys=keys)
        self._has_world = False  # `_situation.world` was read; until then nothing is planned
        self._work = asyncio.Event()  # something to plan or to apply
        self._planner = Planner(node)
        self._tunnel_owner = TunnelOwner(
            last_seen=last_seen,
            on_stale=self._work.set,
            listeners=Listeners(on_session_event=self._on_session_event, on_inner_packet=self._on_probe),
            body=body,
        )
        self._host = HostKeeper(state_file, self._addresses_changed, self._tunnel_owner.device_lost)
        self._liveness = PeerLiveness(
            *intent.probe_intervals, random=os.urandom, on_change=self._liveness_changed, node_of=self._node_of
        )
        self._probe_timer: asyncio.TimerHandle | None = None  # calls `_send_probes` when the next probe is due
        self._underlay = Underlay(node)
        self._subjects = SubjectIndex()
        self._reloads = ReloadWaiters()
        self.introspection = Introspection(
            node,
            source,
            planner=self._planner,
            tunnel_owner=self._tunnel_owner,
            liveness=self._liveness,
            host=self._host,
            peer_writer=peer_writer,
        )
        self.converged = asyncio.Event()  # the first world is in force

    # Life.

    async def run(self, *, cleanup: Callable[[], bool] = lambda: False) -> None:
        """Run until cancelled, or until an exception in one task ends all of them.

        At the end the host's routes stay, so that no traffic leaves unencrypted before the next start. If the agent
        is cancelled while `cleanup()` is true, everything of ours is removed from the host."""
        self._host.start()
        leaving = False
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_source(), name="follow source")
                tasks.create_task(self._converge_forever(), name="converge")
                tasks.create_task(self._beat(), name="heartbeat")
                tasks.create_task(self._host.ended(), name="watch host")
                if self._peer_writer is not None:
                    tasks.create_task(self._peer_writer.run(), name="write own Peer")
        except asyncio.CancelledError:
            leaving = cleanup()
            raise
        finally:
            if self._probe_timer is not None:
                self._probe_timer.cancel()
            # The host's sockets are closed last, since removing everything needs them.
            self._last_seen.save()
            await self._tunnel_owner.close()
            if leaving:
                await self._host.cleanup()
            await self._host.stop()

    def set_intent(self, intent: Intent) -> None:
        """Replace the operator's settings; they are in force when a `reload` that is called next returns."""
        self._replace(replace(self._situation, intent=intent))

    async def reload(self) -> None:
        """Read the source and this host's facts again; return when the result is in force."""
        waiter = self._reloads.add()
        self._source.reload()
        await waiter

    # Sources of the situation.

    def _replace(self, situation: Situation) -> None:
        """Plan from this situation soon."""
        self._situation = situation
        self._work.set()

    async def _follow_source(self) -> None:
        """Take every snapshot of the source: log its new problems, and plan from its world if it could be read."""
        async for snapshot in self._source.snapshots():
            before = self.introspection.snapshot.problems if self.introspection.snapshot else ()
            for problem in snapshot.problems:
                if problem not in before:
                    log.warning("%s", problem)
            self.introspection.snapshot = snapshot
            if snapshot.readable:
                self.introspection.world_at = time.time()
                self._has_world = True
                self._situation = replace(self._situation, world=snapshot.world)
            elif not self._has_world:
                # An unreadable source says nothing about the world. Routes that an earlier agent left on the host,
                # above all those that keep traffic from leaving unencrypted, stay until there is a world to plan
                # from.
                log.warning("no world could be read yet; the host stays as it is")
            if self._reloads.snapshot_arrived():
                self._underlay.invalidate()
            self._work.set()

    def _liveness_changed(self) -> None:
        """Plan with the new verdicts: a dead hub or gateway is replaced."""
        self._replace(replace(self._situation, liveness=self._liveness.liveness))

    def _addresses_changed(self) -> None:
        """Discover the host again before the next plan: sources, LAN addresses and path MTUs can be others."""
        self._underlay.invalidate()
        self._work.set()

    def _on_session_event(self, event: SessionUp | SessionLost) -> None:
        """Log a session that came up or was lost, and pass a failed handshake on to liveness."""
        match event:
            case SessionUp():
                log.info("session with %s is up, at %s", event.name, event.endpoint)
            case SessionLost():
                # Without a failure the session only ended, because it was not needed or our own device went down.
                # That says nothing about the peer.
                why = f": {event.failure.value}" if event.failure else ""
                log.warning("session with %s is lost%s", event.name, why)
                if event.failure is not None:
                    self._liveness.handshake_failed(event.name, boottime())

    # Probing.

    def _set_probed(self) -> None:
        """Probe the tunnel's peers with our present role, and start the timer of the next probe."""
        self._liveness.attach(self._tunnel_owner.tunnel, self._planner.tunnel_settings().own_address)
        self._liveness.set_intervals(*self._situation.intent.probe_intervals)
        self._liveness.set_peers(self._tunnel_owner.peer_plans(), boottime())
        self._liveness.set_role(*self._role_and_epoch())
        self._send_probes()

    def _send_probes(self) -> None:
        """Send the probes that are due, and set the timer for the next ones; replaces a timer that is set."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        now = boottime()
        due = self._liveness.tick(now)
        if due is not None:
            self._probe_timer = asyncio.get_running_loop().call_later(due - now, self._send_probes)

    def _on_probe(self, name: str, packet: bytes, _: bool) -> None:
        """Handle an inner packet for the probe port. The flag is the outer ECN mark (CE), which probes do not use."""
        self._liveness.receive(name, packet, boottime())

    def _role_and_epoch(self) -> tuple[int, int]:
        """Return our role code and epoch as the probe header carries them (docs/protocol.md)."""
        gateway = self._situation.world.gateways.get(self._planner.region)
        active = gateway.status.active if gateway else ()
        epochs = [endpoint.epoch for endpoint in active if endpoint.type is EndpointType.TUNNEL]
        return self._planner.role.number, max(epochs, default=0)

    def _node_of(self, hashed: int) -> str | None:
        """Return the active gateway node with this hash (docs/protocol.md), None if the present world has none."""
        return self._subjects.lookup(hashed, self._situation.world)

    # Planning and applying.

    async def _converge_forever(self) -> None:
        """Plan and apply whenever something changed; retry after `RETRY` while the tunnel has a problem."""
        retry: asyncio.TimerHandle | None = None
        while True:
            await self._work.wait()
            self._work.clear()
            if retry is not None:
                retry.cancel()
                retry = None
            waiters = self._reloads.take()  # before planning: a reload that arrives meanwhile needs another pass
            if self._has_world:
                await self._converge()
                # A former port is closed after a while, and its rules are then removed by another pass.
                if self.introspection.tunnel_problem or len(self._tunnel_owner.ports()) > 1:
                    retry = asyncio.get_running_loop().call_later(RETRY, self._work.set)
                self.converged.set()
            self._reloads.release(waiters)

    async def _converge(self) -> None:
        """Plan from the present situation and apply what the plan changed.

        The tunnel's additions come before the host's change and its removals after it, so that no route ever leads to
        a peer that the tunnel does not have. Rules for another port of the tunnel come before both."""
        await self._discover_host()
        if (ports := self._tunnel_owner.ports()) != self._situation.observed.tunnel_ports:
            self._situation = replace(self._situation, observed=Observations(tunnel_ports=ports))
        situation = self._situation
        began = time.monotonic()
        delta = self._planner.update(situation)  # costs as much as what differs from the situation before
        if self._peer_writer is not None:
            planner, present = self._planner, self._host.addresses
            self._peer_writer.set_content(peer_content(self._node, situation, planner.role, planner.region, present))
            self._peer_writer.observe(situation.world.peers.get(self._node))
        self._tunnel_owner.configure(situation.intent, situation.keys)
        wanted = WantedState(self._planner.host, self._planner.host_frame)
        host_delta = delta.host
        if self._tunnel_owner.moves_port(delta.tunnel):
            host_delta = await self._host.add_rules(host_delta, wanted)
        opened = await self._add_to_tunnel(delta.tunnel)
        await self._host.apply(host_delta, wanted, whole=opened, began=began)
        self._tunnel_owner.apply_removals(delta.tunnel)
        # Not at every pass: it costs a step a peer.
        if delta.tunnel.peers_removed:
            self._last_seen.retain(self._tunnel_owner.peer_plans())
        self._set_probed()

    async def _discover_host(self) -> None:
        """Bring the situation's facts up to date, if the world or the host changed in what they depend on.

        Other fields of the situation can change while the kernel is asked, so only this one is replaced."""
        query = self._underlay.query(self._situation.world)
        facts = self._situation.facts
        if query is not None:
            port = self._planner.tunnel_settings().listen_port
            facts = await self._host.discover(query.destinations, query.pods, port)
        if facts.api != self._source.endpoints:
            facts = replace(facts, api=self._source.endpoints)
        if facts is not self._situation.facts:
            self._situation = replace(self._situation, facts=facts)

    async def _add_to_tunnel(self, delta: TunnelDelta) -> bool:
        """Apply a delta's additions; return whether a tunnel was opened. A failure is logged once and reported."""
        try:
            opened = await self._tunnel_owner.apply_additions(self._planner.plan, delta)
        except HostError as error:
            if str(error) != self.introspection.tunnel_problem:
                log.error("tunnel: %s; retried every %.0f s", error, RETRY)
            self.introspection.tunnel_problem = str(error)
            return False
        self.introspection.tunnel_problem = ""
        return opened

    async def _beat(self) -> None:
        """Measure the loop's lag at every heartbeat, read the data plane's counters, and save endpoints.

        A heartbeat that came late moves the next ones, so that one block of the loop is counted once."""
        loop = asyncio.get_running_loop()
        saved = expected = observe = loop.time()
        while True:
            expected += HEARTBEAT
            await asyncio.sleep(max(0.0, expected - loop.time()))
            now = loop.time()
            self.introspection.lag.record(expected, now)
            expected = max(expected, now)
            if now >= observe:
                self._observe(now)
                observe = now + (loop.time() - now) / OBSERVE_SHARE
            if now - saved >= SAVE_INTERVAL and self._last_seen.unsaved:
                saved = now
                await asyncio.to_thread(self._last_seen.save)

    def _observe(self, now: float) -> None:
        """Read the data plane's counters of all peers: rates, endpoints, traffic.

        `now` is the loop's clock (monotonic); liveness and the tunnel use CLOCK_BOOTTIME, which includes suspend."""
        statuses = self._tunnel_owner.statuses()
        self.introspection.rates.update(statuses, now)
        self._last_seen.observe(statuses)
        self._liveness.observe(statuses, boottime())
        self._send_probes()
