"""Snapshots of the agent for the control API, health probes and metrics. Facts only; `ravenvpn.health` judges them.

Reading changes nothing. `vitals` costs a step a peer and a region and may be called every second; the reports build
the whole plan, which takes a third of a second in a world of 1,000 regions, and are for people and scrapes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol

import ravenvpn
from ravenvpn import dataplane
from ravenvpn.agent.host import HostKeeper
from ravenvpn.agent.lag import LoopLag
from ravenvpn.agent.own_peer import key_conflicts, peer_status
from ravenvpn.agent.peer_liveness import PeerLiveness
from ravenvpn.agent.peer_rows import TransferRates, peer_reports, peer_state
from ravenvpn.agent.plan_rows import plan_lines
from ravenvpn.agent.reachability import Reach, reach_directly, reach_of_standby, reach_through_gateway, region_reports
from ravenvpn.agent.reports import (
    ApiReport,
    DataPlaneReport,
    PeerCondition,
    PeerReport,
    PlanLine,
    ProblemReport,
    StatusReport,
    Vitals,
)
from ravenvpn.agent.tunnel_owner import TunnelOwner
from ravenvpn.k8s.cluster import ApiState
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.peer_outbox import PeerStatusReport
from ravenvpn.k8s.peer_writer import PeerWriter
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.reason import explain
from ravenvpn.tunnel.driver import TunnelStatus
from ravenvpn.tunnel.peer import PeerStatus


class SourceState(Protocol):
    """The part of a world source that is reported. `str()` names the source for people."""

    @property
    def api(self) -> ApiState | None:
        """State of the connection to the API server; None where there is none."""


class Introspection:
    """Reads the agent's parts, and holds the facts that the agent records for reports alone.

    Owned by the event loop.
    """

    def __init__(
        self,
        node: str,
        source: SourceState,
        *,
        planner: Planner,
        tunnel_owner: TunnelOwner,
        liveness: PeerLiveness,
        host: HostKeeper,
        peer_writer: PeerWriter | None = None,
    ) -> None:
        """The parts are read when a report is asked for; `peer_writer` is None outside a cluster."""
        self._node, self._source = node, source
        self._planner, self._tunnel_owner, self._liveness, self._host = planner, tunnel_owner, liveness, host
        self._peer_writer = peer_writer
        self._started = time.time()
        # Recorded by the agent.
        self.snapshot: Snapshot | None = None  # the last one, whether it could be read or not
        self.world_at: float | None = None  # Unix seconds of the last snapshot that could be read
        self.tunnel_problem = ""  # why the tunnel cannot be opened or moved to its port; empty: it can
        self.rates = TransferRates()
        self.lag = LoopLag()

    def vitals(self) -> Vitals:
        """Return the facts on which health and readiness are judged.

        A session counts as wanted if its peer is warm: it is kept up without traffic, so its absence is a fault. A
        plain node needs no tunnel device, so `device_up` is true there without one."""
        statuses = {status.settings.name: status for status in self._tunnel_owner.statuses()}
        reached = self._reached(statuses)
        plans = self._tunnel_owner.peer_plans()
        wanted = [name for name, plan in plans.items() if plan.warm]
        tunnel = self._tunnel_owner.tunnel
        return Vitals(
            role=self._planner.role.value,
            source=str(self._source),
            world_at=self.world_at,
            applied_at=self._host.applied_at,
            source_error=self._source_error(),
            device_up=not self._planner.tunnel_settings().device or (tunnel is not None and tunnel.usable),
            host_missing=self._host.missing,
            loop_lag=self.lag.worst,
            regions=len(reached),
            unreachable=tuple((name, explain(reach.why)) for name, reach in reached.items() if not reach.ok),
            sessions_wanted=len(wanted),
            sessions_up=sum(
                peer_state(plans[name], statuses[name], self._liveness.liveness.of(name))[0] is PeerCondition.UP
                for name in wanted
                if name in statuses
            ),
            api=self._api(),
        )

    def status(self) -> StatusReport:
        """Return the whole status; `healthy` and `reasons` are for `health.judged` to fill in.

        Key and port are those of the running tunnel, which can differ from the plan while a port is taken."""
        vitals = self.vitals()
        tunnel = self._tunnel_owner.tunnel
        running = tunnel.status() if tunnel is not None else None
        reached = self._reached({status.settings.name: status for status in running.peers} if running else {})
        plan = self._planner.plan()
        return StatusReport(
            version=ravenvpn.__version__,
            node=self._node,
            region=self._planner.region,
            role=vitals.role,
            started=self._started,
            public_key=str(running.public_key) if running and running.public_key else "",
            listen_port=running.listen_port if running else 0,
            source=vitals.source,
            world_at=vitals.world_at,
            applied_at=vitals.applied_at,
            source_error=vitals.source_error,
            device_up=vitals.device_up,
            host_missing=vitals.host_missing,
            loop_lag=vitals.loop_lag,
            regions=tuple(region_reports(reached, self.snapshot.world)) if self.snapshot else (),
            sessions_wanted=vitals.sessions_wanted,
            sessions_up=vitals.sessions_up,
            problems=self._problems(plan),
            notes=tuple(map(explain, plan.notes)),
            note_codes=tuple(note.code for note in plan.notes),
            api=vitals.api,
            data_plane=_data_plane(running),
        )

    def peer_report(self, unready: Sequence[str], vitals: Vitals) -> PeerStatusReport:
        """Return the status of our Peer object. `unready`: the reasons that `health` found in these vitals."""
        tunnel = self._tunnel_owner.tunnel
        body = tunnel.body if tunnel is not None else "none"
        conflicts = key_conflicts(self._node, self._planner.conflicts())
        return peer_status(ravenvpn.__version__, body, vitals, unready, conflicts)

    def peers(self) -> list[PeerReport]:
        """Return a report of every peer of the tunnel, sorted by region and name."""
        return peer_reports(
            self._planner.plan(),
            self._tunnel_owner.statuses(),
            liveness=self._liveness.liveness,
            quality=self._liveness.quality(),
            rates=self.rates,
        )

    def plan(self) -> list[PlanLine]:
        """Return everything planned for tunnel and host, each with its reason."""
        return plan_lines(self._planner.plan())

    async def plan_diff(self) -> list[PlanLine]:
        """Return what the host, read from the kernel now, has different from the plan; empty if all is as planned.

        Takes a full dump of routes, rules and addresses, so the caller waits for the kernel, not the loop."""
        return await self._host.diff(self._planner.plan().host)

    # Inside.

    def _reached(self, statuses: dict[str, PeerStatus]) -> dict[str, Reach]:
        """Return the path to every other region, derived as this node's role requires.

        A plain node and a standby send their own traffic to the uplink, the active gateway of their region; a standby
        has sessions of its own besides, for a take-over. Empty before the first world and for a node without
        region."""
        if self.snapshot is None or self._planner.role is NodeRole.NONE:
            return {}
        uplink = self._planner.uplink  # empty on an active gateway
        through = reach_through_gateway(
            uplink,
            self._tunnel_owner.peer_plans().get(uplink),
            statuses.get(uplink),
            self.snapshot.world,
            own_region=self._planner.region,
            verdict=self._liveness.liveness.of(uplink),
            has_peer=uplink in self.snapshot.world.peers,
        )
        if self._planner.role is NodeRole.PLAIN:
            return through
        direct = reach_directly(
            self._tunnel_owner.peer_plans(),
            statuses,
            self.snapshot.world,
            own_region=self._planner.region,
            relays=dict(self._planner.relays()),
            liveness=self._liveness.liveness,
        )
        if not uplink:
            return direct
        return reach_of_standby(direct, through)

    def _api(self) -> ApiReport | None:
        """Return the state of the API server's connection; None outside a cluster.

        Before the first connection `away` counts from the start of the agent."""
        state, writer = self._source.api, self._peer_writer
        if state is None:
            return None
        # A source that never connected has no `lost_since`.
        away = None if state.connected_since is not None else time.time() - (state.lost_since or self._started)
        return ApiReport(
            server=state.server,
            connected_since=state.connected_since,
            away=away,
            heard_at=state.heard_at,
            error=state.error,
            saved_at=state.saved_at,
            cluster=state.cluster,
            world_of=state.world_of,
            announced=writer is not None and writer.is_published,
            announce_error=writer.error if writer is not None else "",
            lists=state.lists,
            watches=state.watches,
            events=state.events,
            writes=writer.written if writer is not None else 0,
        )

    def _source_error(self) -> str:
        """Return why the source cannot be read now: the API's error before the first snapshot, then the
        snapshot's."""
        if self.snapshot is None:
            return state.error if (state := self._source.api) is not None else ""
        if self.snapshot.readable:
            return ""
        return str(self.snapshot.problems[0])

    def _problems(self, plan: NodePlan) -> tuple[ProblemReport, ...]:
        """Return everything an operator should fix: manifests, conflicts, tunnel, DNS, host, in this order."""
        # `where` of a manifest is FILE:LINE: FIELD, as a compiler writes it, as far as each part is known.
        problems = [
            ProblemReport(
                kind="manifest",
                where=": ".join(filter(None, (found.file + (f":{found.line}" if found.line else ""), found.field))),
                message=" ".join(filter(None, (found.subject, found.message))),
                remedy=found.remedy,
            )
            for found in (self.snapshot.problems if self.snapshot else ())
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
        if self.tunnel_problem:
            problems.append(ProblemReport(kind="tunnel", where="open", message=self.tunnel_problem))
        problems += [
            ProblemReport(kind="tunnel", where=name, message=why) for name, why in self._tunnel_owner.refused.items()
        ]
        problems += [
            ProblemReport(kind="tunnel", where=name, message="cannot be resolved", remedy="check DNS on this host")
            for name in self._tunnel_owner.unresolved()
        ]
        return (*problems, *self._host.problems)


def _data_plane(running: TunnelStatus | None) -> DataPlaneReport:
    """Return the report of the data plane. Handshake messages that were dropped count under `handshake_CAUSE`."""
    if running is None:
        return DataPlaneReport(body="none", offloads=(), fallbacks={}, drops={})
    counters = running.counters
    # Counters are cumulative since the tunnel was opened; zeros are left out, which keeps status and metrics short.
    drops = {cause.name.lower(): count for cause, count in counters.drops.items() if count}
    drops |= {f"handshake_{cause.name.lower()}": count for cause, count in running.handshake_drops.items() if count}
    return DataPlaneReport(
        body=running.body,
        offloads=tuple(name for name, on in dataclasses.asdict(running.offloads).items() if on),
        fallbacks={name: count for name, count in counters.fallbacks.items() if count},
        drops=drops,
        why_pure=dataplane.native_absence() if running.body == "pure" else "",
    )
