"""The prefixes a region lays claim to, before anybody asks whether another region claims them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import EndpointType, Gateway, PeerObject, address_of, host_prefix, lan_addresses
from ravenvpn.mesh.reason import Reason, ReasonCode


class ClaimKind(StrEnum):
    """What lives behind a prefix."""

    PODS = "pods"
    SOURCE = "own source"  # of a node: what starts there leaves with it
    ADDRESS = "address"  # of a node on its region's network, with forwardNodeIP


class Announced(NamedTuple):
    """A prefix of a region, the node behind it, and the object and field it comes from."""

    prefix: Prefix
    node: str
    owner: str  # "Gateway factory", "Peer edge-1"
    field: str  # of the owner
    kind: ClaimKind = ClaimKind.PODS
    dialled: bool = False  # a SOURCE or ADDRESS at which its own node is called from outside
    source: bool = False  # an ADDRESS that is the node's own source as well

    def reason(self, code: ReasonCode, *more: object) -> Reason:
        """Return the reason of a route to this prefix; `more` are arguments beyond kind, owner and field."""
        return Reason(code, self.node, (self.kind, self.owner, self.field, *more))


def claims(gateway: Gateway, peers: Mapping[str, PeerObject], *, forward_node_ip: bool = False) -> list[Announced]:
    """Every prefix the region would have routed to it: pods of its nodes, then the nodes' own single sources, then,
    if wanted, the addresses of its nodes. Of equal ones the first counts."""
    owner = f"Gateway {gateway.name}"
    found = [
        Announced(
            prefix,
            info.node,
            owner,
            f"status.nodes[{i}].subnets[{j}]",
        )
        for i, info in enumerate(gateway.status.nodes)
        for j, prefix in enumerate(info.subnets)
    ]
    outer = outer_addresses(gateway, peers)
    for i, info in enumerate(gateway.status.nodes):
        peer = peers.get(info.node)
        called = outer.get(info.node, {})
        addresses = lan_addresses(info, peer) if forward_node_ip else ()
        for k, source in enumerate(peer.sources if peer else ()):
            if _among(source, info.subnets):
                continue
            if source in addresses:  # as an address, but where it stands with the setting off, too
                found.append(_address(source, gateway, i, peer, called))
                continue
            owner, field = f"Peer {info.node}", f"spec.sources[{k}]"
            found.append(Announced(host_prefix(source), info.node, owner, field, ClaimKind.SOURCE, source in called))
    if forward_node_ip:
        for i, info in enumerate(gateway.status.nodes):
            peer = peers.get(info.node)
            called = outer.get(info.node, {})
            for address in lan_addresses(info, peer):
                if not _among(address, info.subnets):
                    found.append(_address(address, gateway, i, peer, called))
    return found


def _address(
    address: Address, gateway: Gateway, i: int, peer: PeerObject | None, called: Mapping[Address, str]
) -> Announced:
    """Of the i-th node, on its region's network."""
    info = gateway.status.nodes[i]
    if address == info.private_ip:
        owner, field = f"Gateway {gateway.name}", f"status.nodes[{i}].privateIP"
    else:
        assert peer is not None
        owner, field = f"Peer {info.node}", f"spec.nodeAddresses[{peer.node_addresses.index(address)}]"
    return Announced(
        host_prefix(address),
        info.node,
        owner,
        field,
        ClaimKind.ADDRESS,
        dialled=address in called,
        source=peer is not None and address in peer.sources,
    )


def outer_addresses(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, dict[Address, str]]:
    """Literal addresses at which the region's gateway nodes are called from outside: node → address → the field that
    names it, with its object."""
    found: dict[str, dict[Address, str]] = {}
    for part, endpoints in (
        ("status.activeEndpoints", gateway.status.active),
        ("spec.endpoints", gateway.endpoints),
    ):
        for i, endpoint in enumerate(endpoints):
            if endpoint.type is EndpointType.TUNNEL:
                addresses = found.setdefault(endpoint.node, {})
                address = address_of(endpoint.public_ip)
                if address is not None:
                    addresses.setdefault(address, f"Gateway {gateway.name}, {part}[{i}].publicIP")
    for node in found.keys() & {info.node for info in gateway.status.nodes}:
        peer = peers.get(node)
        for k, candidate in enumerate(peer.addresses if peer else ()):
            address = address_of(candidate.host)
            if address is not None:
                found[node].setdefault(address, f"Peer {node}, spec.addresses[{k}]")
    return found


def _among(address: Address, prefixes: Iterable[Prefix]) -> bool:
    return any(address in prefix for prefix in prefixes if prefix.version == address.version)
