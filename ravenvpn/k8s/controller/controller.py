"""The controller: watch, stand for election, and while leading reconcile the Gateways.

Every replica watches all the time, so the one that takes over has the cluster in its cache. A term of leadership
starts with every Gateway dirty and no memory of the term before; an elected endpoint stays elected while its node is
Ready, so a new leader changes nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decide import WriteScope, subject
from ravenvpn.k8s.controller.discovery import Discovery
from ravenvpn.k8s.controller.events import EventCorrelator, EventNotice
from ravenvpn.k8s.controller.informers import MAX_DISCONNECTED, MAX_DISCONNECTED_LEADER, Informers
from ravenvpn.k8s.controller.options import ControllerOptions, ElectMode
from ravenvpn.k8s.controller.reconcile import ReconcileQueue
from ravenvpn.k8s.controller.writer import FIELD_MANAGER, ObjectWriter
from ravenvpn.k8s.controller.yurt_manager import ElectionOwner, election_owner
from ravenvpn.k8s.lease import Alone, Candidacy, Election

log = logging.getLogger(__name__)

# Seconds.
RESYNC = 600.0  # every Gateway is decided anew, in case a change was missed
OWNER_INTERVAL = 15.0  # between two checks whether yurt-manager elects; its Lease is read as often
OWNER_RETRY = 1.0  # while it is not known whether yurt-manager elects
COALESCE = 0.005  # changes that arrive within this time are decided together


class HostNames(Protocol):
    """A resolver of host names that answers from memory and resolves in the background."""

    def set_names(self, names: Iterable[str]) -> None:
        """Keep exactly these names resolved."""

    def lookup(self, host: str) -> Sequence[str]:
        """Return the addresses of a name, () while it is not resolved; of an address the address itself."""


@dataclass(frozen=True, slots=True)
class ControllerReport:
    """A snapshot for probes and metrics."""

    leading: bool
    leader: str  # holder of the Lease as last seen; empty: none or not known
    elects: bool  # False: another controller elects, or it is not known yet
    why: str  # the reason for `elects`
    unready: tuple[str, ...]  # why this replica could not lead; empty: it could
    gateways: int
    nodes: int
    peers: int
    conflicts: int
    failing: Mapping[str, str]  # Gateway → error of its last write
    defects: int
    written: Mapping[tuple[str, str], int]  # object and outcome → writes, see `ObjectWriter.written`
    events_suppressed: int
    connected: Mapping[str, bool]  # kind → its watch is connected


class Controller:
    """One replica. Errors of the API server and malformed objects never end `run`; they are logged and retried."""

    def __init__(
        self,
        client: Client,
        options: ControllerOptions,
        names: HostNames,
        *,
        draw: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`draw` draws evenly from 0.0 to 1.0; `clock` returns seconds of CLOCK_BOOTTIME, `wall` since 1970."""
        self._options, self._names = options, names
        self._draw, self._clock, self._wall = draw, clock, wall
        self._cache = ClusterCache()
        self._wake = asyncio.Event()  # wakes the reconcile loop
        self._informers = Informers(client, self._cache, self._on_informed, draw=draw, wall=wall)
        self._was_healthy = False
        self._discovery = Discovery(client, self._on_discovered, draw)
        self._election: Election | None = None
        if options.leader_election:
            self._election = Election(
                client,
                Candidacy(options.identity, options.timing),
                name=options.lease_name,
                namespace=options.lease_namespace,
                on_change=self._wake.set,
                fit=self._may_lead,
                clock=clock,
                jitter=draw,
            )
        self._leadership = self._election or Alone()
        self._events = EventCorrelator(options.identity)
        self._writer = ObjectWriter(client, self._cache, self._leadership, self._events, wall)
        self._queue: ReconcileQueue | None = None  # of this term; None while not leading
        self._owner: ElectionOwner | None = None  # None: not known yet in this term
        self._scope: WriteScope | None = None  # None: not known yet in this term
        self._checked_at = self._resynced_at = clock()  # of the election owner; of all Gateways

    async def run(self) -> None:
        """Run until cancelled; the Lease is given up then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._informers.run(), name="informers")
            tasks.create_task(self._discovery.run(), name="discovery")
            if self._election is not None:
                tasks.create_task(self._election.run(), name="election")
            tasks.create_task(self._reconcile_forever(), name="reconcile")

    def on_resolved(self) -> None:
        """Reconcile the Gateways with load balancers: a host name of one resolves to other addresses now."""
        self._cache.dirty |= {service.gateway for service in self._cache.services.values() if service.ingress}
        self._wake.set()

    def report(self) -> ControllerReport:
        """Return a snapshot of the present state."""
        queue, owner = self._queue, self._owner
        connections = self._informers.connections()
        return ControllerReport(
            leading=self._leadership.leading(),
            leader=self._election.candidacy.holder if self._election else self._options.identity,
            elects=owner.elects if owner else False,
            why=owner.why if owner else "not known yet",
            unready=tuple(self._unready()),
            gateways=len(self._cache.gateways),
            nodes=len(self._cache.nodes),
            peers=len(self._cache.peers),
            conflicts=queue.conflicts.count() if queue else 0,
            failing=dict(queue.failing) if queue else {},
            defects=queue.defects if queue else 0,
            written=dict(self._writer.written),
            events_suppressed=self._events.suppressed,
            connected={str(kind): one.connected_since is not None for kind, one in connections.items()},
        )

    def _unready(self) -> Sequence[str]:
        """Return the reasons why this replica could not lead now, as sentences for /readyz; empty if it could."""
        reasons = []
        if not self._informers.healthy():
            errors = {c.error for c in self._informers.connections().values() if c.error}
            reasons.append(f"Gateways and Nodes are not listed: {'; '.join(sorted(errors)) or 'still listing'}")
        if not self._discovery.complete:
            reasons.append(
                "discovery of the served resources is not complete; the log has the error, if there is one"
            )
        return reasons

    def _may_lead(self) -> bool:
        """Whether this replica sees the cluster well enough to take the Lease or, while it leads, to keep it."""
        return self._informers.healthy(MAX_DISCONNECTED_LEADER if self._leadership.leading() else MAX_DISCONNECTED)

    def _on_informed(self) -> None:
        """Wake the reconcile loop after a change of the cache or of a connection. A replica that has just become
        healthy tries for the Lease at once, instead of after the retry period.
        """
        healthy = self._informers.healthy()
        if healthy and not self._was_healthy and self._election is not None:
            self._election.retry_now()
        self._was_healthy = healthy
        self._wake.set()

    def _on_discovered(self) -> None:
        """Act on a changed fact of discovery; the election owner is checked at once."""
        if self._discovery.calico:
            self._informers.start_blocks()
        self._checked_at -= OWNER_INTERVAL
        self._wake.set()

    async def _reconcile_forever(self) -> None:
        """Reconcile after every wake-up, and every `OWNER_INTERVAL` without one.

        Ends the term when cancelled, so that no write outlives the Lease that is about to be released.
        """
        try:
            while True:
                # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that arrives with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OWNER_INTERVAL):
                        await self._wake.wait()
                await asyncio.sleep(COALESCE)
                self._wake.clear()
                await self._reconcile()
        finally:
            self._end_term()

    async def _reconcile(self) -> None:
        """Reconcile what is dirty, if this replica leads and knows what it may write.

        A term begins only when every kind is listed: deciding on half a cluster would move roles and delete Services.
        """
        if not self._leadership.leading():
            self._end_term()
            return
        if self._queue is None:
            if not (self._informers.synced and self._discovery.complete):
                return
            self._queue = self._begin_term()
        now = self._clock()
        if now - self._resynced_at >= RESYNC:
            self._resynced_at = now
            self._cache.mark_all_dirty()
        # Heartbeats of Nodes wake the loop without making anything dirty. A large cluster has many, and they must not
        # cost a check each.
        if self._cache.dirty or self._scope is None or now - self._checked_at >= OWNER_INTERVAL:
            self._checked_at = now
            await self._update_scope()
        if self._scope is None:
            asyncio.get_running_loop().call_later(OWNER_RETRY, self._wake.set)
            return
        if self._cache.dirty or self._cache.dirty_peers:
            await self._queue.reconcile(self._scope, self._wake.set)
            self._names.set_names({name for service in self._cache.services.values() for name in service.ingress})

    def _begin_term(self) -> ReconcileQueue:
        """Return the queue of a new term.

        Nothing is kept from the term before: another replica may have written in between.
        """
        assert self._discovery.mesh is not None
        self._owner = self._scope = None
        return ReconcileQueue(
            self._cache,
            self._writer,
            self._discovery.mesh,
            self._names.lookup,
            draw=self._draw,
            wall=self._wall,
        )

    def _end_term(self) -> None:
        """Cancel writes and retries of this term, if there is one."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    async def _update_scope(self) -> None:
        """Decide who elects and what may be written; if either changed, every Gateway becomes dirty.

        The scope stays unknown while the Lease of yurt-manager matters and the API server does not answer for it.
        """
        owner = self._election_owner()
        discovery = self._discovery
        discovery.poll_lease = self._options.elect is ElectMode.AUTO and bool(owner.gateway)
        if discovery.poll_lease and not discovery.lease_known:
            if not await discovery.read_lease():
                return
            owner = self._election_owner()
        before, self._owner = self._owner, owner
        if before is None or owner.elects is not before.elects:
            log.info("this controller %s: %s", "elects" if owner.elects else "steps back", owner.why)
            gateway = self._cache.gateways.get(owner.gateway)
            if gateway is not None and (not owner.elects or before is not None):
                reason = "ElectionTaken" if owner.elects else "SteppedBack"
                await self._writer.emit([EventNotice(subject(gateway), reason, owner.why)])
        scope = WriteScope(owner.elects, discovery.extra_fields or frozenset(), self._options.publish_keys)
        if scope != self._scope:
            self._scope = scope
            self._cache.mark_all_dirty()

    def _election_owner(self) -> ElectionOwner:
        """Return who elects, by what the cache and discovery know at this moment."""
        lease_renewed = self._discovery.lease_renewed
        gateways = self._cache.gateways.values()
        return election_owner(self._options.elect, gateways, FIELD_MANAGER, lease_renewed, self._wall())
