"""LoadBalancer Services in front of gateways and their EndpointSlices, as the API server holds them; `public` decides
what they should be.

They are told by name and labels, upstream's and ours alike. Nothing here raises on what an API server can hold: what
cannot be read is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ravenvpn.mesh.model import GATEWAY_LABEL

TYPE_LABEL = "raven.openyurt.io/gateway-type"
NODE_LABEL = "raven.openyurt.io/endpoints-name"
SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class HeldService:
    """One of our LoadBalancer Services. `ingress` are the addresses and names its provider gave it."""

    name: str
    gateway: str
    kind: str
    node: str
    port: int
    protocol: str
    target_port: int
    is_balancer: bool
    ingress: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeldSlice:
    """One of our EndpointSlices."""

    name: str
    gateway: str
    service: str
    family: str
    addresses: tuple[str, ...]
    node: str
    port: int
    protocol: str


class _Labelled(msgspec.Struct):
    name: str = ""
    labels: dict[str, str] | None = None


class _ServicePort(msgspec.Struct, rename="camel"):
    port: int = 0
    protocol: str = "TCP"
    target_port: int | str | None = None


class _ServiceSpec(msgspec.Struct):
    type: str = ""
    ports: list[_ServicePort] | None = None


class _Ingress(msgspec.Struct):
    ip: str = ""
    hostname: str = ""


class _Balancer(msgspec.Struct):
    ingress: list[_Ingress] | None = None


class _ServiceStatus(msgspec.Struct, rename="camel"):
    load_balancer: _Balancer | None = None


class _Service(msgspec.Struct):
    metadata: _Labelled
    spec: _ServiceSpec = msgspec.field(default_factory=_ServiceSpec)
    status: _ServiceStatus | None = None


class _SliceEndpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] | None = None
    node_name: str | None = None


class _SlicePort(msgspec.Struct):
    port: int | None = None
    protocol: str | None = None


class _Slice(msgspec.Struct, rename="camel"):
    metadata: _Labelled
    address_type: str = ""
    endpoints: list[_SliceEndpoint] | None = None
    ports: list[_SlicePort] | None = None


def read_service(document: Mapping[str, Any]) -> HeldService | None:
    """None where it is not one that a controller of Gateways makes."""
    try:
        service = msgspec.convert(document, _Service)
    except msgspec.ValidationError:
        return None
    labels = service.metadata.labels or {}
    if not service.metadata.name.startswith(f"x-raven-{labels.get(TYPE_LABEL)}-svc-"):
        return None  # somebody else's, whatever its labels say
    port = (service.spec.ports or [_ServicePort()])[0]
    balancer = service.status.load_balancer if service.status else None
    ingress = [entry.ip or entry.hostname for entry in (balancer.ingress if balancer else None) or ()]
    return HeldService(
        name=service.metadata.name,
        gateway=labels.get(GATEWAY_LABEL, ""),
        kind=labels.get(TYPE_LABEL, ""),
        node=labels.get(NODE_LABEL, ""),
        port=port.port,
        protocol=port.protocol,
        target_port=port.target_port if isinstance(port.target_port, int) else 0,
        is_balancer=service.spec.type == "LoadBalancer",
        ingress=tuple(dict.fromkeys(one for one in ingress if one)),
    )


def read_slice(document: Mapping[str, Any]) -> HeldSlice | None:
    """None where it cannot be read."""
    try:
        held = msgspec.convert(document, _Slice)
    except msgspec.ValidationError:
        return None
    labels = held.metadata.labels or {}
    endpoint = (held.endpoints or [_SliceEndpoint()])[0]
    port = (held.ports or [_SlicePort()])[0]
    return HeldSlice(
        name=held.metadata.name,
        gateway=labels.get(GATEWAY_LABEL, ""),
        service=labels.get(SERVICE_LABEL, ""),
        family=held.address_type,
        addresses=tuple(endpoint.addresses or ()),
        node=endpoint.node_name or "",
        port=port.port or 0,
        protocol=port.protocol or "",
    )
