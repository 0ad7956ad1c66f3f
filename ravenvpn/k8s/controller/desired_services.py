"""Decide which LoadBalancer Services and EndpointSlices a Gateway with exposeType LoadBalancer should have.

Names and labels are those of OpenYurt's controller, with one difference: a Service belongs to a slot of the region,
not to a node. When the role moves, the new node takes over the Service, and the region keeps its public address. The
name of a slot's Service follows from Gateway, role and number, so a restarted controller creates no second one.
Services that OpenYurt's controller made are taken over under their own names. Pure functions.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ravenvpn.k8s.controller.decode_services import NODE_LABEL, SERVICE_LABEL, TYPE_LABEL, CachedService, CachedSlice
from ravenvpn.k8s.controller.options import CONTROLLER_NAME, NAMESPACE
from ravenvpn.k8s.resource import ENDPOINT_SLICES, GATEWAYS, SERVICES
from ravenvpn.mesh.model import (
    DEFAULT_PROXY_PORT,
    DEFAULT_TUNNEL_PORT,
    GATEWAY_LABEL,
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    PeerObject,
)
from ravenvpn.mesh.tunnel_port import tunnel_port
from ravenvpn.prefixes import Address

LOAD_BALANCER = "LoadBalancer"  # spec.exposeType of a Gateway, spec.type of a Service
# Tells kube-controller-manager's EndpointSlice controller that these slices are not its own.
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
DISCARD = "svc.openyurt.io/discard"  # annotation by which YurtHub hides the Service from kube-proxies at the edge
_MAX_NAME = 63  # characters of a Service's name, a DNS label (RFC 1035)


@dataclass(frozen=True, slots=True)
class ServiceSlot:
    """A Service of a region, and the active endpoint behind it."""

    service: str  # its name
    kind: EndpointType
    endpoint: GatewayEndpoint | None  # None: no node has the role now


@dataclass(frozen=True, slots=True)
class Exposure:
    """The writes that bring Services and EndpointSlices of one Gateway to the desired state; false if none."""

    services: tuple[dict[str, Any], ...] = ()  # to apply
    slices: tuple[dict[str, Any], ...] = ()  # to apply
    drop_services: tuple[str, ...] = ()  # names to delete
    drop_slices: tuple[str, ...] = ()
    # Endpoints to delete. OpenYurt's controller writes them, and kube-controller-manager mirrors them into
    # EndpointSlices: those of a Service that was taken over would lead to the old node.
    drop_endpoints: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.services or self.slices or self.drop_services or self.drop_slices)


NOTHING = Exposure()


def service_name(gateway: str, kind: EndpointType, slot: int) -> str:
    """Return `x-raven-tunnel-svc-<gateway>-<8 hex>`, the same for the same arguments in every process.

    A name that would be too long is cut; the hash keeps it unique.
    """
    prefix = f"x-raven-{kind.value}-svc-"
    suffix = hashlib.sha256(f"{gateway}/{kind.value}/{slot}".encode()).hexdigest()[:8]
    # The name of a Gateway may have dots (DNS subdomain), the name of a Service may not (DNS label).
    middle = gateway.replace(".", "-")[: _MAX_NAME - len(prefix) - len(suffix) - 1].rstrip("-")
    return f"{prefix}{middle}-{suffix}"


def assign_slots(
    gateway: Gateway, active: Sequence[GatewayEndpoint], services: Sequence[CachedService]
) -> tuple[ServiceSlot, ...]:
    """Assign the active endpoints to Services: an endpoint keeps the Service of its node, a new one gets a free
    Service, and only then a new Service.

    A Service without an endpoint is kept as long as the role has replicas for it, because deleting it would give its
    public address back. Returns () for a Gateway with another exposeType.
    """
    if gateway.expose_type != LOAD_BALANCER:
        return ()
    slots: list[ServiceSlot] = []
    for kind, replicas in (
        (EndpointType.PROXY, gateway.proxy_replicas),
        (EndpointType.TUNNEL, gateway.tunnel_replicas),
    ):
        existing = [s for s in services if s.kind == kind.value]
        endpoints = [e for e in active if e.type is kind]
        assigned: dict[str, GatewayEndpoint] = {}  # name of the Service → endpoint
        for endpoint in endpoints:
            own = next((s.name for s in existing if s.node == endpoint.node and s.name not in assigned), None)
            if own:
                assigned[own] = endpoint
        served = {e.node for e in assigned.values()}
        free = [s.name for s in existing if s.name not in assigned]
        unused = _unused_names(gateway.name, kind, {s.name for s in existing})
        for endpoint in (e for e in endpoints if e.node not in served):
            assigned[free.pop(0) if free else next(unused)] = endpoint
        slots += (ServiceSlot(name, kind, endpoint) for name, endpoint in assigned.items())
        slots += (ServiceSlot(name, kind, None) for name in free[: max(0, replicas - len(endpoints))])
    return tuple(slots)


def _unused_names(gateway: str, kind: EndpointType, used: Collection[str]) -> Iterator[str]:
    """Return the names for new Services of this role in the order of their slots, without those in `used`."""
    names = (service_name(gateway, kind, slot) for slot in itertools.count())
    return (name for name in names if name not in used)


@dataclass(frozen=True, slots=True)
class _Frontend:
    """A Service with an endpoint behind it, as it should be."""

    service: str  # its name
    kind: EndpointType
    gateway: str
    uid: str  # of the Gateway, its owner
    node: str
    port: int  # where the load balancer listens
    target: int  # where the node listens

    @property
    def protocol(self) -> str:
        return "UDP" if self.kind is EndpointType.TUNNEL else "TCP"

    @property
    def labels(self) -> dict[str, str]:
        return {GATEWAY_LABEL: self.gateway, TYPE_LABEL: self.kind.value, NODE_LABEL: self.node}


def expose(
    gateway: Gateway | None,
    uid: str,
    status: GatewayStatus,
    *,
    services: Sequence[CachedService],
    slices: Sequence[CachedSlice],
    ips: Mapping[str, Sequence[Address]],
    peers: Mapping[str, PeerObject],
) -> Exposure:
    """Return the writes for one Gateway; None for `gateway` if it was deleted, then all its objects go.

    `uid` is the Gateway's, `status` the desired one; `services` and `slices` are those that exist. `ips` are the
    InternalIPs and `peers` the Peers, by node; a node without a Peer runs OpenYurt's agent.
    """
    slots = assign_slots(gateway, status.active, services) if gateway is not None else ()
    present = {service.name: service for service in services}
    by_name = {one.name: one for one in slices}
    applied: list[_Frontend] = []
    slice_bodies: list[dict[str, Any]] = []
    keep: set[str] = set()
    for slot in slots:
        if slot.endpoint is None:
            continue  # the Service is kept, its slices are deleted
        assert gateway is not None
        node = slot.endpoint.node
        frontend = _Frontend(
            slot.service, slot.kind, gateway.name, uid, node, *_ports(slot.endpoint, peers.get(node))
        )
        if not _service_matches(frontend, present.get(slot.service)):
            applied.append(frontend)
        for version, address in _first_by_family(ips.get(node, ())).items():
            name = f"{frontend.service}-ipv{version}"
            keep.add(name)
            if not _slice_matches(frontend, address, by_name.get(name)):
                slice_bodies.append(_slice(frontend, name, version, address))
    names = {slot.service for slot in slots}
    return Exposure(
        tuple(_service(frontend) for frontend in applied),
        tuple(slice_bodies),
        tuple(sorted(present.keys() - names)),
        tuple(sorted(by_name.keys() - keep)),
        tuple(frontend.service for frontend in applied if not _has_our_name(frontend, len(services))),
    )


def _first_by_family(addresses: Sequence[Address]) -> dict[int, str]:
    """Return the first address of each family, by IP version, IPv4 first."""
    found: dict[int, str] = {}
    for address in addresses:
        found.setdefault(address.version, str(address))
    return dict(sorted(found.items()))


def _service_matches(frontend: _Frontend, service: CachedService | None) -> bool:
    """Whether the stored Service needs no write. Fields that the provider or the API server set are not compared."""
    if service is None or not service.is_load_balancer:
        return False
    present = (service.node, service.port, service.target_port, service.protocol)
    return present == (frontend.node, frontend.port, frontend.target, frontend.protocol)


def _slice_matches(frontend: _Frontend, address: str, found: CachedSlice | None) -> bool:
    """Whether the stored EndpointSlice needs no write."""
    if found is None or found.service != frontend.service:
        return False
    present = (found.addresses, found.node, found.port, found.protocol)
    return present == ((address,), frontend.node, frontend.target, frontend.protocol)


def _has_our_name(frontend: _Frontend, count: int) -> bool:
    """Whether this controller made the Service, judged by its name; `count` Services use at most as many slots."""
    return any(frontend.service == service_name(frontend.gateway, frontend.kind, i) for i in range(count + 1))


def _ports(endpoint: GatewayEndpoint, peer: PeerObject | None) -> tuple[int, int]:
    """Return the port of the Service and the port of the node.

    Our agents listen on the port that others dial. OpenYurt's agents (`peer` is None) listen on the default port
    whatever the endpoint says.
    """
    if endpoint.type is EndpointType.PROXY:
        return endpoint.port or DEFAULT_PROXY_PORT, DEFAULT_PROXY_PORT
    port = tunnel_port(endpoint, peer)
    return port, DEFAULT_TUNNEL_PORT if peer is None else port


def _service(frontend: _Frontend) -> dict[str, Any]:
    """Return the Service to apply; it has one port, named after the role."""
    port = {
        "name": frontend.kind.value,
        "port": frontend.port,
        "targetPort": frontend.target,
        "protocol": frontend.protocol,
    }
    return {
        "apiVersion": SERVICES.api_version,
        "kind": "Service",
        "metadata": {
            **_metadata(frontend.service, frontend),
            "labels": frontend.labels,
            "annotations": {DISCARD: "true"},
        },
        # externalTrafficPolicy Local keeps the source address, which WireGuard needs for roaming, and only the node
        # with the role answers the load balancer's health check.
        "spec": {"type": LOAD_BALANCER, "externalTrafficPolicy": "Local", "ports": [port]},
    }


def _slice(frontend: _Frontend, name: str, version: int, address: str) -> dict[str, Any]:
    """Return the EndpointSlice of one IP family.

    Without a selector on the Service no other controller makes slices.
    """
    own = {SERVICE_LABEL: frontend.service, MANAGED_BY: CONTROLLER_NAME}
    return {
        "apiVersion": ENDPOINT_SLICES.api_version,
        "kind": "EndpointSlice",
        "metadata": {**_metadata(name, frontend), "labels": {**own, **frontend.labels}},
        "addressType": f"IPv{version}",
        # nodeName is required for externalTrafficPolicy Local: kube-proxy counts the endpoints of its own node by it.
        "endpoints": [{"addresses": [address], "nodeName": frontend.node, "conditions": {"ready": True}}],
        "ports": [{"name": frontend.kind.value, "port": frontend.target, "protocol": frontend.protocol}],
    }


def _metadata(name: str, frontend: _Frontend) -> dict[str, Any]:
    """Return the metadata that Service and slices have in common; the Gateway owns both."""
    # The garbage collector deletes the objects with their Gateway, also when no controller runs.
    owner = {
        "apiVersion": GATEWAYS.api_version,
        "kind": "Gateway",
        "name": frontend.gateway,
        "uid": frontend.uid,
    }
    return {"name": name, "namespace": NAMESPACE, "ownerReferences": [owner]}
