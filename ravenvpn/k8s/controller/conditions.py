"""`status.conditions` of a Gateway: is it joined, is somebody elected, does it contradict another object.

ForwardingVerified is reserved for what agents will have proven. Conditions of other types are others', and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decode import HeldCondition, HeldGateway, HeldNode
from ravenvpn.k8s.controller.services import LOAD_BALANCER
from ravenvpn.k8s.problems import Problem
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.model import GATEWAY_LABEL, EndpointType, Gateway, GatewayStatus

READY, ELECTED, CONFLICT = "Ready", "EndpointElected", "Conflict"
OURS = (READY, ELECTED, CONFLICT)
MAX_MESSAGE = 1024  # characters; the API takes 32768, a person fewer
_GATES = {EndpointType.TUNNEL: "enable-l3-tunnel", EndpointType.PROXY: "enable-l7-proxy"}


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """A condition before anybody knows since when. `reason` is one word in camel case."""

    type: str
    holds: bool
    reason: str
    message: str


def judge(
    held: HeldGateway, view: ClusterCache, status: GatewayStatus, conflicts: Sequence[Conflict]
) -> tuple[ConditionVerdict, ConditionVerdict, ConditionVerdict]:
    """Ready, EndpointElected, Conflict."""
    elected = (
        _elected(held.value, view, status)
        if held.value is not None
        else ConditionVerdict(ELECTED, False, "Malformed", "the spec cannot be read")
    )
    return _ready(held, view, status, elected), elected, _conflicting(conflicts)


def settle(
    verdicts: Iterable[ConditionVerdict], present: Sequence[HeldCondition], generation: int, now: str
) -> tuple[HeldCondition, ...]:
    """The verdicts as conditions. The time of a transition stays as it is while the status of its condition does."""
    before = {condition.type: condition for condition in present}
    settled = []
    for verdict in verdicts:
        value = "True" if verdict.holds else "False"
        known = before.get(verdict.type)
        since = known.last_transition if known and known.status == value and known.last_transition else now
        settled.append(
            HeldCondition(verdict.type, value, verdict.reason, shorten(verdict.message), generation, since)
        )
    return (*settled, *(condition for condition in present if condition.type not in OURS))


def write(condition: HeldCondition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": condition.last_transition,
    }


def shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def told(problems: Sequence[Problem]) -> str:
    """The first problem, and how many there are besides."""
    first = replace(problems[0], subject="")
    return f"{first}; and {len(problems) - 1} more" if len(problems) > 1 else str(first)


def _ready(
    held: HeldGateway, view: ClusterCache, status: GatewayStatus, elected: ConditionVerdict
) -> ConditionVerdict:
    if held.value is None or held.stale:
        wrong = told([p for p in held.problems if p.fatal] or held.problems)
        kept = "; what it last said counts until then" if held.value is not None else ""
        return ConditionVerdict(READY, False, "Malformed", f"{wrong}{kept}")
    if not elected.holds:
        return ConditionVerdict(READY, False, elected.reason, elected.message)
    broken = view.broken_members(held.name)
    if broken:
        return ConditionVerdict(READY, False, "MalformedNode", _broken(broken))
    if held.value.expose_type == LOAD_BALANCER:
        waiting = [e.node for e in status.active if not e.public_ip]
        if waiting:
            message = f"the load balancer in front of node {waiting[0]} has no address yet"
            return ConditionVerdict(READY, False, "NoPublicAddress", message)
    bare = [info.node for info in status.nodes if not info.subnets]
    many = len(status.nodes)
    message = f"{many} node{'' if many == 1 else 's'}, {_active(status)}"
    if bare:
        message += f"; no pod prefix is known yet of {_some(bare)}"
    return ConditionVerdict(READY, True, "Joined", message)


def _broken(nodes: Sequence[HeldNode]) -> str:
    more = f"; and {len(nodes) - 1} nodes more" if len(nodes) > 1 else ""
    return f"Node {nodes[0].name}: {told(nodes[0].problems)}{more}"


def _elected(gateway: Gateway, view: ClusterCache, status: GatewayStatus) -> ConditionVerdict:
    asked = {
        EndpointType.TUNNEL: gateway.tunnel_replicas,
        EndpointType.PROXY: gateway.proxy_replicas,
    }
    wanted = [kind for kind, replicas in asked.items() if replicas > 0]
    if not wanted:
        return ConditionVerdict(
            ELECTED, False, "NotWanted", "tunnelConfig.Replicas is 0 or missing: this region joins nothing"
        )
    open_kinds = [kind for kind in wanted if view.gates.wants(kind)]
    if not open_kinds:
        key = _GATES[wanted[0]]
        return ConditionVerdict(
            ELECTED, False, "TurnedOff", f'ConfigMap kube-system/raven-cfg does not say {key}: "true"'
        )
    for kind in open_kinds:
        if not any(e.type is kind for e in status.active):
            reason, message = _why_nobody(gateway, kind, view)
            return ConditionVerdict(ELECTED, False, reason, message)
    return ConditionVerdict(ELECTED, True, "Elected", _active(status))


def _active(status: GatewayStatus) -> str:
    parts = []
    for kind in EndpointType:
        nodes = [e.node for e in status.active if e.type is kind]
        if nodes:
            parts.append(f"{_some(nodes)} carr{'ies' if len(nodes) == 1 else 'y'} the {kind.value}")
    return ", ".join(parts)


def _why_nobody(gateway: Gateway, kind: EndpointType, view: ClusterCache) -> tuple[str, str]:
    able = list(dict.fromkeys(e.node for e in gateway.endpoints if e.type is kind))
    if not able:
        return "NoEndpoint", f"spec.endpoints lists nobody of type {kind.value}"
    whys = [_why_not(node, gateway.name, view) for node in able]
    more = f"; and {len(whys) - 3} more" if len(whys) > 3 else ""
    return "NoReadyNode", "; ".join(whys[:3]) + more


def _why_not(node: str, gateway: str, view: ClusterCache) -> str:
    held = view.nodes.get(node)
    if held is None:
        return f"node {node} is not there or lacks the label {GATEWAY_LABEL}={gateway}"
    if held.gateway != gateway:
        return f"node {node} belongs to Gateway {held.gateway} by its label"
    if held.value is None:
        return f"node {node} cannot be read: {told(held.problems)}"
    return f"node {node} is not Ready"


def _conflicting(conflicts: Sequence[Conflict]) -> ConditionVerdict:
    if not conflicts:
        return ConditionVerdict(CONFLICT, False, "NoConflict", "no other object claims what this one does")
    first, rest = conflicts[0], len(conflicts) - 1
    reason = "".join(part.capitalize() for part in first.kind.name.split("_"))
    more = f"; and {rest} more" if rest else ""
    return ConditionVerdict(CONFLICT, True, reason, f"{first}{more}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
