"""Conflicts between Gateways and Peers, as agents will see them once the desired statuses are written.

`mesh.conflict_index` decides which object loses; this module feeds it and groups the conflicts by Gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.conflict_index import ConflictIndex
from ravenvpn.mesh.model import Gateway, PeerObject, World


class ConflictView:
    """The world with desired statuses in place of the stored ones, and the conflicts each Gateway loses in it."""

    def __init__(self, mesh: str) -> None:
        """`mesh` is the name of the mesh; tunnel addresses, which can collide, are derived from it."""
        self._world = World(mesh=mesh)
        self._index = ConflictIndex(mesh)
        self._by_gateway: dict[str, tuple[Conflict, ...]] = {}

    def lost_by(self, gateway: str) -> tuple[Conflict, ...]:
        """Return the conflicts that this Gateway, or the Peer of one of its nodes, loses to another object."""
        return self._by_gateway.get(gateway, ())

    def count(self) -> int:
        """Return the number of conflicts; a Peer's counts for each Gateway that has its node."""
        return sum(map(len, self._by_gateway.values()))

    def update(self, gateways: Mapping[str, Gateway | None], peers: Mapping[str, PeerObject | None]) -> Set[str]:
        """Apply changed Gateways and Peers, None for deleted ones.

        Returns the names of the Gateways whose lost conflicts differ from before, among them Gateways that did not
        change themselves: the winner of a conflict may have changed.
        """
        world = self._world
        changed_peers = set()
        for name, peer in peers.items():
            if peer != world.peers.get(name):
                changed_peers.add(name)
                world = world.without_peer(name) if peer is None else world.with_peer(peer)
        changed = set()
        for name, gateway in gateways.items():
            if gateway != world.gateways.get(name) or _has_node_of(world, name, changed_peers):
                changed.add(name)
                world = world.without_gateway(name) if gateway is None else world.with_gateway(gateway)
        if not changed and not changed_peers:
            return set()
        self._world = world
        self._index.update(changed, changed_peers, world)
        before, self._by_gateway = self._by_gateway, self._group()
        after = self._by_gateway
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    def _group(self) -> dict[str, tuple[Conflict, ...]]:
        """Group the conflicts by Gateway. A conflict lost by a Peer is put on its region, because operators look at
        Gateways and a Peer's status belongs to its agent."""
        conflicts = self._index.conflicts()
        losing_peers = {name for kind, _, name in (c.loser.partition(" ") for c in conflicts) if kind == "Peer"}
        regions: dict[str, list[str]] = {}  # Peer → Gateways with a node of this name
        if losing_peers:
            for gateway in self._world.gateways.values():
                for info in gateway.status.nodes:
                    if info.node in losing_peers:
                        regions.setdefault(info.node, []).append(gateway.name)
        found: dict[str, list[Conflict]] = {}
        for conflict in conflicts:
            kind, _, name = conflict.loser.partition(" ")
            for gateway_name in [name] if kind == "Gateway" else regions.get(name, []):
                found.setdefault(gateway_name, []).append(conflict)
        return {name: tuple(lost) for name, lost in found.items()}


def _has_node_of(world: World, name: str, peers: Set[str]) -> bool:
    """Whether one of these Peers belongs to a node in the status of this Gateway.

    The index then has to compare the Gateway again, although the Gateway itself did not change.
    """
    gateway = world.gateways.get(name)
    return gateway is not None and bool(peers) and any(info.node in peers for info in gateway.status.nodes)
