"""Conflicts between Gateways as agents will see them: `mesh.conflict_index` over the desired statuses."""

from __future__ import annotations

from collections.abc import Mapping, Set

from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.conflict_index import ConflictIndex
from ravenvpn.mesh.model import Gateway, PeerObject, World


class ConflictView:
    """The world with the statuses that will be written, and what each Gateway loses in it."""

    def __init__(self, mesh: str) -> None:
        self._world = World(mesh=mesh)
        self._index = ConflictIndex(mesh)
        self._lost: dict[str, tuple[Conflict, ...]] = {}

    def lost_by(self, gateway: str) -> tuple[Conflict, ...]:
        return self._lost.get(gateway, ())

    def count(self) -> int:
        return sum(map(len, self._lost.values()))

    def update(self, gateways: Mapping[str, Gateway | None], peers: Mapping[str, PeerObject | None]) -> Set[str]:
        """Take in what changed, None for what is gone. Returns the Gateways that lose something else than before."""
        world = self._world
        changed_peers = set()
        for name, peer in peers.items():
            if peer != world.peers.get(name):
                changed_peers.add(name)
                world = world.without_peer(name) if peer is None else world.with_peer(peer)
        changed = set()
        for name, gateway in gateways.items():
            if gateway != world.gateways.get(name) or self._knows_any(world, name, changed_peers):
                changed.add(name)
                world = world.without_gateway(name) if gateway is None else world.with_gateway(gateway)
        if not changed and not changed_peers:
            return set()
        self._world = world
        self._index.update(changed, changed_peers, world)
        before, self._lost = self._lost, self._by_gateway()
        return {name for name in before.keys() | self._lost.keys() if before.get(name) != self._lost.get(name)}

    @staticmethod
    def _knows_any(world: World, name: str, peers: Set[str]) -> bool:
        gateway = world.gateways.get(name)
        return gateway is not None and bool(peers) and any(info.node in peers for info in gateway.status.nodes)

    def _by_gateway(self) -> dict[str, tuple[Conflict, ...]]:
        """A Peer's loss is its region's: it is the Gateway that people look at."""
        found: dict[str, list[Conflict]] = {}
        lost = self._index.conflicts()
        losing_peers = {name for kind, _, name in (c.loser.partition(" ") for c in lost) if kind == "Peer"}
        regions: dict[str, list[str]] = {}
        if losing_peers:
            for gateway in self._world.gateways.values():
                for info in gateway.status.nodes:
                    if info.node in losing_peers:
                        regions.setdefault(info.node, []).append(gateway.name)
        for conflict in lost:
            kind, _, name = conflict.loser.partition(" ")
            for gateway_name in [name] if kind == "Gateway" else regions.get(name, []):
                found.setdefault(gateway_name, []).append(conflict)
        return {name: tuple(some) for name, some in found.items()}
