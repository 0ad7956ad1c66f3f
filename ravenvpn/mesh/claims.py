"""The prefixes each region claims, before conflicts with other regions are resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import EndpointType, Gateway, PeerObject, address_of, host_prefix, lan_addresses
from ravenvpn.mesh.reason import Reason, ReasonCode


class ClaimKind(StrEnum):
    """The kind of hosts behind a prefix. The value is the word in `mesh.reason`'s sentences."""

    PODS = "pods"
    SOURCE = "own source"  # of a node: source address of connections that start on it
    ADDRESS = "address"  # of a node on its region's network; claimed with forwardNodeIP only


class Announced(NamedTuple):
    """A prefix of a region, the node behind it, and the object and field that name it."""

    prefix: Prefix
    node: str
    owner: str  # the object: "Gateway factory", "Peer edge-1"
    field: str  # path in the owner: "status.nodes[1].subnets[0]"
    kind: ClaimKind = ClaimKind.PODS
    dialled: bool = False  # a SOURCE or ADDRESS at which other regions also dial its node
    source: bool = False  # an ADDRESS that is also the node's own source

    def reason(self, code: ReasonCode, *more: object) -> Reason:
        """Return the reason of a route to this prefix; `more` are arguments beyond kind, owner and field."""
        return Reason(code, self.node, (self.kind, self.owner, self.field, *more))


def claims(gateway: Gateway, peers: Mapping[str, PeerObject], *, forward_node_ip: bool = False) -> list[Announced]:
    """Return every prefix the region claims: pods of its nodes, own sources of nodes, addresses of nodes.

    Addresses are claimed with `forward_node_ip` only. If a prefix occurs twice, the first one counts.
    """
    # Tens of thousands of claims are made for a first plan: nothing here is formatted but owner and field.
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
        dialled = outer.get(info.node, {})
        addresses = lan_addresses(info, peer) if forward_node_ip else ()
        for k, source in enumerate(peer.sources if peer else ()):
            if _lies_in(source, info.subnets):
                continue
            if source in addresses:  # claimed as an address, at the place that the source has without the setting
                found.append(_address(source, gateway, i, peer, dialled))
                continue
            owner, field = f"Peer {info.node}", f"spec.sources[{k}]"
            found.append(Announced(host_prefix(source), info.node, owner, field, ClaimKind.SOURCE, source in dialled))
    if forward_node_ip:
        for i, info in enumerate(gateway.status.nodes):
            peer = peers.get(info.node)
            dialled = outer.get(info.node, {})
            for address in lan_addresses(info, peer):
                if not _lies_in(address, info.subnets):
                    found.append(_address(address, gateway, i, peer, dialled))
    return found


def _address(
    address: Address, gateway: Gateway, i: int, peer: PeerObject | None, dialled: Mapping[Address, str]
) -> Announced:
    """Return the claim to an address of the i-th node on its region's network."""
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
        dialled=address in dialled,
        source=peer is not None and address in peer.sources,
    )


def outer_addresses(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, dict[Address, str]]:
    """Return the literal addresses at which other regions dial the region's gateway nodes.

    The result maps node → address → the object and field that name it. DNS names are left out: planning does not
    resolve them.
    """
    found: dict[str, dict[Address, str]] = {}
    # An active endpoint's fields count before those of the spec, and both before the Peer's addresses.
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


def _lies_in(address: Address, prefixes: Iterable[Prefix]) -> bool:
    """Return whether a prefix contains the address. A linear scan: a node has a handful of pod prefixes."""
    return any(address in prefix for prefix in prefixes if prefix.version == address.version)
