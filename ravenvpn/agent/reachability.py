"""Derive how this node reaches every other region, and whether that path works. Pure: inputs are values.

A gateway has its own sessions, so each region is as reachable as the peer that carries its traffic
(`reach_directly`). A plain node sends everything to its region's gateway and knows only that one
(`reach_through_gateway`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ravenvpn.agent.peer_rows import peer_state
from ravenvpn.agent.reports import PeerCondition, RegionReport
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import EndpointType, World
from ravenvpn.mesh.nodeplan import PeerKind, PeerPlan
from ravenvpn.mesh.reason import Reason, ReasonCode, code_of, explain
from ravenvpn.prefixes import sort_key
from ravenvpn.tunnel.peer import PeerStatus


@dataclass(frozen=True, slots=True)
class Reach:
    """The path to one other region.

    A cold session is no fault, since it comes up with the first packet.
    """

    gateway: str  # active gateway node of the region; empty: none
    path: str  # "direct", "via NAME", or "none"
    ok: bool  # no fault is known
    why: Reason | None = None  # the fault where it is not ok; else what is not known of the path


def reach_directly(
    plans: Mapping[str, PeerPlan],
    statuses: Mapping[str, PeerStatus],
    world: World,
    *,
    own_region: str,
    relays: Mapping[str, str],
    liveness: Liveness,
) -> dict[str, Reach]:
    """Return the paths of a gateway: every region but `own_region`, sorted by name.

    `plans` and `statuses` are by peer name; `relays` maps a region that is reached through a hub to the hub's region.
    Costs a step a peer and a region, none a prefix."""
    # The peer that carries a region's traffic is its active gateway; of several the first by name.
    carriers: dict[str, str] = {}
    for plan in plans.values():
        if plan.kind is PeerKind.ACTIVE and plan.region != own_region:
            carriers[plan.region] = min(plan.name, carriers.get(plan.region, plan.name))
    found = {}
    for name in sorted(world.gateways):
        if name == own_region:
            continue
        gateway = active_gateway(world, name)
        hub = relays.get(name)
        carrier = carriers.get(hub or name, "")
        path = f"via {hub}" if hub else ("direct" if carrier else "none")
        status = statuses.get(carrier)
        if status is None:
            code = ReasonCode.REGION_WITHOUT_PATH if gateway else ReasonCode.REGION_WITHOUT_GATEWAY
            found[name] = Reach(gateway, path, ok=False, why=Reason(code, name))
            continue
        ok, why = _judge(ReasonCode.GATEWAY_SESSION, plans.get(carrier), status, liveness.of(carrier))
        found[name] = Reach(gateway, path, ok, why)
    return found


def reach_through_gateway(
    gateway: str,
    plan: PeerPlan | None,
    status: PeerStatus | None,
    world: World,
    *,
    own_region: str,
    verdict: LivenessVerdict,
    has_peer: bool = True,
) -> dict[str, Reach]:
    """Return the paths of a node that sends everything to its region's `gateway` (empty: it has none).

    `plan`, `status` and `verdict` are those of the session with the gateway. `has_peer` False: the gateway has no
    Peer object (OpenYurt's own agent runs there), so there is no session to judge it by, which is no fault."""
    ok: bool = False
    why: Reason | None = Reason(ReasonCode.NO_OWN_GATEWAY, own_region)
    if gateway and status is not None:
        ok, why = _judge(ReasonCode.OWN_GATEWAY_SESSION, plan, status, verdict)
    elif gateway and not has_peer:
        ok, why = True, Reason(ReasonCode.OWN_GATEWAY_UNKNOWN, gateway)
    elif gateway:
        why = Reason(ReasonCode.OWN_GATEWAY_WITHOUT_SESSION, gateway)
    found = {}
    for name in sorted(world.gateways):
        if name != own_region:
            far = active_gateway(world, name)
            path = f"via {gateway}" if gateway else "none"
            no_gateway = Reason(ReasonCode.REGION_WITHOUT_GATEWAY, name)
            found[name] = Reach(far, path, ok and bool(far), why if far else no_gateway)
    return found


def reach_of_standby(direct: Mapping[str, Reach], through: Mapping[str, Reach]) -> dict[str, Reach]:
    """Return the paths of a standby gateway, from its own sessions (`direct`) and its active gateway (`through`).

    Its own traffic takes the active gateway, so that has to work; its own sessions have to work for a take-over."""
    return {
        name: replace(reach, path=through[name].path) if through[name].ok else through[name]
        for name, reach in direct.items()
    }


def region_reports(reached: Mapping[str, Reach], world: World) -> list[RegionReport]:
    """Return the report of each region: its path, and its pod prefixes in order."""
    reports = []
    for name, reach in reached.items():
        prefixes = [prefix for info in world.gateways[name].status.nodes for prefix in info.subnets]
        reports.append(
            RegionReport(
                name=name,
                gateway=reach.gateway,
                path=reach.path,
                ok=reach.ok,
                why=explain(reach.why),
                code=code_of(reach.why),
                prefixes=tuple(map(str, sorted(prefixes, key=sort_key))),
            )
        )
    return reports


def active_gateway(world: World, region: str) -> str:
    """Return the node that is the region's active tunnel gateway, empty where there is none."""
    active = world.gateways[region].status.active
    return next((endpoint.node for endpoint in active if endpoint.type is EndpointType.TUNNEL), "")


def _judge(
    code: ReasonCode, plan: PeerPlan | None, status: PeerStatus, verdict: LivenessVerdict
) -> tuple[bool, Reason | None]:
    """Return whether a path over this session works, and the fault if not, under `code`."""
    state, cause = peer_state(plan, status, verdict)
    if state in (PeerCondition.UP, PeerCondition.COLD):
        return True, None
    return False, Reason(code, status.settings.name, (state, cause))
