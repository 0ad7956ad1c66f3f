"""From the view to what has to be written for one Gateway. Pure; where it is written already, nothing."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ravenvpn.k8s import crd
from ravenvpn.k8s.controller import conditions, keys, services
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decode import CONDITIONS, NODE_COUNT, HeldCondition, HeldGateway
from ravenvpn.k8s.controller.events import EventNotice, EventSubject
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.model import EndpointType, GatewayStatus

API_VERSION = "raven.openyurt.io/v1beta1"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written for one Gateway. `notices` are told once the status is in place."""

    name: str
    status: dict[str, Any] | None = None  # a merge patch for the status subresource, bound to the version decided on
    exposure: services.Exposure = services.NOTHING
    keys: tuple[tuple[str, str], ...] = ()  # node, key: missing in spec.endpoints[].config
    notices: tuple[EventNotice, ...] = ()
    lasting: frozenset[EventNotice] = frozenset()  # what is to be mended, said now or before

    def __bool__(self) -> bool:
        return bool(self.status or self.exposure or self.keys or self.notices)


@dataclass(frozen=True, slots=True)
class Rights:
    """What may be written here: statuses and Services where we elect, and of `facts.ADDED` what is served."""

    elects: bool
    added: frozenset[str]
    keys: bool


def decide(
    view: ClusterCache,
    name: str,
    status: GatewayStatus,
    conflicts: Sequence[Conflict],
    rights: Rights,
    *,
    told: frozenset[EventNotice],
    now: str,
) -> Decision:
    """`status` is what is wanted (`wanted.status_of`), `told` what was said of it that lasts, `now` as RFC 3339."""
    held = view.gateways.get(name)
    ips = {node.name: node.internal_ips for node in view.members(name)}
    peers = {node: view.peers[node] for node in ips if node in view.peers}
    value = held.value if held else None
    exposure, body = services.NOTHING, None
    notices: list[EventNotice] = []
    lasting: frozenset[EventNotice] = frozenset()
    if rights.elects and (held is None or value is not None):
        uid = held.uid if held else ""
        exposure = services.expose(
            value,
            uid,
            status,
            services=view.services_of(name),
            slices=view.slices_of(name),
            ips=ips,
            peers=peers,
        )
    if held is not None and rights.elects:
        verdicts = conditions.judge(held, view, status, conflicts)
        wanted = conditions.settle(verdicts, held.conditions, held.generation, now)
        body = _status_patch(held, status, wanted, rights.added)
        lasting = _of_problems(held, view, verdicts[2])
        notices = [*_of_election(held, status), *(notice for notice in lasting if notice not in told)]
    missing = keys.missing(value, peers) if rights.keys and value is not None and held and not held.stale else {}
    return Decision(name, body, exposure, tuple(missing.items()), tuple(notices), lasting)


def _status_patch(
    held: HeldGateway, status: GatewayStatus, wanted: Sequence[HeldCondition], added: Set[str]
) -> dict[str, Any] | None:
    """None where the API server has it so already."""
    body: dict[str, Any] = {}
    if held.value is not None:
        if held.status_lost or status != held.value.status:
            body = crd.write_status(status)
        if NODE_COUNT in added and held.node_count != len(status.nodes):
            body[NODE_COUNT] = len(status.nodes)
    if CONDITIONS in added and tuple(wanted) != held.conditions:
        body[CONDITIONS] = [conditions.write(condition) for condition in wanted]
    return {"metadata": {"resourceVersion": held.version}, "status": body} if body else None


def subject(held: HeldGateway) -> EventSubject:
    return EventSubject("Gateway", held.name, held.uid, API_VERSION, held.version)


def _of_election(held: HeldGateway, status: GatewayStatus) -> list[EventNotice]:
    """As upstream tells it: who is active, when that changed; and that nobody is."""
    if held.value is None:
        return []
    found = []
    for kind in EndpointType:
        before = [e.node for e in held.value.status.active if e.type is kind]
        after = [e.node for e in status.active if e.type is kind]
        if after and sorted(before) != sorted(after):
            message = f"active {kind.value} endpoint: {', '.join(after)}" + (
                f" (was {', '.join(before)})" * bool(before)
            )
            found.append(EventNotice(subject(held), "ActiveEndpointElected", message))
        elif before and not after:
            message = f"no active {kind.value} endpoint any more (was {', '.join(before)})"
            found.append(EventNotice(subject(held), "ActiveEndpointLost", message, warning=True))
    return found


def _of_problems(
    held: HeldGateway, view: ClusterCache, conflict: conditions.ConditionVerdict
) -> frozenset[EventNotice]:
    """What a person should mend. Without versions: each is said once as long as it lasts."""
    about = EventSubject("Gateway", held.name, held.uid, API_VERSION)
    found = []
    if held.problems:
        fatal = held.status_lost or any(problem.fatal for problem in held.problems)
        found.append(
            EventNotice(about, "Malformed" if fatal else "Questionable", conditions.told(held.problems), True)
        )
    if conflict.holds:
        found.append(EventNotice(about, "Conflict", conflict.message, True))
    for node in view.broken_members(held.name):
        of = EventSubject("Node", node.name, node.uid, "v1")
        found.append(EventNotice(of, "Malformed", conditions.told(node.problems), True))
    return frozenset(found)
