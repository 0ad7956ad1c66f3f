"""Who can call whom, and through whom the others meet.

A gateway node is *dialable* when it is not behind NAT and an address or name of it is known. Two gateway nodes hold a
session when at least one is dialable. Regions that cannot, meet through a hub: a region with a dialable active
gateway, chosen by rendezvous hash over (pair, hub), so both ends agree without talking and little moves when hubs
come and go (Thaler & Ravishankar, "Using name-based mappings to increase hit rates", 1998).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ravenvpn.crypto.aead import Suite
from ravenvpn.mesh.claims import Announced, claims
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, PeerObject
from ravenvpn.mesh.nodeplan import Candidate
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.tunnel_port import port_of_address, tunnel_port

# Ours. A NATed node keeps a warm session to every hub it may need, and agreement needs no more than a few: beyond
# this many dialable regions, those whose names hash lowest serve as hubs. One leaving lets the next one in.
MAX_HUBS = 16

# config key by which upstream's WireGuard driver publishes its key (raven's convention, on the endpoint)
UPSTREAM_KEY = "publicKey"


@dataclass(frozen=True, slots=True)
class GatewayNode:
    """A node that is, or may become, the gateway of its region, with everything needed to hold a session with it."""

    node: str
    active: bool
    under_nat: bool
    public_keys: tuple[bytes, ...]
    candidates: tuple[Candidate, ...]
    suites: tuple[Suite, ...]
    # Called only at IPv6 addresses that are themselves routed into the tunnel (forwardNodeIP). The kernel books what
    # it learns of the path to a destination without regard to ports, so that is lost to our outer packets.
    unlearned: bool = False

    @property
    def dialable(self) -> bool:
        return not self.under_nat and bool(self.candidates)


@dataclass(frozen=True, slots=True)
class Region:
    """A Gateway digested: conflicts resolved, keys and candidates gathered. The same on every node of the mesh."""

    name: str
    gateways: tuple[GatewayNode, ...]  # active ones first, each part sorted by name
    announced: tuple[Announced, ...]  # accepted prefixes, each once
    notes: tuple[Reason, ...] = ()
    torn: bool = False  # lost prefixes to others, which its nodes therefore leave to their own network
    succession: tuple[str, ...] = ()  # its gateway nodes in the order of the spec, in which places are given

    @property
    def active(self) -> tuple[GatewayNode, ...]:
        return tuple(g for g in self.gateways if g.active)

    @property
    def serves_as_hub(self) -> bool:
        """A torn region relays nothing: some of what it would have to pass on it takes for its own."""
        return not self.torn and any(g.active and g.dialable for g in self.gateways)


class Hub(NamedTuple):
    """A region that relays: its dialable active gateway nodes, and all whose packets may be relayed ones."""

    region: str
    active: tuple[str, ...]
    nodes: tuple[str, ...]
    hosts: tuple[str, ...]  # where the active ones are tried
    unlearned: bool = False  # see GatewayNode; of the active ones


def acting(region: Region, liveness: Liveness, me: str) -> Region:
    """The region as `me` has to treat it: where every active gateway is proven dead, others stand in.

    As many as there were, by the order of the spec, as `mesh.status.elect` would choose; those proven alive first. It
    holds for as long as the proof does, and nobody has to agree: a standby puts what arrives into its own tunnel,
    and the far ends accept the region's prefixes from all its gateways. The controller makes it final, or the active
    one comes back.
    """
    active = region.active
    if not active or not all(liveness.dead(g.node) and g.node != me for g in active):
        return region
    able = [n for n in region.succession if n == me or not liveness.dead(n)]
    able.sort(key=lambda n: n != me and liveness.of(n) is not LivenessVerdict.ALIVE)
    chosen = set(able[: len(active)])
    if not chosen:
        return region
    gateways = sorted(
        (replace(g, active=g.node in chosen) for g in region.gateways), key=lambda g: (not g.active, g.node)
    )
    note = Reason(ReasonCode.STANDBY_TOOK_OVER, region.name, (tuple(sorted(chosen)), active[0].node))
    return replace(region, gateways=tuple(gateways), notes=(*region.notes, note))


def upstream_key(endpoint: GatewayEndpoint) -> bytes | None:
    """The key upstream's WireGuard driver left on the endpoint, or None where there is none that is one."""
    try:
        key = base64.b64decode(endpoint.config.get(UPSTREAM_KEY, ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None


def candidates_of(endpoint: GatewayEndpoint, peer: PeerObject | None) -> tuple[Candidate, ...]:
    """Where a gateway node may be tried from other regions, best first; behind NAT only what it says itself."""
    found: dict[tuple[str, int], Candidate] = {}
    if endpoint.public_ip and not endpoint.under_nat:
        port = endpoint.public_port or tunnel_port(endpoint, peer)
        found[endpoint.public_ip, port] = Candidate(endpoint.public_ip, port)
    if peer is not None:
        for address in peer.addresses:
            at = (address.host, port_of_address(address, endpoint, peer))
            found.setdefault(at, Candidate(*at))
    return tuple(found.values())


def digest(
    gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims, *, forward_node_ip: bool = False
) -> Region:
    """A Gateway and the Peers of its nodes as one Region, without what lost a conflict."""
    announced = _announced(gateway, peers, refused, forward_node_ip)
    inside = {str(a.prefix.network_address) for a in announced if a.dialled and a.prefix.version == 6}
    notes: list[Reason] = []
    members = {info.node for info in gateway.status.nodes} - refused.nodes
    nodes: list[GatewayNode] = []
    seen: set[str] = set()
    active = [
        (e, True, f"Gateway {gateway.name}, status.activeEndpoints[{i}]") for i, e in enumerate(gateway.status.active)
    ]
    spare = [(e, False, f"Gateway {gateway.name}, spec.endpoints[{i}]") for i, e in enumerate(gateway.endpoints)]
    for endpoint, is_active, where in active + spare:
        if endpoint.type is not EndpointType.TUNNEL or endpoint.node in seen:
            continue
        seen.add(endpoint.node)
        if endpoint.node in refused.nodes:
            continue  # the conflict says so
        if endpoint.node not in members:
            notes.append(Reason(ReasonCode.ENDPOINT_NO_MEMBER, gateway.name, (where, endpoint.node)))
            continue
        peer = None if endpoint.node in refused.keys else peers.get(endpoint.node)
        key = upstream_key(endpoint) if peer is None and endpoint.node not in refused.keys else None
        keys = peer.public_keys if peer else (key,) if key else ()
        if not keys:
            if endpoint.node not in refused.keys:
                notes.append(Reason(ReasonCode.ENDPOINT_WITHOUT_KEY, gateway.name, (where, endpoint.node)))
            continue
        suites = peer.suites if peer else (Suite.CHACHA20POLY1305,)
        candidates = candidates_of(endpoint, peer)
        unlearned = bool(candidates) and all(c.host in inside for c in candidates)
        nodes.append(GatewayNode(endpoint.node, is_active, endpoint.under_nat, keys, candidates, suites, unlearned))
    if not any(n.active for n in nodes):
        notes.append(Reason(ReasonCode.NO_ACTIVE_ENDPOINT, gateway.name))
    order = {e.node: i for i, e in reversed([*enumerate(gateway.endpoints)]) if e.type is EndpointType.TUNNEL}
    succession = tuple(sorted((n.node for n in nodes if n.node in order), key=order.__getitem__))
    nodes.sort(key=lambda n: (not n.active, n.node))
    return Region(
        gateway.name,
        tuple(nodes),
        announced,
        tuple(notes),
        torn=bool(refused.shadowed),
        succession=succession,
    )


def _announced(
    gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims, forward_node_ip: bool
) -> tuple[Announced, ...]:
    found: dict[Prefix, Announced] = {}
    for claim in claims(gateway, peers, forward_node_ip=forward_node_ip):
        # (an empty set would still hash the prefix, and that is Python code)
        if claim.node not in refused.nodes and not (refused.prefixes and claim.prefix in refused.prefixes):
            found.setdefault(claim.prefix, claim)
    return tuple(found.values())


@lru_cache(maxsize=1 << 16)
def hub_rank(region: str) -> int:
    """The lower, the sooner a dialable region serves as a hub. Any hash will do, as long as all use the same."""
    return int.from_bytes(hashlib.sha256(b"hub\0" + region.encode()).digest()[:8], "big")


def as_hub(region: Region) -> Hub:
    return Hub(
        region.name,
        tuple(g.node for g in region.gateways if g.active and g.dialable),
        tuple(g.node for g in region.gateways if g.dialable),
        tuple(c.host for g in region.gateways if g.active and g.dialable for c in g.candidates),
        any(g.active and g.dialable and g.unlearned for g in region.gateways),
    )


def rendezvous(one: str, other: str, hub: str) -> int:
    """The weight of a hub for a pair of regions, the same from both ends. The highest wins."""
    first, second = sorted((one, other))
    return int.from_bytes(hashlib.sha256(f"{first}\0{second}\0{hub}".encode()).digest()[:8], "big")


def carrier_order(me: str, nodes: Iterable[str], liveness: Liveness) -> tuple[str, ...]:
    """Gateway nodes, best first for `me`: those not proven dead, then by a hash that spreads the senders."""
    return tuple(sorted(nodes, key=lambda n: (liveness.dead(n), -rendezvous(me, n, "carrier"), n)))


def hub_order(one: str, other: str, hubs: Iterable[Hub]) -> list[Hub]:
    """The hubs two regions may meet through, best first, before anybody is known to be dead."""
    return sorted(hubs, key=lambda h: (-rendezvous(one, other, h.region), h.region))


def choose_hub(one: str, other: Region, hubs: Iterable[Hub], liveness: Liveness) -> Hub | None:
    """The hub that carries between our region `one` and `other` now.

    The first in rendezvous order that carries to an active gateway of the other end: one that is proven alive before
    one that nothing is known of, or a hub whose manifest came before its agent would cut the pairs it is to serve. If
    none carries, the first whose gateway lives; if none lives, the first at all, so that the path is the agreed one
    when it comes back.
    """
    order = hub_order(one, other.name, hubs)
    far = [g.node for g in other.gateways if g.active]
    carrying = [(h, [n for n in h.active if any(liveness.carries(n, end) for end in far)]) for h in order]
    able = [h for h, nodes in carrying if nodes]
    proven = (h for h, nodes in carrying if any(liveness.of(node) is LivenessVerdict.ALIVE for node in nodes))
    if able:
        return next(proven, able[0])
    alive = (hub for hub in order if any(not liveness.dead(node) for node in hub.active))
    return next(alive, order[0] if order else None)
