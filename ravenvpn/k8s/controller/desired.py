"""The status a Gateway should have: `mesh.status` over the view, with what only a cluster adds: an address for
upstream's agents to dial.

Who stands in for a dead gateway while nobody elects is no claim to the role. It is what each node saw for itself, and
ends when it sees otherwise or the role moves here, by the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.service_addresses import HeldService
from ravenvpn.k8s.controller.services import LOAD_BALANCER, places
from ravenvpn.k8s.fields import ProblemCollector, read_address
from ravenvpn.mesh.model import (
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    PeerObject,
    address_of,
)
from ravenvpn.mesh.status import fill
from ravenvpn.mesh.tunnel_port import tunnel_port

Addresses = Callable[[str], Sequence[str]]  # what a name stands for now; an address stands for itself


def status_of(view: ClusterCache, gateway: Gateway, addresses: Addresses) -> GatewayStatus:
    """Who is active, with addresses, and what the nodes hold."""
    status = fill(gateway, view.members(gateway.name), view.gates, view.epochs(gateway.name))
    before = {(e.node, e.type): e.public_ip for e in gateway.status.active}
    held = {service.name: service for service in view.services_of(gateway.name)}
    services = {
        (p.kind, p.endpoint.node): held.get(p.service)
        for p in places(gateway, status.active, list(held.values()))
        if p.endpoint
    }
    active = []
    for endpoint in status.active:
        present = before.get((endpoint.node, endpoint.type), "")
        if gateway.expose_type == LOAD_BALANCER:
            service = services.get((endpoint.type, endpoint.node))
            active.append(_balanced(endpoint, service, present, addresses))
        else:
            active.append(_announced(endpoint, view.peers.get(endpoint.node)))
    return replace(status, active=tuple(active))


def _balanced(
    endpoint: GatewayEndpoint, service: HeldService | None, present: str, addresses: Addresses
) -> GatewayEndpoint:
    """Where the load balancer listens. Of several addresses the present one stays as long as it is among them."""
    ingress = service.ingress if service else ()
    found = list(dict.fromkeys(address for one in ingress for address in addresses(one) if _reachable(address)))
    if found:
        return replace(endpoint, public_ip=present if present in found else found[0])
    # A resolver that is silent takes nothing away from a name that is still the balancer's.
    return replace(endpoint, public_ip=(present if ingress else "") or endpoint.public_ip)


def _reachable(text: str) -> bool:
    """What no reader of the status would take must not stand there: it would be written for ever."""
    return read_address(ProblemCollector(""), "", text) is not None


def _announced(endpoint: GatewayEndpoint, peer: PeerObject | None) -> GatewayEndpoint:
    """For upstream's agents, which leave a Gateway out that has no publicIP: the best address our agent announces.

    Ours do not need it. They read the Peer, so what dials another port than the tunnel's own is left to them.
    """
    if endpoint.public_ip or endpoint.under_nat or peer is None or endpoint.type is not EndpointType.TUNNEL:
        return endpoint
    listen = tunnel_port(endpoint, peer)
    for host, port in peer.addresses:
        if address_of(host) is not None and port in (0, listen):
            return replace(endpoint, public_ip=host)
    return endpoint
