"""Owners of nodes and of keys: each node belongs to one Gateway, each key to one Peer; the others lose it."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn.mesh.conflict import Conflict, ConflictKind
from ravenvpn.mesh.model import Gateway, PeerObject, World

Priority = tuple[float, str]  # (creationTimestamp, name); the smaller one wins
Derive = Callable[[str, str], IPv6Address]  # (mesh, node) → tunnel address; tests make collisions with it


def priority_of(created: float | None, name: str) -> Priority:
    """Return the priority of an object: older first, then by name.

    An object without creationTimestamp (from a file) counts as younger than all that have one. Comparing times only
    where both objects have them would not be transitive.
    """
    return (math.inf if created is None else created), name


@dataclass(slots=True)
class _Membership:
    """The members one Gateway claims."""

    priority: Priority
    members: dict[str, str]  # node → the field that names it


class NodeOwners:
    """Assigns each node to one Gateway, and each tunnel address to one node."""

    def __init__(self, mesh: str, derive: Derive) -> None:
        self.lost: dict[tuple[str, str], Conflict] = {}  # by (Gateway, node)
        self._mesh, self._derive = mesh, derive
        self._regions: dict[str, _Membership] = {}
        self._holders: dict[str, set[str]] = {}  # node → Gateways that have it in status.nodes
        self._nodes_at: dict[IPv6Address, set[str]] = {}  # tunnel address → nodes; more than one: a collision

    def priority(self, gateway: str) -> Priority:
        """Return the priority of a Gateway. Raises KeyError."""
        return self._regions[gateway].priority

    def members(self, gateway: str) -> Set[str]:
        """Return the nodes in the Gateway's status, whether or not it keeps them."""
        region = self._regions.get(gateway)
        return region.members.keys() if region else frozenset()

    def gateways_with(self, node: str) -> Set[str]:
        """Return the Gateways that have a node in their status."""
        return self._holders.get(node, frozenset())

    def update(self, gateways: Set[str], world: World) -> set[str]:
        """Replace the members of these Gateways; returns Gateways that lost or regained a node."""
        nodes: set[str] = set()  # every node that a change of these Gateways may concern
        for name in gateways:
            nodes |= self._replace(name, world.gateways.get(name))
        addresses = {self._derive(self._mesh, node) for node in nodes}
        return self._assign(nodes.union(*(self._nodes_at.get(address, ()) for address in addresses)))

    def _replace(self, name: str, gateway: Gateway | None) -> set[str]:
        """Replace the members of one Gateway; returns every node that was or is one."""
        before = self._regions.pop(name, None)
        old = before.members if before else {}
        new = {} if gateway is None else {n.node: f"status.nodes[{i}]" for i, n in enumerate(gateway.status.nodes)}
        for node in old.keys() - new.keys():
            self._leave(name, node)
        for node in new.keys() - old.keys():
            holders = self._holders.setdefault(node, set())
            if not holders:
                self._nodes_at.setdefault(self._derive(self._mesh, node), set()).add(node)
            holders.add(name)
        if gateway is not None:
            self._regions[name] = _Membership(priority_of(gateway.created, name), new)
        return old.keys() | new.keys()

    def _leave(self, region: str, node: str) -> None:
        """Remove a node from a Gateway's members, and its tunnel address if no Gateway has it any more."""
        self.lost.pop((region, node), None)
        holders = self._holders[node]
        holders.discard(region)
        if not holders:
            del self._holders[node]
            address = self._derive(self._mesh, node)
            self._nodes_at[address].discard(node)
            if not self._nodes_at[address]:
                del self._nodes_at[address]

    def _assign(self, nodes: Set[str]) -> set[str]:
        """Decide on these nodes anew; returns the Gateways for which a decision changed."""
        affected: set[str] = set()
        holders: dict[IPv6Address, tuple[str, str]] = {}  # tunnel address → (Gateway, node) that keeps it
        owners = {n: sorted(self._holders[n], key=self.priority) for n in nodes & self._holders.keys()}
        for node in sorted(owners, key=lambda n: (self.priority(owners[n][0]), n)):
            # First the Gateway: the oldest one keeps the node. Then its tunnel address: the node that sorts first
            # keeps it, and another one with the same address is lost to its own Gateway as well.
            owner, *others = owners[node]
            losses = {region: self._two_gateways(node, region, owner) for region in others}
            address = self._derive(self._mesh, node)
            if len(self._nodes_at[address]) > 1:
                holder = holders.setdefault(address, (owner, node))
                if holder[1] != node:
                    losses[owner] = self._collision(node, address, owner, holder)
            for region in owners[node]:
                before = self.lost.pop((region, node), None)
                if region in losses:
                    self.lost[region, node] = losses[region]
                if before != losses.get(region):
                    affected.add(region)
        return affected

    def _two_gateways(self, node: str, loser: str, winner: str) -> Conflict:
        """Return the conflict of two Gateways that have one node."""
        return Conflict(
            ConflictKind.TWO_GATEWAYS,
            node,
            f"Gateway {loser}",
            self._regions[loser].members[node],
            f"Gateway {winner}",
            "a node belongs to one Gateway: correct its label raven.openyurt.io/gateway",
        )

    def _collision(self, node: str, address: IPv6Address, region: str, holder: tuple[str, str]) -> Conflict:
        """Return the conflict of two nodes whose names have one tunnel address."""
        return Conflict(
            ConflictKind.COLLISION,
            str(address),
            f"Gateway {region}",
            self._regions[region].members[node],
            f"node {holder[1]} of Gateway {holder[0]}",
            "give one of the nodes another name",
        )


class KeyOwners:
    """Assigns each public key to one Peer. A Peer that lost one of its keys keeps none."""

    def __init__(self) -> None:
        self.lost: dict[str, Conflict] = {}  # by Peer
        self._peers: dict[str, PeerObject] = {}
        self._holders: dict[bytes, set[str]] = {}  # public key → Peers

    def update(self, peers: Set[str], world: World) -> set[str]:
        """Replace these Peers; returns those that may have lost or regained their keys."""
        affected = set(peers)
        for name in peers:
            affected |= self._replace(name, world.peers.get(name))
        waiting = list(affected)
        while waiting:  # add all that share a key with one of them, directly or through others
            peer = self._peers.get(waiting.pop())
            for key in peer.public_keys if peer else ():
                waiting += self._holders[key] - affected
                affected |= self._holders[key]
        taken: dict[bytes, str] = {}  # key → Peer that keeps it, by priority
        for name in sorted(affected & self._peers.keys(), key=self._priority):
            self.lost.pop(name, None)
            keys = self._peers[name].public_keys
            which = next((i for i, key in enumerate(keys) if key in taken), None)
            if which is None:
                taken.update((key, name) for key in keys)
            else:
                self.lost[name] = _duplicate_key(name, keys[which], which, taken[keys[which]])
        return affected

    def _replace(self, name: str, after: PeerObject | None) -> set[str]:
        """Replace one Peer; returns the Peers that shared a key with its old value."""
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
        """Return the priority of a Peer."""
        return priority_of(self._peers[name].created, name)


def _duplicate_key(loser: str, key: bytes, which: int, winner: str) -> Conflict:
    """Return the conflict of two Peers with one key; `which` is 0 for the loser's current key, 1 for its next one."""
    return Conflict(
        ConflictKind.DUPLICATE_KEY,
        base64.b64encode(key).decode(),
        f"Peer {loser}",
        "spec.nextPublicKey" if which else "spec.publicKey",
        f"Peer {winner}",
        "each node makes its own key: run `raven-vpn keygen` on one of them",
    )
