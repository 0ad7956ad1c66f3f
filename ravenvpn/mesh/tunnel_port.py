"""The one rule for the UDP port of a node's tunnel. Every component that needs the port takes it from here."""

from __future__ import annotations

from ravenvpn.mesh.model import (
    DEFAULT_TUNNEL_PORT,
    EndpointType,
    Gateway,
    GatewayEndpoint,
    HostPort,
    PeerObject,
)


def tunnel_port(endpoint: GatewayEndpoint | None, peer: PeerObject | None, configured: int | None = None) -> int:
    """Return the port on which a node listens.

    The first of these that is set (0 and None are not): the port of the Gateway's endpoint, the port `configured` on
    the node itself (known there only; others read it from the Peer), `Peer.spec.listenPort`, 4500. The Gateway comes
    first because load balancers and firewalls in front of the node are set up after it.
    """
    return (
        (endpoint.port if endpoint else 0) or configured or (peer.listen_port if peer else 0) or DEFAULT_TUNNEL_PORT
    )


def port_of_address(address: HostPort, endpoint: GatewayEndpoint | None, peer: PeerObject) -> int:
    """Return the port to dial at an address that `peer` announces: its own, else the one the Peer listens on."""
    return address.port or peer.listen_port or tunnel_port(endpoint, peer)


def listen_port(node: str, gateway: Gateway | None, peer: PeerObject | None, configured: int | None = None) -> int:
    """Return the port on which `node` of this region listens; an active endpoint counts before one of the spec."""
    endpoints = (*gateway.status.active, *gateway.endpoints) if gateway else ()
    with_port = (e for e in endpoints if e.node == node and e.type is EndpointType.TUNNEL and e.port)
    return tunnel_port(next(with_port, None), peer, configured)
