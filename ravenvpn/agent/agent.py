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
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import ravenvpn
from ravenvpn import dataplane
from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.probing import Probing, subject
from ravenvpn.agent.report import DataPlaneReport, PeerReport, PeerState, PlanLine, ProblemReport, StatusReport
from ravenvpn.agent.reporting import Rates, peer_reports, plan_lines, region_reports
from ravenvpn.agent.resolve import is_literal
from ravenvpn.agent.sessions import Sessions
from ravenvpn.agent.upkeep import Upkeep
from ravenvpn.dataplane import boottime
from ravenvpn.errors import HostError
from ravenvpn.k8s.files import Snapshot
from ravenvpn.mesh.context import LocalFacts
from ravenvpn.mesh.hoststate import TUNNEL_DEVICE
from ravenvpn.mesh.identity import tunnel_address
from ravenvpn.mesh.model import EndpointType, World
from ravenvpn.mesh.nodeplan import NodePlan, Role
from ravenvpn.mesh.plan import Planner
from ravenvpn.tunnel.driver import Listeners, TunnelStatus
from ravenvpn.tunnel.reports import SessionLost, SessionUp

log = logging.getLogger(__name__)

# Seconds.
HEARTBEAT = 0.5  # how often the loop is felt; a heartbeat that comes late is how blocking shows
SAVE_INTERVAL = 30.0
RETRY = 2.0  # after a tunnel could not be opened


# What docs/protocol.md calls a node's role.
_ROLES = {Role.NONE: 0, Role.ACTIVE: 1, Role.STANDBY: 2, Role.PLAIN: 3}


class Source(Protocol):
    """Where worlds come from: a directory, or a cluster. `str()` is how a person names it."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """The present one first, then each that differs."""

    def reload(self) -> None:
        """Look again now."""


class Agent:
    """See the module. `run` until cancelled; the rest is what the control socket asks for."""

    def __init__(
        self,
        node: str,
        source: Source,
        planner: Planner,
        last_seen: LastSeen,
        *,
        state_file: Path,
        probe_intervals: tuple[float, float],
        make_sessions: Callable[[Callable[[], None], Listeners], Sessions],
    ) -> None:
        """`state_file` remembers sysctls of others' devices; `probe_intervals` are seconds with and without traffic.
        `make_sessions` gets what to call when names resolve anew, and who listens to its tunnels. HostError where
        this host cannot carry an agent at all."""
        self._node, self._source, self._planner, self._last_seen = node, source, planner, last_seen
        self._upkeep = Upkeep(state_file, self._addresses_changed, self._device_gone)
        self._work = asyncio.Event()
        self._sessions = make_sessions(
            self._names_resolved, Listeners(on_report=self._report, on_inner=self._probe_came)
        )
        self._probing = Probing(*probe_intervals, random=os.urandom, on_change=self._work.set, node_of=self._node_of)
        self._probe_timer: asyncio.TimerHandle | None = None
        self._snapshot: Snapshot | None = None
        self._world_at: float | None = None  # Unix seconds
        self._facts: LocalFacts | None = None  # None: to be read before planning
        self._resolved = False
        self._reopen = False
        self._tunnel_problem = ""
        self._rates = Rates()
        self._started = time.time()
        self._lag = 0.0
        self.converged = asyncio.Event()  # set once the first world is in force

    # Life.

    async def run(self) -> None:
        """Until cancelled. The host's routes stay, so that nothing leaves in clear until the next start."""
        self._upkeep.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_source())
                tasks.create_task(self._converge_forever())
                tasks.create_task(self._beat())
        finally:
            self._last_seen.save()
            await self._sessions.close()
            await self._upkeep.stop()

    async def cleanup(self) -> None:
        """Remove everything of ours from the host. The agent is of no use afterwards."""
        await self._sessions.close()
        await self._upkeep.cleanup()

    def reload(self) -> None:
        """Read the source again, and this host's facts."""
        self._facts = None
        self._source.reload()
        self._work.set()

    # What wakes it.

    async def _follow_source(self) -> None:
        async for snapshot in self._source.snapshots():
            before = self._snapshot.problems if self._snapshot else ()
            for problem in snapshot.problems:
                if problem not in before:
                    log.warning("%s", problem)
            self._snapshot = snapshot
            if snapshot.readable:
                self._world_at = time.time()
            self._work.set()

    def _names_resolved(self) -> None:
        self._resolved = True
        self._work.set()

    def _addresses_changed(self) -> None:
        self._facts = None
        self._work.set()

    def _device_gone(self, name: str) -> None:
        """Without its TUN a tunnel is of no use: open another."""
        if name == TUNNEL_DEVICE:
            self._reopen = True
            self._work.set()

    def _report(self, report: SessionUp | SessionLost) -> None:
        match report:
            case SessionUp():
                log.info("session with %s is up, at %s", report.name, report.endpoint)
            case SessionLost():
                why = f": {report.failure.value}" if report.failure else ""
                log.warning("session with %s is lost%s", report.name, why)
                self._probing.given_up(report.name, boottime())

    # Probing.

    def _probe(self) -> None:
        """Probe whom the tunnel has, say who we are, and come back when the next question is due."""
        tunnel, settings = self._sessions.tunnel, self._planner.tunnel_settings()
        self._probing.adopt(tunnel, settings.own_address)
        self._probing.watch(self._sessions.probed(), boottime())
        self._probing.introduce(*self._introduction())
        self._ask()

    def _ask(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        now = boottime()
        again = self._probing.tick(now)
        if again is not None:
            self._probe_timer = asyncio.get_running_loop().call_later(again - now, self._ask)

    def _probe_came(self, name: str, packet: bytes, _: bool) -> None:
        self._probing.receive(name, packet, boottime())

    def _introduction(self) -> tuple[int, int]:
        """Our role and epoch as docs/protocol.md writes them."""
        role = self._planner.role
        gateway = self._snapshot.world.gateways.get(self._planner.region) if self._snapshot else None
        active = gateway.status.active if gateway else ()
        epochs = [endpoint.epoch for endpoint in active if endpoint.type is EndpointType.TUNNEL]
        return _ROLES[role], max(epochs, default=0)

    def _node_of(self, hashed: int) -> str | None:
        if self._snapshot is None:
            return None
        world = self._snapshot.world
        named = (endpoint.node for gateway in world.gateways.values() for endpoint in gateway.status.active)
        return next((node for node in named if subject(tunnel_address(world.mesh, node)) == hashed), None)

    # Converging.

    async def _converge_forever(self) -> None:
        retry: asyncio.TimerHandle | None = None
        while True:
            await self._work.wait()
            self._work.clear()
            if retry is not None:
                retry.cancel()
                retry = None
            if self._snapshot is None:
                continue
            await self._converge(self._snapshot.world)
            if self._tunnel_problem:
                retry = asyncio.get_running_loop().call_later(RETRY, self._work.set)
            self.converged.set()

    async def _converge(self, world: World) -> None:
        if self._facts is None:
            self._facts = await self._look_around(world)
        delta = self._planner.update(world, self._probing.liveness, self._facts)
        if self._reopen:
            self._reopen = False
            await self._sessions.close()
        try:
            await self._sessions.prepare(self._planner.plan, delta.tunnel)
        except HostError as error:
            if str(error) != self._tunnel_problem:
                log.error("no tunnel: %s", error)
            self._tunnel_problem = str(error)
        else:
            self._tunnel_problem = ""
        if self._resolved:
            self._resolved = False
            self._sessions.refresh()
        await self._upkeep.apply(delta.host, lambda: self._planner.plan().host)
        self._sessions.finish(delta.tunnel)
        self._probe()

    async def _beat(self) -> None:
        """Feel the loop, and do what is due now and then."""
        loop = asyncio.get_running_loop()
        saved = expected = loop.time()
        while True:
            expected += HEARTBEAT
            await asyncio.sleep(max(0.0, expected - loop.time()))
            now = loop.time()
            self._lag = max(0.0, now - expected)
            expected = max(expected, now)
            statuses = self._sessions.statuses()
            self._rates.update(statuses, now)
            self._probing.look(statuses, boottime())
            self._ask()
            if now - saved >= SAVE_INTERVAL:
                saved = now
                self._last_seen.learn(statuses)
                await asyncio.to_thread(self._last_seen.save)

    async def _look_around(self, world: World) -> LocalFacts:
        """This host's facts, with the MTU towards every address that the world names for a gateway."""
        gateways = world.gateways.values()
        named = {endpoint.public_ip for gateway in gateways for endpoint in gateway.endpoints}
        named |= {str(address) for peer in world.peers.values() for address in peer.addresses}
        own = [info for gateway in gateways for info in gateway.status.nodes if info.node == self._node]
        return await self._upkeep.facts(
            [ip_address(host) for host in sorted(named) if is_literal(host)],
            [prefix for info in own for prefix in info.subnets],
            self._planner.plan().tunnel.listen_port,
        )

    # Saying how it is.

    def peers(self) -> list[PeerReport]:
        plan = self._planner.plan()
        return peer_reports(
            plan,
            self._sessions.statuses(),
            liveness=self._probing.liveness,
            quality=self._probing.quality(),
            rates=self._rates,
        )

    def status(self) -> StatusReport:
        """Facts; `ravenvpn.health` judges them."""
        plan = self._planner.plan()
        peers = self.peers()
        tunnel = self._sessions.tunnel
        running = tunnel.status() if tunnel is not None else None
        wanted = {peer.name for peer in plan.tunnel.peers if peer.warm}
        return StatusReport(
            version=ravenvpn.__version__,
            node=self._node,
            region=plan.region,
            role=plan.role.value,
            started=self._started,
            public_key=str(running.public_key) if running and running.public_key else "",
            listen_port=running.listen_port if running else 0,
            source=str(self._source),
            world_at=self._world_at,
            applied_at=self._upkeep.applied_at,
            source_error=self._source_error(),
            device_up=not plan.tunnel.device or (running is not None and running.device is not None and running.up),
            host_missing=self._upkeep.missing,
            loop_lag=self._lag,
            regions=tuple(region_reports(plan, self._snapshot.world, peers)) if self._snapshot else (),
            sessions_wanted=len(wanted),
            sessions_up=sum(peer.state is PeerState.UP for peer in peers if peer.name in wanted),
            problems=self._problems(plan),
            data_plane=_data_plane(running),
        )

    def _source_error(self) -> str:
        if self._snapshot is None or self._snapshot.readable:
            return ""
        return str(self._snapshot.problems[0])

    def plan(self) -> list[PlanLine]:
        return plan_lines(self._planner.plan())

    async def plan_diff(self) -> list[PlanLine]:
        return await self._upkeep.differences(self._planner.plan().host)

    def _problems(self, plan: NodePlan) -> tuple[ProblemReport, ...]:
        problems = [
            ProblemReport(
                kind="manifest",
                where=": ".join(filter(None, (found.file + (f":{found.line}" if found.line else ""), found.field))),
                message=" ".join(filter(None, (found.subject, found.message))),
                remedy=found.remedy,
            )
            for found in (self._snapshot.problems if self._snapshot else ())
        ]
        problems += [
            ProblemReport(
                kind="conflict",
                where=f"{conflict.loser}, {conflict.field}",
                message=f"{conflict.kind}: {conflict.subject} is held by {conflict.winner}",
                remedy=conflict.remedy,
            )
            for conflict in plan.conflicts
        ]
        if self._tunnel_problem:
            problems.append(ProblemReport(kind="tunnel", where="open", message=self._tunnel_problem))
        problems += [
            ProblemReport(kind="tunnel", where=name, message=why) for name, why in self._sessions.refused.items()
        ]
        problems += [
            ProblemReport(kind="tunnel", where=name, message="cannot be resolved", remedy="check DNS on this host")
            for name in self._sessions.unresolved()
        ]
        return (*problems, *self._upkeep.problems)


def _data_plane(running: TunnelStatus | None) -> DataPlaneReport:
    if running is None:
        return DataPlaneReport(body="none", offloads=(), fallbacks={}, drops={})
    counters = running.counters
    drops = {cause.name.lower(): count for cause, count in counters.drops.items() if count}
    drops |= {f"handshake_{cause.name.lower()}": count for cause, count in running.handshake_drops.items() if count}
    return DataPlaneReport(
        body=running.body,
        offloads=tuple(name for name, on in dataclasses.asdict(running.offloads).items() if on),
        fallbacks={name: count for name, count in counters.fallbacks.items() if count},
        drops=drops,
        why_pure=dataplane.native_absence() if running.body == "pure" else "",
    )
