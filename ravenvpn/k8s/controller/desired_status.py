"""Compute the status a Gateway should have: `mesh.status` over the cache, plus an address that OpenYurt's agents can
dial.

A node that stands in for a dead gateway while no controller elects makes no claim to the role. Each agent decides
that for itself (`mesh.takeover`) and stops when the elected endpoint is alive again or the role moves, which follows
the same order of endpoints. So stand-ins are not read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.decode_services import CachedService
from ravenvpn.k8s.controller.desired_services import LOAD_BALANCER, assign_slots
from ravenvpn.k8s.fields import ProblemCollector, read_address
from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, GatewayStatus, PeerObject, address_of
from ravenvpn.mesh.status import fill
from ravenvpn.mesh.tunnel_port import tunnel_port

# Resolves a host name to addresses, from memory: () while it is not resolved. An address resolves to itself.
Resolve = Callable[[str], Sequence[str]]


def desired_status(cache: ClusterCache, gateway: Gateway, resolve: Resolve) -> GatewayStatus:
    """Return the active endpoints with their public addresses, and the nodes with their prefixes.

    The result depends on `gateway.status` too: an elected endpoint stays elected while its node is Ready, and a
    public address stays while it is one of the load balancer's.
    """
    status = fill(gateway, cache.members(gateway.name), cache.gates, cache.gateways.epochs(gateway.name))
    before = {(e.node, e.type): e.public_ip for e in gateway.status.active}
    existing = {service.name: service for service in cache.services.lookup(gateway.name)}
    services = {
        (slot.kind, slot.endpoint.node): existing.get(slot.service)
        for slot in assign_slots(gateway, status.active, list(existing.values()))
        if slot.endpoint
    }
    active = []
    for endpoint in status.active:
        present = before.get((endpoint.node, endpoint.type), "")
        if gateway.expose_type == LOAD_BALANCER:
            service = services.get((endpoint.type, endpoint.node))
            active.append(_with_balancer_address(endpoint, service, present, resolve))
        else:
            active.append(_with_announced_address(endpoint, cache.peers.get(endpoint.node)))
    return replace(status, active=tuple(active))


def _with_balancer_address(
    endpoint: GatewayEndpoint, service: CachedService | None, present: str, resolve: Resolve
) -> GatewayEndpoint:
    """Set publicIP to an address of the load balancer; `present` is the one in the status now.

    The present address stays while it is among several, since DNS answers come in changing order. It also stays while
    the provider names a host that does not resolve at the moment.
    """
    ingress = service.ingress if service else ()
    found = list(dict.fromkeys(address for one in ingress for address in resolve(one) if _is_dialable(address)))
    if found:
        return replace(endpoint, public_ip=present if present in found else found[0])
    return replace(endpoint, public_ip=(present if ingress else "") or endpoint.public_ip)


def _is_dialable(text: str) -> bool:
    """Whether readers of the status accept this publicIP. Another one would make the status unreadable, and the
    controller would write it again after every read."""
    return read_address(ProblemCollector(""), "", text) is not None


def _with_announced_address(endpoint: GatewayEndpoint, peer: PeerObject | None) -> GatewayEndpoint:
    """Set publicIP, if spec and NAT leave it empty, to the best address that the node's agent announces in its Peer.

    This is for OpenYurt's agents, which skip a Gateway without publicIP and dial its port only. Our agents read the
    Peer, so an address with another port is left to them.
    """
    if endpoint.public_ip or endpoint.under_nat or peer is None or endpoint.type is not EndpointType.TUNNEL:
        return endpoint
    listen = tunnel_port(endpoint, peer)
    for host, port in peer.addresses:
        if address_of(host) is not None and port in (0, listen):
            return replace(endpoint, public_ip=host)
    return endpoint
