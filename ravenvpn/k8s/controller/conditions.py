"""Conditions of a Gateway: Ready, EndpointElected, Conflict.

The type ForwardingVerified is reserved for what agents will report. Conditions of other types belong to other writers
and are kept. Reasons are part of the API and do not change; messages are for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decode import CachedGateway, CachedNode, GatewayCondition
from ravenvpn.k8s.controller.desired_services import LOAD_BALANCER
from ravenvpn.k8s.problems import Problem
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.model import GATEWAY_LABEL, EndpointType, Gateway, GatewayStatus

# Types. Ready and EndpointElected are good when True, Conflict is good when False.
READY, ELECTED, CONFLICT = "Ready", "EndpointElected", "Conflict"
OURS = (READY, ELECTED, CONFLICT)
MAX_MESSAGE = 1024  # characters; the API server takes 32768, `kubectl describe` is read on a terminal
MAX_LISTED = 3  # names in a message; the rest is a number
_GATES = {EndpointType.TUNNEL: "enable-l3-tunnel", EndpointType.PROXY: "enable-l7-proxy"}  # keys of raven-cfg


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """A condition without its time of transition and generation."""

    type: str
    holds: bool
    reason: str  # one CamelCase word
    message: str


def evaluate(
    gateway: CachedGateway, cache: ClusterCache, status: GatewayStatus, conflicts: Sequence[Conflict]
) -> tuple[ConditionVerdict, ConditionVerdict, ConditionVerdict]:
    """Return the verdicts on Ready, EndpointElected and Conflict, given the desired `status` and the conflicts that
    the Gateway loses.
    """
    if gateway.value is None:
        elected = ConditionVerdict(ELECTED, False, "Malformed", "the spec cannot be read, see condition Ready")
    else:
        elected = _elected(gateway.value, cache, status)
    return _ready(gateway, cache, status, elected), elected, _conflict(conflicts)


def merge(
    verdicts: Iterable[ConditionVerdict], present: Sequence[GatewayCondition], generation: int, now: str
) -> tuple[GatewayCondition, ...]:
    """Return the conditions to write: the verdicts, followed by the conditions of other writers in `present`.

    lastTransitionTime stays as long as the condition's status does (API convention), also when reason or message
    change; else it is `now` (RFC 3339). `generation` is the metadata.generation that the verdicts are about.
    """
    before = {condition.type: condition for condition in present}
    # `present` may lack a time: an empty one would be refused by the API server, so it is replaced too.
    merged = []
    for verdict in verdicts:
        value = "True" if verdict.holds else "False"
        known = before.get(verdict.type)
        since = known.last_transition if known and known.status == value and known.last_transition else now
        message = truncate(verdict.message)
        merged.append(GatewayCondition(verdict.type, value, verdict.reason, message, generation, since))
    return (*merged, *(condition for condition in present if condition.type not in OURS))


def encode(condition: GatewayCondition) -> dict[str, Any]:
    """Return the condition as the API has it (meta/v1 Condition)."""
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": condition.last_transition,
    }


def truncate(text: str) -> str:
    """Cut a message at `MAX_MESSAGE` characters."""
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def summarize(problems: Sequence[Problem]) -> str:
    """Return the first problem, without its subject, and the number of the others. `problems` is not empty."""
    first = replace(problems[0], subject="")
    return f"{first}; and {len(problems) - 1} more" if len(problems) > 1 else str(first)


def _ready(
    gateway: CachedGateway, cache: ClusterCache, status: GatewayStatus, elected: ConditionVerdict
) -> ConditionVerdict:
    """Return the verdict on Ready: the spec is readable, each role has an active endpoint, every Node is readable,
    and a load balancer has an address.

    The first check that fails is the reason. A node without pod prefixes does not make the region unready, since it
    may run no pods; the message names it.
    """
    if gateway.value is None or gateway.spec_malformed:
        wrong = summarize([p for p in gateway.problems if p.fatal] or gateway.problems)
        in_force = "; the last good spec stays in force" if gateway.value is not None else ""
        return ConditionVerdict(READY, False, "Malformed", f"{wrong}{in_force}")
    if not elected.holds:
        return ConditionVerdict(READY, False, elected.reason, elected.message)
    malformed = cache.malformed_members(gateway.name)
    if malformed:
        return ConditionVerdict(READY, False, "MalformedNode", _malformed_nodes(malformed))
    if gateway.value.expose_type == LOAD_BALANCER:
        waiting = [e.node for e in status.active if not e.public_ip]
        if waiting:
            message = (
                f"the LoadBalancer Service in front of node {waiting[0]} has no address yet; other regions cannot "
                "dial this one until the provider assigns one"
            )
            return ConditionVerdict(READY, False, "NoPublicAddress", message)
    bare = [info.node for info in status.nodes if not info.subnets]
    count = len(status.nodes)
    message = f"{count} node{'' if count == 1 else 's'}, {_active(status)}"
    if bare:
        message += f"; no pod prefix is known of {_names(bare)}: other regions cannot reach pods there"
    return ConditionVerdict(READY, True, "Joined", message)


def _malformed_nodes(nodes: Sequence[CachedNode]) -> str:
    """Return what is wrong with the first of these Nodes, and the number of the others. `nodes` is not empty."""
    more = f"; and {len(nodes) - 1} nodes more" if len(nodes) > 1 else ""
    return f"Node {nodes[0].name}: {summarize(nodes[0].problems)}{more}"


def _elected(gateway: Gateway, cache: ClusterCache, status: GatewayStatus) -> ConditionVerdict:
    """Return the verdict on EndpointElected: each role that the spec asks for and raven-cfg turns on has an active
    endpoint.

    A role that raven-cfg turns off counts as not asked for. If that leaves no role, the verdict is false: the
    operator wants the region joined, and the ConfigMap prevents it.
    """
    replicas = {EndpointType.TUNNEL: gateway.tunnel_replicas, EndpointType.PROXY: gateway.proxy_replicas}
    wanted = [kind for kind, count in replicas.items() if count > 0]
    if not wanted:
        message = (
            "spec.tunnelConfig.Replicas is 0 or missing: this region is not joined to others; set it to 1 to join it"
        )
        return ConditionVerdict(ELECTED, False, "NotWanted", message)
    turned_on = [kind for kind in wanted if cache.gates.enables(kind)]
    if not turned_on:
        key = _GATES[wanted[0]]
        message = (
            f"ConfigMap kube-system/raven-cfg turns the {wanted[0].value} off for the whole cluster; "
            f'set {key}: "true" in it'
        )
        return ConditionVerdict(ELECTED, False, "TurnedOff", message)
    for kind in turned_on:
        if not any(e.type is kind for e in status.active):
            reason, message = _why_not_elected(gateway, kind, cache)
            return ConditionVerdict(ELECTED, False, reason, message)
    return ConditionVerdict(ELECTED, True, "Elected", _active(status))


def _active(status: GatewayStatus) -> str:
    """Return who carries which role, `edge-1 carries the tunnel`; empty if no endpoint is active."""
    parts = []
    for kind in EndpointType:
        nodes = [e.node for e in status.active if e.type is kind]
        if nodes:
            parts.append(f"{_names(nodes)} carr{'ies' if len(nodes) == 1 else 'y'} the {kind.value}")
    return ", ".join(parts)


def _why_not_elected(gateway: Gateway, kind: EndpointType, cache: ClusterCache) -> tuple[str, str]:
    """Return reason and message for a role without an active endpoint."""
    candidates = list(dict.fromkeys(e.node for e in gateway.endpoints if e.type is kind))
    if not candidates:
        message = (
            f"spec.endpoints lists no endpoint of type {kind.value}; add one with the name of a node of this region"
        )
        return "NoEndpoint", message
    whys = [_why_not_candidate(node, gateway.name, cache) for node in candidates]
    more = f"; and {len(whys) - MAX_LISTED} more" if len(whys) > MAX_LISTED else ""
    return "NoReadyNode", "; ".join(whys[:MAX_LISTED]) + more


def _why_not_candidate(node: str, gateway: str, cache: ClusterCache) -> str:
    """Return why this node cannot be elected.

    Nodes without the Gateway label are not watched, so a node without the label and a node that does not exist look
    the same from here.
    """
    found = cache.nodes.get(node)
    if found is None:
        return f"node {node} does not exist or lacks the label {GATEWAY_LABEL}={gateway}"
    if found.gateway != gateway:
        return f"node {node} belongs to Gateway {found.gateway} by its label {GATEWAY_LABEL}"
    if found.value is None:
        return f"node {node} is malformed: {summarize(found.problems)}"
    return f"node {node} is not Ready"


def _conflict(conflicts: Sequence[Conflict]) -> ConditionVerdict:
    """Return the verdict on Conflict: the Gateway loses something that it claims to another object.

    `mesh.conflict_index` decides who loses. The reason is the kind of the first conflict in CamelCase (Overlap,
    DuplicateKey, …), and the message names the loser's field, the winner and the remedy.
    """
    if not conflicts:
        return ConditionVerdict(CONFLICT, False, "NoConflict", "no other object claims what this Gateway claims")
    first, rest = conflicts[0], len(conflicts) - 1
    reason = "".join(part.capitalize() for part in first.kind.name.split("_"))
    more = f"; and {rest} more" if rest else ""
    return ConditionVerdict(CONFLICT, True, reason, f"{first}{more}")


def _names(names: Sequence[str]) -> str:
    """Join the names, at most `MAX_LISTED` of them; the rest is a number."""
    shown = ", ".join(names[:MAX_LISTED])
    return f"{shown} and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else shown
