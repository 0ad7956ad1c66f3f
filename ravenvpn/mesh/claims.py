"""The prefixes a region lays claim to, before anybody asks whether another region claims them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import Gateway, Peer, host_prefix


class Announced(NamedTuple):
    """A prefix of a region, the node behind it, the object and field it comes from, and why it is there."""

    prefix: Prefix
    node: str
    owner: str  # "Gateway factory", "Peer edge-1"
    field: str  # of the owner
    reason: str


def claims(gateway: Gateway, peers: Mapping[str, Peer]) -> list[Announced]:
    """Every prefix the region would have routed to it: pods of its nodes, then the nodes' own single sources."""
    owner = f"Gateway {gateway.name}"
    found = [
        Announced(
            prefix,
            info.node,
            owner,
            field := f"status.nodes[{i}].subnets[{j}]",
            f"pods of node {info.node}, {owner}, {field}",
        )
        for i, info in enumerate(gateway.status.nodes)
        for j, prefix in enumerate(info.subnets)
    ]
    for info in gateway.status.nodes:
        peer = peers.get(info.node)
        for k, source in enumerate(peer.sources if peer else ()):
            if not any(source in prefix for prefix in info.subnets if prefix.version == source.version):
                owner, field = f"Peer {info.node}", f"spec.sources[{k}]"
                reason = f"own source of node {info.node}, {owner}, {field}"
                found.append(Announced(host_prefix(source), info.node, owner, field, reason))
    return found
