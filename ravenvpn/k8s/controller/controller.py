"""The controller as a whole: follows, stands for election, and while it leads decides and writes.

Every replica follows all the time, so the one that takes over knows the cluster already. A term of leadership begins
with a look at everything and an empty memory; what is active stays so, hence nothing moves when the leader does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller import yurt_manager
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decide import Rights, subject
from ravenvpn.k8s.controller.discovery import Discovery
from ravenvpn.k8s.controller.events import EventLog, EventNotice
from ravenvpn.k8s.controller.informers import PATIENCE, PATIENCE_OF_LEADER, Informers
from ravenvpn.k8s.controller.reconcile import ReconcileQueue
from ravenvpn.k8s.controller.writer import FIELD_MANAGER, NAMESPACE, ObjectWriter
from ravenvpn.k8s.controller.yurt_manager import Elect, Opinion
from ravenvpn.k8s.lease import Alone, Candidacy, Election, LeaseTiming

log = logging.getLogger(__name__)

LEASE_NAME = "raven-vpn-controller"
# Seconds.
SWEEP = 600.0  # everything is looked at again, whether anybody touched it or not
JUDGE = 15.0  # whether yurt-manager is (still) there
GATHER = 0.005  # changes that come together are decided together


class Names(Protocol):
    """Host names of load balancers, resolved and kept fresh by somebody else."""

    def set_names(self, names: Iterable[str]) -> None: ...
    def lookup(self, host: str) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """`identity` tells this replica from the others; it stands in the Lease."""

    identity: str
    elect: Elect = Elect.AUTO
    leader_election: bool = True
    lease_namespace: str = NAMESPACE
    lease_name: str = LEASE_NAME
    timing: LeaseTiming = field(default_factory=LeaseTiming)
    publish_keys: bool = True


@dataclass(frozen=True, slots=True)
class ControllerReport:
    """What probes and scrapers are told. `unready` says why this replica could not do the work; empty: it can."""

    leading: bool
    leader: str
    transitions: int
    elects: bool
    why: str
    unready: tuple[str, ...]
    gateways: int
    nodes: int
    peers: int
    conflicts: int
    failing: Mapping[str, str]
    defects: int
    written: Mapping[tuple[str, str], int]
    events_suppressed: int
    connected: Mapping[str, bool]


class Controller:
    """`run` it. Nothing the API server does or holds ends it."""

    def __init__(
        self,
        client: Client,
        options: Options,
        names: Names,
        *,
        draw: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`draw` is evenly from 0 to 1, `clock` seconds that nobody sets, `wall` seconds since 1970."""
        self.view = ClusterCache()
        self._options, self._names = options, names
        self._draw, self._clock, self._wall = draw, clock, wall
        self._wake = asyncio.Event()
        self._following = Informers(client, self.view, self._followed, draw=draw, wall=wall)
        self._was_fit = False
        self._surroundings = Discovery(client, self._asked, draw)
        self._election: Election | None = None
        if options.leader_election:
            self._election = Election(
                client,
                Candidacy(options.identity, options.timing),
                name=options.lease_name,
                namespace=options.lease_namespace,
                on_change=self._wake.set,
                fit=self._may_stand,
                clock=clock,
                jitter=draw,
            )
        self._events = EventLog(options.identity)
        self._leadership = self._election or Alone()
        self._writer = ObjectWriter(client, self.view, self._leadership, self._events, wall)
        self._rounds: ReconcileQueue | None = None
        self._opinion: Opinion | None = None
        self._rights: Rights | None = None
        self._judged_at = self._swept_at = clock()

    async def run(self) -> None:
        """Until cancelled; then the Lease is given up."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._following.run(), name="following")
            tasks.create_task(self._surroundings.run(), name="surroundings")
            if self._election is not None:
                tasks.create_task(self._election.run(), name="election")
            tasks.create_task(self._decide_forever(), name="deciding")

    def names_changed(self) -> None:
        """A host name of a load balancer leads elsewhere."""
        named = {service.gateway for service in self.view.services.values() if service.ingress}
        self.view.touched |= named
        self._wake.set()

    def report(self) -> ControllerReport:
        rounds, election = self._rounds, self._election
        connections = self._following.connections()
        return ControllerReport(
            leading=self._leadership.leading(),
            leader=election.candidacy.holder if election else self._options.identity,
            transitions=election.candidacy.transitions if election else 0,
            elects=self._opinion.elects if self._opinion else False,
            why=self._opinion.why if self._opinion else "not known yet",
            unready=tuple(self._unready()),
            gateways=len(self.view.gateways),
            nodes=len(self.view.nodes),
            peers=len(self.view.peers),
            conflicts=rounds.standing.count() if rounds else 0,
            failing=dict(rounds.failing) if rounds else {},
            defects=rounds.defects if rounds else 0,
            written=dict(self._writer.written),
            events_suppressed=self._events.suppressed,
            connected={str(kind): one.connected_since is not None for kind, one in connections.items()},
        )

    def _unready(self) -> Sequence[str]:
        found = []
        if not self._following.fit():
            errors = {c.error for c in self._following.connections().values() if c.error}
            found.append(f"Gateways and Nodes are not known: {'; '.join(sorted(errors)) or 'still listing'}")
        if not self._surroundings.known:
            found.append("what this cluster serves is not known yet")
        return found

    def _may_stand(self) -> bool:
        return self._following.fit(PATIENCE_OF_LEADER if self._leadership.leading() else PATIENCE)

    def _followed(self) -> None:
        """The view grew, or a connection changed."""
        fit = self._following.fit()
        if fit and not self._was_fit and self._election is not None:
            self._election.nudge()
        self._was_fit = fit
        self._wake.set()

    def _asked(self) -> None:
        """An answer of the surroundings changed."""
        if self._surroundings.calico:
            self._following.follow_blocks()
        self._judged_at -= JUDGE
        self._wake.set()

    async def _decide_forever(self) -> None:
        try:
            while True:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(JUDGE):
                        await self._wake.wait()
                await asyncio.sleep(GATHER)
                self._wake.clear()
                await self._decide()
        finally:
            self._end_term()

    async def _decide(self) -> None:
        if not self._leadership.leading():
            self._end_term()
            return
        if self._rounds is None:
            if not (self._following.settled and self._surroundings.known):
                return
            assert self._surroundings.mesh is not None
            self._rounds = ReconcileQueue(
                self.view,
                self._writer,
                self._surroundings.mesh,
                self._names.lookup,
                draw=self._draw,
                wall=self._wall,
            )
            self._opinion = self._rights = None
        now = self._clock()
        if now - self._swept_at >= SWEEP:
            self._swept_at = now
            self.view.touch_all()
        # A heartbeat of a Node touches nothing, and there are many.
        if self.view.touched or self._rights is None or now - self._judged_at >= JUDGE:
            self._judged_at = now
            await self._judge()
        if self._rights is None:
            asyncio.get_running_loop().call_later(1.0, self._wake.set)  # who elects here is not known yet
            return
        if self.view.touched or self.view.touched_peers:
            await self._rounds.look(self._rights, self._wake.set)
            self._names.set_names({name for service in self.view.services.values() for name in service.ingress})

    def _end_term(self) -> None:
        if self._rounds is not None:
            self._rounds.close()
            self._rounds = None

    async def _judge(self) -> None:
        """Who elects, and what may be written; a change of either is a reason to look at everything."""
        opinion = self._opinion_now()
        surroundings = self._surroundings
        surroundings.look_at_lease = self._options.elect is Elect.AUTO and bool(opinion.gateway)
        if surroundings.look_at_lease and not surroundings.lease_known:
            if not await surroundings.ask_for_lease():
                return
            opinion = self._opinion_now()
        before, self._opinion = self._opinion, opinion
        if before is None or opinion.elects is not before.elects:
            log.info("this controller %s: %s", "elects" if opinion.elects else "steps back", opinion.why)
            held = self.view.gateways.get(opinion.gateway)
            if held is not None and (not opinion.elects or before is not None):
                reason = "ElectionTaken" if opinion.elects else "SteppedBack"
                await self._writer.tell([EventNotice(subject(held), reason, opinion.why)])
        rights = Rights(opinion.elects, surroundings.added or frozenset(), self._options.publish_keys)
        if rights != self._rights:
            self._rights = rights
            self.view.touch_all()

    def _opinion_now(self) -> Opinion:
        lease = self._surroundings.lease_renewed
        return yurt_manager.judge(
            self._options.elect, self.view.gateways.values(), FIELD_MANAGER, lease, self._wall()
        )
