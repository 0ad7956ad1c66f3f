"""Decide what has to be written for one Gateway: the difference between the desired state and the cache. Pure."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ravenvpn.k8s import crd
from ravenvpn.k8s.controller import conditions, desired_services
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decode import CONDITIONS, NODE_COUNT, CachedGateway, GatewayCondition
from ravenvpn.k8s.controller.events import EventNotice, EventSubject
from ravenvpn.k8s.controller.published_keys import missing_keys
from ravenvpn.k8s.resource import GATEWAYS, NODES
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.model import EndpointType, GatewayStatus


@dataclass(frozen=True, slots=True)
class Decision:
    """The writes for one Gateway; false if there are none."""

    name: str  # of the Gateway
    # A merge patch of the status subresource. It carries the resourceVersion that was decided on: 409 if it changed.
    status: dict[str, Any] | None = None
    exposure: desired_services.Exposure = desired_services.NOTHING
    keys: tuple[tuple[str, str], ...] = ()  # node and public key in base64, to set in spec.endpoints[].config
    notices: tuple[EventNotice, ...] = ()  # to emit once the status is written
    ongoing: frozenset[EventNotice] = frozenset()  # problems that last, emitted now or before; the next `reported`

    def __bool__(self) -> bool:
        return bool(self.status or self.exposure or self.keys or self.notices)


@dataclass(frozen=True, slots=True)
class WriteScope:
    """Kinds of objects and fields that the controller writes in this cluster."""

    elects: bool  # statuses, Services and events; False where another controller elects, see `yurt_manager`
    extra_fields: frozenset[str]  # those of `decode.EXTRA_FIELDS` that the API server keeps
    keys: bool  # public keys in the spec; also where another controller elects


def decide(
    cache: ClusterCache,
    name: str,
    status: GatewayStatus,
    conflicts: Sequence[Conflict],
    scope: WriteScope,
    *,
    reported: frozenset[EventNotice],
    now: str,
) -> Decision:
    """Return the writes for Gateway `name`, which may be gone: then its Services go too.

    `status` is the desired one (`desired_status`), without addresses of Services that do not exist yet. `reported`
    are the lasting problems that were emitted before, which are not emitted again. `now` is an RFC 3339 time.
    """
    gateway = cache.gateways.get(name)
    value = gateway.value if gateway else None
    ips = {node.name: node.internal_ips for node in cache.members(name)}
    peers = {node: cache.peers[node] for node in ips if node in cache.peers}
    exposure, patch = desired_services.NOTHING, None
    notices: list[EventNotice] = []
    ongoing: frozenset[EventNotice] = frozenset()
    # A Gateway that exists but was never readable keeps its Services: what it wants is not known.
    if scope.elects and (gateway is None or value is not None):
        exposure = desired_services.expose(
            value,
            gateway.uid if gateway else "",
            status,
            services=cache.services.lookup(name),
            slices=cache.slices.lookup(name),
            ips=ips,
            peers=peers,
        )
    if gateway is not None and scope.elects:
        verdicts = conditions.evaluate(gateway, cache, status, conflicts)
        merged = conditions.merge(verdicts, gateway.conditions, gateway.generation, now)
        patch = _status_patch(gateway, status, merged, scope.extra_fields)
        ongoing = _problem_notices(gateway, cache, verdicts[2])
        notices = [*_election_notices(gateway, status), *(notice for notice in ongoing if notice not in reported)]
    # Of a malformed spec `value` has the last good version, not the endpoints that a patch would have to carry.
    publish = scope.keys and gateway is not None and value is not None and not gateway.spec_malformed
    keys = missing_keys(value, peers) if publish and value is not None else {}
    return Decision(name, patch, exposure, tuple(keys.items()), tuple(notices), ongoing)


def _status_patch(
    gateway: CachedGateway, status: GatewayStatus, merged: Sequence[GatewayCondition], extra_fields: Set[str]
) -> dict[str, Any] | None:
    """Return the merge patch that makes the stored status the desired one; None if it is already.

    Nodes and active endpoints are patched together if either differs, extra fields each by itself and only where they
    are served. Of a Gateway that was never readable only the conditions are written.
    """
    body: dict[str, Any] = {}
    if gateway.value is not None:
        if gateway.status_malformed or status != gateway.value.status:
            body = crd.write_status(status)
        if NODE_COUNT in extra_fields and gateway.node_count != len(status.nodes):
            body[NODE_COUNT] = len(status.nodes)
    if CONDITIONS in extra_fields and tuple(merged) != gateway.conditions:
        body[CONDITIONS] = [conditions.encode(condition) for condition in merged]
    return {"metadata": {"resourceVersion": gateway.resource_version}, "status": body} if body else None


def subject(gateway: CachedGateway) -> EventSubject:
    """Return the reference to this version of the Gateway, for its events."""
    return EventSubject("Gateway", gateway.name, gateway.uid, GATEWAYS.api_version, gateway.resource_version)


def _election_notices(gateway: CachedGateway, status: GatewayStatus) -> list[EventNotice]:
    """Return a notice for each role whose active endpoints change. Reasons are OpenYurt's, so that alerts written for
    it match.
    """
    if gateway.value is None:
        return []
    notices = []
    for kind in EndpointType:
        before = [e.node for e in gateway.value.status.active if e.type is kind]
        after = [e.node for e in status.active if e.type is kind]
        if after and sorted(before) != sorted(after):
            was = f" (was {', '.join(before)})" if before else ""
            message = f"active {kind.value} endpoint: {', '.join(after)}{was}"
            notices.append(EventNotice(subject(gateway), "ActiveEndpointElected", message))
        elif before and not after:
            message = f"no active {kind.value} endpoint any more (was {', '.join(before)})"
            notices.append(EventNotice(subject(gateway), "ActiveEndpointLost", message, warning=True))
    return notices


def _problem_notices(
    gateway: CachedGateway, cache: ClusterCache, conflict: conditions.ConditionVerdict
) -> frozenset[EventNotice]:
    """Return the problems an operator should repair: of the Gateway, its conflicts, and its Nodes.

    Their subjects have no resourceVersion, so that the notice of a lasting problem stays equal when the object
    changes otherwise. A problem that is not fatal has the reason Questionable: the object is used as it is.
    """
    about = EventSubject("Gateway", gateway.name, gateway.uid, GATEWAYS.api_version)
    notices = []
    if gateway.problems:
        fatal = gateway.status_malformed or any(problem.fatal for problem in gateway.problems)
        reason = "Malformed" if fatal else "Questionable"
        notices.append(EventNotice(about, reason, conditions.summarize(gateway.problems), True))
    if conflict.holds:
        notices.append(EventNotice(about, "Conflict", conflict.message, True))
    for node in cache.malformed_members(gateway.name):
        about_node = EventSubject("Node", node.name, node.uid, NODES.api_version)
        notices.append(EventNotice(about_node, "Malformed", conditions.summarize(node.problems), True))
    return frozenset(notices)
