"""Regions resolved for planning: which gateway nodes a region has, and which of them others can dial.

A gateway node is *dialable* when it is not behind NAT and an address or name of it is known. Two gateway nodes hold a
session when at least one is dialable. Regions that cannot, meet through a hub (`mesh.hubs`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import KEY_BYTES
from ravenvpn.mesh.claims import Announced, claims
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, PeerObject
from ravenvpn.mesh.nodeplan import Candidate
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.tunnel_port import port_of_address, tunnel_port

# Key of an endpoint's `config` under which OpenYurt's WireGuard driver publishes its public key.
UPSTREAM_KEY = "publicKey"


@dataclass(frozen=True, slots=True)
class GatewayNode:
    """A node that is the gateway of its region or may become it, with everything a session with it needs."""

    node: str
    active: bool  # elected; the others are standbys
    under_nat: bool
    public_keys: tuple[bytes, ...]  # 32 bytes each; the second one is announced for rotation
    candidates: tuple[Candidate, ...]  # where other regions dial it, best first
    suites: tuple[Suite, ...]
    # Every candidate is an IPv6 address that is itself routed into the tunnel (forwardNodeIP). Linux keeps path MTU
    # exceptions per destination, without regard to ports, so our outer packets do not see what discovery finds.
    no_pmtu_discovery: bool = False

    @property
    def dialable(self) -> bool:
        """Whether other regions can start a handshake with it."""
        return not self.under_nat and bool(self.candidates)


@dataclass(frozen=True, slots=True)
class ResolvedRegion:
    """A Gateway with its conflicts resolved and its nodes' keys and candidates joined in. Equal on every node."""

    name: str
    gateways: tuple[GatewayNode, ...]  # active ones first, each part sorted by name
    announced: tuple[Announced, ...]  # accepted prefixes, each once
    notes: tuple[Reason, ...] = ()
    lost_prefixes: bool = False  # another region won some of its prefixes; its nodes leave those to their own network
    succession: tuple[str, ...] = ()  # its gateway nodes in the order of spec.endpoints: the order of take-over

    @property
    def active(self) -> tuple[GatewayNode, ...]:
        """Its active gateways, sorted by name."""
        return tuple(g for g in self.gateways if g.active)

    @property
    def serves_as_hub(self) -> bool:
        """Whether it may relay. Without some of its prefixes it may not: it would deliver relayed packets locally."""
        return not self.lost_prefixes and any(g.active and g.dialable for g in self.gateways)


def upstream_key(endpoint: GatewayEndpoint) -> bytes | None:
    """Return the public key that OpenYurt's WireGuard driver left on the endpoint; None if absent or malformed."""
    try:
        key = base64.b64decode(endpoint.config.get(UPSTREAM_KEY, ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


def candidates_of(endpoint: GatewayEndpoint, peer: PeerObject | None) -> tuple[Candidate, ...]:
    """Return where other regions dial a gateway node, best first.

    The endpoint's publicIP comes first, unless the node is behind NAT: then it names the NAT device, which forwards
    nothing, and only addresses that the node announces itself count (a forwarded port, for example).
    """
    found: dict[tuple[str, int], Candidate] = {}
    if endpoint.public_ip and not endpoint.under_nat:
        port = endpoint.public_port or tunnel_port(endpoint, peer)
        found[endpoint.public_ip, port] = Candidate(endpoint.public_ip, port)
    if peer is not None:
        for address in peer.addresses:
            at = (address.host, port_of_address(address, endpoint, peer))
            found.setdefault(at, Candidate(*at))
    return tuple(found.values())


def resolve_region(
    gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims, *, forward_node_ip: bool = False
) -> ResolvedRegion:
    """Return a Gateway joined with the Peers of its nodes, without what it lost in conflicts (`refused`)."""
    announced = _announced(gateway, peers, refused, forward_node_ip)
    routed = frozenset(str(a.prefix.network_address) for a in announced if a.dialled and a.prefix.version == 6)
    found = [
        _gateway_node(gateway, endpoint, peers, refused, active=active, where=where, routed=routed)
        for endpoint, active, where in _endpoints(gateway)
    ]
    nodes = [one for one in found if isinstance(one, GatewayNode)]
    notes = [one for one in found if isinstance(one, Reason)]
    if not any(n.active for n in nodes):
        notes.append(Reason(ReasonCode.NO_ACTIVE_ENDPOINT, gateway.name))
    order = {e.node: i for i, e in reversed([*enumerate(gateway.endpoints)]) if e.type is EndpointType.TUNNEL}
    succession = tuple(sorted((n.node for n in nodes if n.node in order), key=order.__getitem__))
    nodes.sort(key=lambda n: (not n.active, n.node))
    return ResolvedRegion(
        gateway.name,
        tuple(nodes),
        announced,
        tuple(notes),
        lost_prefixes=bool(refused.shadowed),
        succession=succession,
    )


def _endpoints(gateway: Gateway) -> Iterable[tuple[GatewayEndpoint, bool, str]]:
    """Yield (endpoint, active, field) of the region's tunnel endpoints, each node once and as active if it is."""
    seen: set[str] = set()
    for part, active, endpoints in (
        ("status.activeEndpoints", True, gateway.status.active),
        ("spec.endpoints", False, gateway.endpoints),
    ):
        for i, endpoint in enumerate(endpoints):
            if endpoint.type is EndpointType.TUNNEL and endpoint.node not in seen:
                seen.add(endpoint.node)
                yield endpoint, active, f"Gateway {gateway.name}, {part}[{i}]"


def _gateway_node(
    gateway: Gateway,
    endpoint: GatewayEndpoint,
    peers: Mapping[str, PeerObject],
    refused: RefusedClaims,
    *,
    active: bool,
    where: str,
    routed: frozenset[str],
) -> GatewayNode | Reason | None:
    """Return the gateway node of one endpoint, or the reason why it is left out, `where` in its sentence.

    None: it is left out for a conflict, which is reported already. `routed` are node addresses that are reached
    through the tunnel.
    """
    node = endpoint.node
    if node in refused.nodes:
        return None
    if all(info.node != node for info in gateway.status.nodes):
        return Reason(ReasonCode.ENDPOINT_NO_MEMBER, gateway.name, (where, node))
    lost_key = node in refused.keys
    peer = None if lost_key else peers.get(node)
    key = upstream_key(endpoint) if peer is None and not lost_key else None
    keys = peer.public_keys if peer else (key,) if key else ()
    if not keys:
        return None if lost_key else Reason(ReasonCode.ENDPOINT_WITHOUT_KEY, gateway.name, (where, node))
    candidates = candidates_of(endpoint, peer)
    return GatewayNode(
        node,
        active,
        endpoint.under_nat,
        keys,
        candidates,
        peer.suites if peer else (Suite.CHACHA20POLY1305,),
        no_pmtu_discovery=bool(candidates) and all(c.host in routed for c in candidates),
    )


def _announced(
    gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims, forward_node_ip: bool
) -> tuple[Announced, ...]:
    """Return the region's claims that no other region won, each prefix once."""
    found: dict[Prefix, Announced] = {}
    for claim in claims(gateway, peers, forward_node_ip=forward_node_ip):
        # An empty set would still hash the prefix, and that runs Python code.
        if claim.node not in refused.nodes and not (refused.prefixes and claim.prefix in refused.prefixes):
            found.setdefault(claim.prefix, claim)
    return tuple(found.values())
