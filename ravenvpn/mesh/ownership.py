"""Whose is a node, and whose is a key: each belongs to one, the others lose it."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn.mesh.conflict import Conflict, ConflictKind
from ravenvpn.mesh.model import Gateway, PeerObject, World

Priority = tuple[float, str]
Derive = Callable[[str, str], IPv6Address]


def priority_of(created: float | None, name: str) -> Priority:
    """Smaller wins: older first, then by name. Without creationTimestamp an object counts as younger than all that
    have one; with a mixture, "compare times where both have them" would go in circles."""
    return (math.inf if created is None else created), name


@dataclass(slots=True)
class _Region:
    priority: Priority
    members: dict[str, str]  # node → the field that names it


class NodeOwners:
    """Each node to one Gateway, and each tunnel address to one node. `lost` is by (Gateway, node)."""

    def __init__(self, mesh: str, derive: Derive) -> None:
        self.lost: dict[tuple[str, str], Conflict] = {}
        self._mesh, self._derive = mesh, derive
        self._regions: dict[str, _Region] = {}
        self._holders: dict[str, set[str]] = {}  # node → Gateways that have it in status.nodes
        self._derived: dict[IPv6Address, set[str]] = {}  # tunnel address → nodes

    def priority(self, gateway: str) -> Priority:
        return self._regions[gateway].priority

    def members(self, gateway: str) -> Set[str]:
        region = self._regions.get(gateway)
        return region.members.keys() if region else frozenset()

    def gateways_with(self, node: str) -> Set[str]:
        return self._holders.get(node, frozenset())

    def update(self, gateways: Set[str], world: World) -> set[str]:
        """Take in who is in these regions; returns Gateways that lost or regained a node."""
        nodes: set[str] = set()
        for name in gateways:
            nodes |= self._replace(name, world.gateways.get(name))
        addresses = {self._derive(self._mesh, node) for node in nodes}
        return self._settle(nodes.union(*(self._derived.get(address, ()) for address in addresses)))

    def _replace(self, name: str, gateway: Gateway | None) -> set[str]:
        """Returns every node that was or is in the region."""
        before = self._regions.pop(name, None)
        old = before.members if before else {}
        new = {} if gateway is None else {n.node: f"status.nodes[{i}]" for i, n in enumerate(gateway.status.nodes)}
        for node in old.keys() - new.keys():
            self._leave(name, node)
        for node in new.keys() - old.keys():
            holders = self._holders.setdefault(node, set())
            if not holders:
                self._derived.setdefault(self._derive(self._mesh, node), set()).add(node)
            holders.add(name)
        if gateway is not None:
            self._regions[name] = _Region(priority_of(gateway.created, name), new)
        return old.keys() | new.keys()

    def _leave(self, region: str, node: str) -> None:
        self.lost.pop((region, node), None)
        holders = self._holders[node]
        holders.discard(region)
        if not holders:
            del self._holders[node]
            address = self._derive(self._mesh, node)
            self._derived[address].discard(node)
            if not self._derived[address]:
                del self._derived[address]

    def _settle(self, nodes: Set[str]) -> set[str]:
        touched: set[str] = set()
        holders: dict[IPv6Address, tuple[str, str]] = {}
        owners = {n: sorted(self._holders[n], key=self.priority) for n in nodes & self._holders.keys()}
        for node in sorted(owners, key=lambda n: (self.priority(owners[n][0]), n)):
            owner, *others = owners[node]
            losses = {region: self._two_gateways(node, region, owner) for region in others}
            address = self._derive(self._mesh, node)
            if len(self._derived[address]) > 1:
                holder = holders.setdefault(address, (owner, node))
                if holder[1] != node:
                    losses[owner] = self._collision(node, address, owner, holder)
            for region in owners[node]:
                before = self.lost.pop((region, node), None)
                if region in losses:
                    self.lost[region, node] = losses[region]
                if before != losses.get(region):
                    touched.add(region)
        return touched

    def _two_gateways(self, node: str, loser: str, winner: str) -> Conflict:
        return Conflict(
            ConflictKind.TWO_GATEWAYS,
            node,
            f"Gateway {loser}",
            self._regions[loser].members[node],
            f"Gateway {winner}",
            "a node belongs to one Gateway: correct its label raven.openyurt.io/gateway",
        )

    def _collision(self, node: str, address: IPv6Address, region: str, holder: tuple[str, str]) -> Conflict:
        return Conflict(
            ConflictKind.COLLISION,
            str(address),
            f"Gateway {region}",
            self._regions[region].members[node],
            f"node {holder[1]} of Gateway {holder[0]}",
            "give one of the nodes another name",
        )


class KeyOwners:
    """Each public key to one Peer. A Peer that lost one of its keys has none; `lost` is by Peer."""

    def __init__(self) -> None:
        self.lost: dict[str, Conflict] = {}
        self._peers: dict[str, PeerObject] = {}
        self._holders: dict[bytes, set[str]] = {}

    def update(self, peers: Set[str], world: World) -> set[str]:
        """Take in these Peers; returns those whose verdict may have changed."""
        touched = set(peers)
        for name in peers:
            touched |= self._replace(name, world.peers.get(name))
        waiting = list(touched)
        while waiting:  # all that share a key, directly or through others
            peer = self._peers.get(waiting.pop())
            for key in peer.public_keys if peer else ():
                waiting += self._holders[key] - touched
                touched |= self._holders[key]
        taken: dict[bytes, str] = {}
        for name in sorted(touched & self._peers.keys(), key=self._priority):
            self.lost.pop(name, None)
            keys = self._peers[name].public_keys
            which = next((i for i, key in enumerate(keys) if key in taken), None)
            if which is None:
                taken.update((key, name) for key in keys)
            else:
                self.lost[name] = _duplicate_key(name, keys[which], which, taken[keys[which]])
        return touched

    def _replace(self, name: str, after: PeerObject | None) -> set[str]:
        """Returns the Peers that shared a key with what it was."""
        before = self._peers.pop(name, None)
        self.lost.pop(name, None)
        sharers: set[str] = set()
        for key in before.public_keys if before else ():
            sharers |= self._holders[key]
            self._holders[key].discard(name)
            if not self._holders[key]:
                del self._holders[key]
        if after is not None:
            self._peers[name] = after
            for key in after.public_keys:
                self._holders.setdefault(key, set()).add(name)
        return sharers

    def _priority(self, name: str) -> Priority:
        return priority_of(self._peers[name].created, name)


def _duplicate_key(loser: str, key: bytes, which: int, winner: str) -> Conflict:
    return Conflict(
        ConflictKind.DUPLICATE_KEY,
        base64.b64encode(key).decode(),
        f"Peer {loser}",
        "spec.nextPublicKey" if which else "spec.publicKey",
        f"Peer {winner}",
        "each node makes its own key: run `raven-vpn keygen` on one of them",
    )
