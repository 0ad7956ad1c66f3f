"""What only the controller reads of objects, as values: resourceVersions, conditions, who wrote a status, and of
Calico's BlockAffinities and ConfigMaps what it needs. `crd` reads the rest; `balancers` Services and EndpointSlices.

Nothing here raises on what an API server can hold: what cannot be read is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ravenvpn import rfc3339
from ravenvpn.k8s import crd
from ravenvpn.k8s.fields import ProblemCollector, read_prefix
from ravenvpn.k8s.problems import Problem
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import EMPTY, GATEWAY_LABEL, Gateway, GatewayStatus, Node, PeerObject
from ravenvpn.mesh.status import Gates

RAVEN_CFG = "raven-cfg"
YURT_MANAGER = "yurt-manager"  # OpenYurt's controller: the name it writes under, and of its Lease
_CALICO = "projectcalico.org"
# What our definition of the Gateway's status has beyond upstream's, which prunes them.
CONDITIONS, NODE_COUNT = "conditions", "nodeCount"
ADDED = frozenset({CONDITIONS, NODE_COUNT})


@dataclass(frozen=True, slots=True)
class HeldCondition:
    """`status.conditions[]` (meta/v1 Condition); the time is kept as it was written."""

    type: str
    status: str  # "True", "False", "Unknown"
    reason: str
    message: str
    observed_generation: int = 0
    last_transition: str = ""


@dataclass(frozen=True, slots=True)
class StatusWriter:
    """An entry of managedFields over the status: who wrote, and when (seconds since 1970)."""

    manager: str
    at: float


@dataclass(frozen=True, slots=True)
class HeldGateway:
    """A Gateway as the API server holds it. `value` is None where its spec cannot be read and never could.

    `stale`: the spec is broken now, and `value` has its last good version. `status_lost`: the status is broken, and
    `value` has none.
    """

    name: str
    uid: str
    version: str
    generation: int
    value: Gateway | None
    stale: bool = False
    status_lost: bool = False
    problems: tuple[Problem, ...] = ()
    conditions: tuple[HeldCondition, ...] = ()
    node_count: int | None = None
    writers: tuple[StatusWriter, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldNode:
    """A Node with our label. `value` is None where it cannot be read; then `problems` say why."""

    name: str
    uid: str
    gateway: str
    value: Node | None
    calico: bool = False
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A confirmed BlockAffinity of Calico: this node's pods have addresses from this prefix."""

    node: str
    prefix: Prefix


class _ManagedFields(msgspec.Struct, rename="camel"):
    manager: str = ""
    subresource: str = ""
    time: str = ""
    fields_v1: dict[str, Any] | None = msgspec.field(name="fieldsV1", default=None)


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    managed_fields: list[_ManagedFields] | None = None


class _Condition(msgspec.Struct, rename="camel"):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class _WithMeta(msgspec.Struct):
    metadata: _Meta


class _BlockSpec(msgspec.Struct):
    cidr: str = ""
    node: str = ""
    state: str = ""
    deleted: str | bool | None = None


class _Block(msgspec.Struct):
    spec: _BlockSpec


class _ConfigMap(msgspec.Struct):
    data: dict[str, str] | None = None


def read_gateway(document: Mapping[str, Any], before: HeldGateway | None = None) -> HeldGateway:
    """A Gateway of the API server. `before` is its last version here, whose good spec outlives a broken one."""
    meta = _meta(document)
    parsed = crd.parse(document)
    value, problems, status_lost = parsed.value, parsed.problems, False
    if value is None and document.get("status"):
        # Somebody wrote a status that cannot be read: it is written anew, and the spec counts as it is.
        alone = crd.parse({key: part for key, part in document.items() if key != "status"})
        if isinstance(alone.value, Gateway):
            value, problems, status_lost = alone.value, alone.problems, True
    stale = False
    if not isinstance(value, Gateway):
        value, stale = _last_good(before, document), True
    return HeldGateway(
        name=meta.name,
        uid=meta.uid,
        version=meta.resource_version,
        generation=meta.generation or 0,
        value=value,
        stale=stale,
        status_lost=status_lost,
        problems=problems,
        conditions=_conditions(document),
        node_count=_node_count(document),
        writers=_writers(meta),
    )


def _last_good(before: HeldGateway | None, document: Mapping[str, Any]) -> Gateway | None:
    """The last good spec with the present status, if there was a good one."""
    if before is None or before.value is None:
        return None
    empty = {"apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway", "metadata": {"name": before.name}}
    parsed = crd.parse({**empty, "status": document.get("status")})
    status = parsed.value.status if isinstance(parsed.value, Gateway) else GatewayStatus()
    return replace(before.value, status=status)


def _conditions(document: Mapping[str, Any]) -> tuple[HeldCondition, ...]:
    status = document.get("status")
    found = status.get("conditions") if isinstance(status, Mapping) else None
    read = []
    for one in found if isinstance(found, list) else ():
        try:
            c = msgspec.convert(one, _Condition)
        except msgspec.ValidationError:
            continue
        read.append(
            HeldCondition(c.type, c.status, c.reason, c.message, c.observed_generation, c.last_transition_time)
        )
    return tuple(read)


def _node_count(document: Mapping[str, Any]) -> int | None:
    status = document.get("status")
    count = status.get(NODE_COUNT) if isinstance(status, Mapping) else None
    return count if isinstance(count, int) else None


def _writers(meta: _Meta) -> tuple[StatusWriter, ...]:
    found: dict[str, float] = {}
    for entry in meta.managed_fields or ():
        if entry.subresource == "status" or (entry.fields_v1 or {}).get("f:status") is not None:
            found[entry.manager] = max(found.get(entry.manager, 0.0), time_or_epoch(entry.time))
    return tuple(StatusWriter(manager, at) for manager, at in sorted(found.items()))


def time_or_epoch(text: str) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0.0 if it cannot be read, which every caller treats as old."""
    try:
        return rfc3339.parse(text)
    except ValueError:
        return 0.0


def read_node(document: Mapping[str, Any]) -> HeldNode:
    meta = _meta(document)
    parsed = crd.parse(document)
    value = parsed.value if isinstance(parsed.value, Node) else None
    if value is not None:
        value = replace(value, labels=EMPTY)  # ten thousand times what nobody reads
    gateway = (meta.labels or {}).get(GATEWAY_LABEL, "")
    calico = any(_CALICO in key for key in meta.annotations or ())
    return HeldNode(meta.name, meta.uid, gateway, value, calico, parsed.problems)


def read_peer(document: Mapping[str, Any]) -> PeerObject | None:
    """None where it cannot be read."""
    value = crd.parse(document).value
    return value if isinstance(value, PeerObject) else None


def read_block(document: Mapping[str, Any]) -> Block | None:
    """None where the affinity is not confirmed, is being removed, or cannot be read."""
    try:
        spec = msgspec.convert(document, _Block).spec
    except msgspec.ValidationError:
        return None
    if spec.state != "confirmed" or spec.deleted in (True, "true") or not spec.node:
        return None
    prefix = read_prefix(ProblemCollector(""), "spec.cidr", spec.cidr)
    return None if prefix is None else Block(spec.node, prefix)


def read_gates(document: Mapping[str, Any] | None) -> Gates:
    """ConfigMap raven-cfg. Where there is none the tunnel is wanted, and no proxy; upstream then wants neither.

    In one that is there a key that is missing is off, as upstream has it.
    """
    if document is None:
        return Gates()
    try:
        data = msgspec.convert(document, _ConfigMap).data or {}
    except msgspec.ValidationError:
        return Gates()
    return Gates(
        tunnel=data.get("enable-l3-tunnel", "").lower() == "true",
        proxy=data.get("enable-l7-proxy", "").lower() == "true",
    )


def added_fields(definition: Mapping[str, Any]) -> frozenset[str]:
    """Which of `ADDED` this CustomResourceDefinition has in the status of v1beta1 of the Gateway."""
    path = ("schema", "openAPIV3Schema", "properties", "status", "properties")
    spec = definition.get("spec")
    for version in (spec.get("versions") if isinstance(spec, Mapping) else None) or ():
        here = version if version.get("name") == "v1beta1" else None
        for step in path:
            here = here.get(step) if isinstance(here, Mapping) else None
        if isinstance(here, Mapping):
            return frozenset(ADDED & here.keys())
    return frozenset()


def _meta(document: Mapping[str, Any]) -> _Meta:
    try:
        return msgspec.convert(document, _WithMeta).metadata
    except msgspec.ValidationError:
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        return _Meta(name=name if isinstance(name, str) else "")
