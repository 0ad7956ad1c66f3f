"""Decode the fields of API objects that only the controller reads: resourceVersions, conditions, managedFields,
Calico's BlockAffinities, ConfigMap raven-cfg, and the definition of the Gateway.

`crd` decodes the spec and status of Gateways, Nodes and Peers; `decode_services` Services and EndpointSlices. No
function here raises on an object that an API server can store: what cannot be read counts as absent, and `problems`
of a Gateway or Node say what is wrong with it.
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
from ravenvpn.k8s.resource import GATEWAYS
from ravenvpn.mesh.model import EMPTY, GATEWAY_LABEL, Gateway, GatewayStatus, Node, PeerObject
from ravenvpn.mesh.status import Gates
from ravenvpn.prefixes import Prefix

RAVEN_CFG = "raven-cfg"  # ConfigMap of OpenYurt with the gates of both roles, in kube-system
# OpenYurt's controller. Its field manager contains this name, and its Lease in kube-system has it.
YURT_MANAGER = "yurt-manager"
_CALICO = "projectcalico.org"  # part of the keys of the annotations Calico's node agent writes
# Fields of the Gateway's status that our CustomResourceDefinition has beyond OpenYurt's. An API server that serves
# OpenYurt's definition prunes them.
CONDITIONS, NODE_COUNT = "conditions", "nodeCount"
EXTRA_FIELDS = frozenset({CONDITIONS, NODE_COUNT})


@dataclass(frozen=True, slots=True)
class GatewayCondition:
    """An element of `status.conditions` (meta/v1 Condition)."""

    type: str
    status: str  # "True", "False", "Unknown"
    reason: str  # one CamelCase word
    message: str
    observed_generation: int = 0  # metadata.generation of the spec it was decided on
    last_transition: str = ""  # RFC 3339, kept as written: it is compared and copied, not calculated with


@dataclass(frozen=True, slots=True)
class StatusWriter:
    """An entry of managedFields that covers the status: the field manager, and its last write."""

    manager: str
    at: float  # seconds since 1970; 0.0 if the time cannot be read


@dataclass(frozen=True, slots=True)
class CachedGateway:
    """A Gateway as the API server holds it."""

    name: str
    uid: str
    resource_version: str
    generation: int  # of the spec
    value: Gateway | None  # None: the spec cannot be read, and no earlier version of it could
    spec_malformed: bool = False  # `value` has the last good spec, if there was one
    status_malformed: bool = False  # `value` has an empty status
    problems: tuple[Problem, ...] = ()
    conditions: tuple[GatewayCondition, ...] = ()
    node_count: int | None = None  # status.nodeCount; None if absent
    writers: tuple[StatusWriter, ...] = ()  # of the status, sorted by manager


@dataclass(frozen=True, slots=True)
class CachedNode:
    """A Node with the Gateway label."""

    name: str
    uid: str
    gateway: str  # the label's value
    value: Node | None  # None: it cannot be read, and `problems` say why
    calico: bool = False  # Calico's node agent runs on it
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class CalicoBlock:
    """A confirmed BlockAffinity: pods of this node get addresses from this prefix."""

    node: str
    prefix: Prefix


# The JSON of the API. Fields that are missing here are ignored. Lists and maps may be null: Go writes an empty one
# so.
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


def read_gateway(document: Mapping[str, Any], before: CachedGateway | None = None) -> CachedGateway:
    """Decode a Gateway. `before` is the version in the cache: its good spec stays in force if the new one is
    malformed, so that an operator's typing mistake does not take the region out of the mesh.
    """
    meta = _meta(document)
    parsed = crd.parse(document)
    value, problems, status_malformed = parsed.value, parsed.problems, False
    if value is None and document.get("status"):
        # If only the status is malformed, the spec is in force and the status is replaced as a whole.
        without_status = crd.parse({key: part for key, part in document.items() if key != "status"})
        if isinstance(without_status.value, Gateway):
            value, problems, status_malformed = without_status.value, without_status.problems, True
    spec_malformed = False
    if not isinstance(value, Gateway):
        value, spec_malformed = _last_good_spec(before, document), True
    return CachedGateway(
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        generation=meta.generation or 0,
        value=value,
        spec_malformed=spec_malformed,
        status_malformed=status_malformed,
        problems=problems,
        conditions=_conditions(document),
        node_count=_node_count(document),
        writers=_writers(meta),
    )


def _last_good_spec(before: CachedGateway | None, document: Mapping[str, Any]) -> Gateway | None:
    """Return the last good spec together with the present status; None if no version of the spec could be read."""
    if before is None or before.value is None:
        return None
    empty = {"apiVersion": GATEWAYS.api_version, "kind": "Gateway", "metadata": {"name": before.name}}
    parsed = crd.parse({**empty, "status": document.get("status")})
    status = parsed.value.status if isinstance(parsed.value, Gateway) else GatewayStatus()
    return replace(before.value, status=status)


def _conditions(document: Mapping[str, Any]) -> tuple[GatewayCondition, ...]:
    """Decode `status.conditions`. An element that cannot be read is left out and is lost with the next write."""
    status = document.get("status")
    found = status.get(CONDITIONS) if isinstance(status, Mapping) else None
    read = []
    for one in found if isinstance(found, list) else ():
        try:
            c = msgspec.convert(one, _Condition)
        except msgspec.ValidationError:
            continue
        read.append(
            GatewayCondition(c.type, c.status, c.reason, c.message, c.observed_generation, c.last_transition_time)
        )
    return tuple(read)


def _node_count(document: Mapping[str, Any]) -> int | None:
    """Decode `status.nodeCount`; None if it is absent or not a number, which makes the controller write it."""
    status = document.get("status")
    count = status.get(NODE_COUNT) if isinstance(status, Mapping) else None
    return count if isinstance(count, int) else None


def _writers(meta: _Meta) -> tuple[StatusWriter, ...]:
    """Return the field managers that wrote the status, each with the time of its last write."""
    found: dict[str, float] = {}
    for entry in meta.managed_fields or ():
        # API servers before 1.22 do not name the subresource; the fields of the entry tell.
        if entry.subresource == "status" or (entry.fields_v1 or {}).get("f:status") is not None:
            found[entry.manager] = max(found.get(entry.manager, 0.0), time_or_zero(entry.time))
    return tuple(StatusWriter(manager, at) for manager, at in sorted(found.items()))


def time_or_zero(text: str) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0.0, which is older than any other, if it cannot be read."""
    try:
        return rfc3339.parse(text)
    except ValueError:
        return 0.0


def read_node(document: Mapping[str, Any]) -> CachedNode:
    """Decode a Node. Its labels are dropped except for the Gateway's: ten thousand Nodes are in the cache."""
    meta = _meta(document)
    parsed = crd.parse(document)
    value = parsed.value if isinstance(parsed.value, Node) else None
    if value is not None:
        value = replace(value, labels=EMPTY)
    gateway = (meta.labels or {}).get(GATEWAY_LABEL, "")
    calico = any(_CALICO in key for key in meta.annotations or ())
    return CachedNode(meta.name, meta.uid, gateway, value, calico, parsed.problems)


def read_peer(document: Mapping[str, Any]) -> PeerObject | None:
    """Decode a Peer; None if it is malformed."""
    value = crd.parse(document).value
    return value if isinstance(value, PeerObject) else None


def read_block(document: Mapping[str, Any]) -> CalicoBlock | None:
    """Decode a BlockAffinity; None if it is not confirmed, is being deleted, or is malformed.

    Calico's IPAM claims a block in two steps, `pending` and `confirmed`, and marks it `deleted` before it goes. The
    field is a string ("true") because Calico's API declares it so.
    """
    try:
        spec = msgspec.convert(document, _Block).spec
    except msgspec.ValidationError:
        return None
    if spec.state != "confirmed" or spec.deleted in (True, "true") or not spec.node:
        return None
    prefix = read_prefix(ProblemCollector(""), "spec.cidr", spec.cidr)
    return None if prefix is None else CalicoBlock(spec.node, prefix)


def read_gates(document: Mapping[str, Any] | None) -> Gates:
    """Decode ConfigMap raven-cfg, which says which roles are elected in this cluster at all.

    Without the ConfigMap (None), or if its data cannot be read, the tunnel is elected and the proxy is not.
    OpenYurt's controller elects neither then, and a cluster without OpenYurt has no such ConfigMap. A key that is
    missing from an existing ConfigMap turns its role off, as in OpenYurt.
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


def extra_status_fields(definition: Mapping[str, Any]) -> frozenset[str]:
    """Return those `EXTRA_FIELDS` that this CustomResourceDefinition has in the status of version v1beta1."""
    path = ("schema", "openAPIV3Schema", "properties", "status", "properties")
    spec = definition.get("spec")
    for version in (spec.get("versions") if isinstance(spec, Mapping) else None) or ():
        here = version if version.get("name") == GATEWAYS.version else None
        for step in path:
            here = here.get(step) if isinstance(here, Mapping) else None
        if isinstance(here, Mapping):
            return frozenset(EXTRA_FIELDS & here.keys())
    return frozenset()


def _meta(document: Mapping[str, Any]) -> _Meta:
    """Return the metadata; of malformed metadata only the name, so that the object can be reported."""
    try:
        return msgspec.convert(document, _WithMeta).metadata
    except msgspec.ValidationError:
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        return _Meta(name=name if isinstance(name, str) else "")
