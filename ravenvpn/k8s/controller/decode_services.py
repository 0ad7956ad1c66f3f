"""Decode the LoadBalancer Services in front of gateways and their EndpointSlices, as the API server holds them.

`desired_services` decides what they should be. A Service is recognised by its name and labels, which OpenYurt's
controller and this one give alike. No function here raises on an object that an API server can store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ravenvpn.mesh.model import GATEWAY_LABEL

TYPE_LABEL = "raven.openyurt.io/gateway-type"  # "tunnel" or "proxy"
NODE_LABEL = "raven.openyurt.io/endpoints-name"  # the node behind the Service
SERVICE_LABEL = "kubernetes.io/service-name"  # of an EndpointSlice: its Service


@dataclass(frozen=True, slots=True)
class CachedService:
    """A LoadBalancer Service in front of a gateway."""

    name: str
    gateway: str  # the region, from its label
    kind: str  # "tunnel" or "proxy", from its label
    node: str  # the node behind it, from its label
    port: int  # where the load balancer listens
    protocol: str  # "UDP" or "TCP"
    target_port: int  # where the node listens; 0 if it is given by name
    is_load_balancer: bool  # spec.type
    ingress: tuple[str, ...]  # addresses and host names that the provider assigned, in its order


@dataclass(frozen=True, slots=True)
class CachedSlice:
    """An EndpointSlice of such a Service, with its first endpoint and port. This controller writes one of each."""

    name: str
    gateway: str
    service: str
    addresses: tuple[str, ...]
    node: str
    port: int
    protocol: str


# The JSON of the API. Fields that are missing here are ignored. Lists and maps may be null: Go writes an empty one
# so.
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


class _LoadBalancerStatus(msgspec.Struct):
    ingress: list[_Ingress] | None = None


class _ServiceStatus(msgspec.Struct, rename="camel"):
    load_balancer: _LoadBalancerStatus | None = None


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


class _Slice(msgspec.Struct):
    metadata: _Labelled
    endpoints: list[_SliceEndpoint] | None = None
    ports: list[_SlicePort] | None = None


def read_service(document: Mapping[str, Any]) -> CachedService | None:
    """Decode a Service; None if it is malformed or its name is not one that a controller of Gateways gives.

    Only the first port counts: such a Service has one. A provider sets `ip` or `hostname` of each ingress.
    """
    try:
        service = msgspec.convert(document, _Service)
    except msgspec.ValidationError:
        return None
    labels = service.metadata.labels or {}
    if not service.metadata.name.startswith(f"x-raven-{labels.get(TYPE_LABEL)}-svc-"):
        return None  # another owner's, although it has the labels: it must never be changed or deleted
    port = (service.spec.ports or [_ServicePort()])[0]
    assigned = service.status.load_balancer if service.status else None
    ingress = [entry.ip or entry.hostname for entry in (assigned.ingress if assigned else None) or ()]
    return CachedService(
        name=service.metadata.name,
        gateway=labels.get(GATEWAY_LABEL, ""),
        kind=labels.get(TYPE_LABEL, ""),
        node=labels.get(NODE_LABEL, ""),
        port=port.port,
        protocol=port.protocol,
        target_port=port.target_port if isinstance(port.target_port, int) else 0,
        is_load_balancer=service.spec.type == "LoadBalancer",
        ingress=tuple(dict.fromkeys(one for one in ingress if one)),
    )


def read_slice(document: Mapping[str, Any]) -> CachedSlice | None:
    """Decode an EndpointSlice; None if it is malformed."""
    try:
        found = msgspec.convert(document, _Slice)
    except msgspec.ValidationError:
        return None
    labels = found.metadata.labels or {}
    endpoint = (found.endpoints or [_SliceEndpoint()])[0]
    port = (found.ports or [_SlicePort()])[0]
    return CachedSlice(
        name=found.metadata.name,
        gateway=labels.get(GATEWAY_LABEL, ""),
        service=labels.get(SERVICE_LABEL, ""),
        addresses=tuple(endpoint.addresses or ()),
        node=endpoint.node_name or "",
        port=port.port or 0,
        protocol=port.protocol or "",
    )
