"""exposeType LoadBalancer: a Service in front of each active endpoint, and where it leads.

Upstream's names and labels, with one difference: a Service belongs to a place, not to a node. When the role moves,
the new node takes over the Service of the old one and with it the public address. Names follow from the place alone,
so nothing is ever created twice; Services that upstream's controller made are taken over as they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ravenvpn.k8s.controller.service_addresses import NODE_LABEL, SERVICE_LABEL, TYPE_LABEL, HeldService, HeldSlice
from ravenvpn.mesh.hoststate import Address
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

LOAD_BALANCER = "LoadBalancer"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "raven-vpn-controller"
DISCARD = "svc.openyurt.io/discard"  # YurtHub keeps these Services from the kube-proxies at the edge
# A cluster-wide name of at most 63 characters, as a Service's is a DNS label.
_MAX_NAME = 63


@dataclass(frozen=True, slots=True)
class Place:
    """A Service and the endpoint behind it; `endpoint` is None while nobody has the role."""

    service: str
    kind: EndpointType
    endpoint: GatewayEndpoint | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class Exposure:
    """What to write: objects to apply, and names to delete."""

    services: tuple[dict[str, Any], ...] = ()
    slices: tuple[dict[str, Any], ...] = ()
    drop_services: tuple[str, ...] = ()
    drop_slices: tuple[str, ...] = ()
    # Upstream's controller wrote Endpoints; those of a Service that leads elsewhere now would be mirrored.
    drop_endpoints: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.services or self.slices or self.drop_services or self.drop_slices)


NOTHING = Exposure()


def service_name(gateway: str, kind: EndpointType, place: int) -> str:
    """`x-raven-tunnel-svc-<gateway>-<8 hex>`, the same for ever; a long name of a Gateway is cut."""
    prefix = f"x-raven-{kind.value}-svc-"
    suffix = hashlib.sha256(f"{gateway}/{kind.value}/{place}".encode()).hexdigest()[:8]
    # A Gateway's name may hold dots, a Service's may not.
    middle = gateway.replace(".", "-")[: _MAX_NAME - len(prefix) - len(suffix) - 1].rstrip("-")
    return f"{prefix}{middle}-{suffix}"


def places(gateway: Gateway, active: Sequence[GatewayEndpoint], held: Sequence[HeldService]) -> tuple[Place, ...]:
    """Which Service stands in front of which active endpoint: who has one keeps it, a newcomer takes a free one.

    One that stays empty is kept as long as the role is wanted: its address outlives a moment without a gateway.
    """
    if gateway.expose_type != LOAD_BALANCER:
        return ()
    found: list[Place] = []
    for kind, replicas in (
        (EndpointType.PROXY, gateway.proxy_replicas),
        (EndpointType.TUNNEL, gateway.tunnel_replicas),
    ):
        mine = [s for s in held if s.kind == kind.value]
        here = [e for e in active if e.type is kind]
        taken: dict[str, GatewayEndpoint] = {}
        for endpoint in here:
            own = next((s.name for s in mine if s.node == endpoint.node and s.name not in taken), None)
            if own:
                taken[own] = endpoint
        behind = {e.node for e in taken.values()}
        free = [s.name for s in mine if s.name not in taken]
        fresh = _fresh_names(gateway.name, kind, {s.name for s in mine})
        created = []
        for endpoint in (e for e in here if e.node not in behind):
            name = free.pop(0) if free else next(fresh)
            taken[name] = endpoint
            created += [] if any(s.name == name for s in mine) else [name]
        found += (Place(name, kind, endpoint, name in created) for name, endpoint in taken.items())
        found += (Place(name, kind, None, False) for name in free[: max(0, replicas - len(here))])
    return tuple(found)


def _fresh_names(gateway: str, kind: EndpointType, used: Collection[str]) -> Iterator[str]:
    names = (service_name(gateway, kind, place) for place in itertools.count())
    return (name for name in names if name not in used)


@dataclass(frozen=True, slots=True)
class _Front:
    """A Service with somebody behind it."""

    service: str
    kind: EndpointType
    gateway: str
    uid: str
    node: str
    port: int
    target: int

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
    services: Sequence[HeldService],
    slices: Sequence[HeldSlice],
    ips: Mapping[str, Sequence[Address]],
    peers: Mapping[str, PeerObject],
) -> Exposure:
    """What is to be written. `gateway` None: it is gone. `ips`: InternalIPs by node, `peers`: by node, where ours."""
    wanted = places(gateway, status.active, services) if gateway is not None else ()
    present = {service.name: service for service in services}
    by_name = {one.name: one for one in slices}
    applied: list[_Front] = []
    pointing: list[dict[str, Any]] = []
    keep: set[str] = set()
    for place in wanted:
        if place.endpoint is None:
            continue  # the Service stays, its slices go below
        assert gateway is not None
        node = place.endpoint.node
        front = _Front(place.service, place.kind, gateway.name, uid, node, *_ports(place.endpoint, peers.get(node)))
        if not _stands(front, present.get(place.service)):
            applied.append(front)
        for version, address in _first_by_family(ips.get(node, ())).items():
            name = f"{front.service}-ipv{version}"
            keep.add(name)
            if not _leads(front, address, by_name.get(name)):
                pointing.append(_slice(front, name, version, address))
    names = {place.service for place in wanted}
    return Exposure(
        tuple(_service(front) for front in applied),
        tuple(pointing),
        tuple(sorted(present.keys() - names)),
        tuple(sorted(by_name.keys() - keep)),
        tuple(front.service for front in applied if not _is_ours(front, len(services))),
    )


def _first_by_family(addresses: Sequence[Address]) -> dict[int, str]:
    found: dict[int, str] = {}
    for address in addresses:
        found.setdefault(address.version, str(address))
    return dict(sorted(found.items()))


def _stands(front: _Front, held: HeldService | None) -> bool:
    if held is None or not held.is_balancer:
        return False
    said = (held.node, held.port, held.target_port, held.protocol)
    return said == (front.node, front.port, front.target, front.protocol)


def _leads(front: _Front, address: str, held: HeldSlice | None) -> bool:
    if held is None or held.service != front.service:
        return False
    said = (held.addresses, held.node, held.port, held.protocol)
    return said == ((address,), front.node, front.target, front.protocol)


def _is_ours(front: _Front, many: int) -> bool:
    return any(front.service == service_name(front.gateway, front.kind, i) for i in range(many + 1))


def _ports(endpoint: GatewayEndpoint, peer: PeerObject | None) -> tuple[int, int]:
    """The Service's port and the node's. Peers of ours dial and listen on the same; upstream's agents listen on the
    default whatever the endpoint says."""
    if endpoint.type is EndpointType.PROXY:
        return endpoint.port or DEFAULT_PROXY_PORT, DEFAULT_PROXY_PORT
    if peer is None:
        return endpoint.port or DEFAULT_TUNNEL_PORT, DEFAULT_TUNNEL_PORT
    listen = tunnel_port(endpoint, peer)
    return listen, listen


def _service(front: _Front) -> dict[str, Any]:
    port = {
        "name": front.kind.value,
        "port": front.port,
        "targetPort": front.target,
        "protocol": front.protocol,
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **_metadata(front.service, front),
            "labels": front.labels,
            "annotations": {DISCARD: "true"},
        },
        # Local: the node sees who calls, and only the node with the role answers.
        "spec": {"type": LOAD_BALANCER, "externalTrafficPolicy": "Local", "ports": [port]},
    }


def _slice(front: _Front, name: str, version: int, address: str) -> dict[str, Any]:
    ours = {SERVICE_LABEL: front.service, MANAGED_BY: CONTROLLER}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**_metadata(name, front), "labels": {**ours, **front.labels}},
        "addressType": f"IPv{version}",
        # With the node's name: externalTrafficPolicy Local counts endpoints by it.
        "endpoints": [{"addresses": [address], "nodeName": front.node, "conditions": {"ready": True}}],
        "ports": [{"name": front.kind.value, "port": front.target, "protocol": front.protocol}],
    }


def _metadata(name: str, front: _Front) -> dict[str, Any]:
    owner = {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "name": front.gateway,
        "uid": front.uid,
    }
    return {"name": name, "namespace": "kube-system", "ownerReferences": [owner]}
