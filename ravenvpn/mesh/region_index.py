"""`RegionIndex`: the regions of the world, kept current at the cost of what changed.

It joins Gateways, Peers and conflicts into `ResolvedRegion` values, and answers which regions a node or a liveness
verdict concerns. One planner owns it; it is not shared between threads.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Set

from ravenvpn.mesh.conflict import Conflict, RefusedClaims
from ravenvpn.mesh.conflict_index import ConflictIndex
from ravenvpn.mesh.hubs import MAX_HUBS, Hub, as_hub, hub_rank
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.model import Changes, Gateway, World
from ravenvpn.mesh.resolved_region import ResolvedRegion, resolve_region
from ravenvpn.mesh.takeover import with_takeover


class RegionIndex:
    """All regions as node `me` sees them. `update` replaces the world; the other methods read."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._world = World()
        self._forward_node_ip = False
        self._conflicts = ConflictIndex(self._world.mesh)
        self._regions: dict[str, ResolvedRegion] = {}
        self._regions_of: dict[str, set[str]] = {}  # node → Gateways that name it, as member or as endpoint
        self._hub_ranks: list[tuple[int, str]] = []  # sorted; of every region that may serve as a hub

    def update(self, world: World, forward_node_ip: bool) -> set[str]:
        """Replace the world; returns the names of regions that may differ from before, removed ones included."""
        changes = world.changes(self._world)
        if world.mesh != self._world.mesh or forward_node_ip != self._forward_node_ip:
            # The mesh name is part of every derived address, and forward_node_ip decides which prefixes every region
            # claims: treat each object of the old and the new world as changed.
            self._conflicts = ConflictIndex(world.mesh, forward_node_ip=forward_node_ip)
            changes = Changes(*map(set.union, world.changes(World()), self._world.changes(World())))
        affected = set(changes.gateways)
        for name in changes.gateways:
            self._reindex_nodes(name, self._world.gateways.get(name), world.gateways.get(name))
        affected |= self.regions_of(changes.peers)
        self._world, self._forward_node_ip = world, forward_node_ip
        affected |= self._conflicts.update(affected, changes.peers, world)
        for name in affected:
            self._replace(name, self._resolve(name))
        return affected

    def names(self) -> Set[str]:
        """Return the names of all regions, as a live view that changes with the index."""
        return self._regions.keys()

    def region(self, name: str, liveness: Liveness) -> ResolvedRegion | None:
        """Return the region with standbys in the place of dead gateways; None if there is no such region."""
        region = self._regions.get(name)
        return with_takeover(region, liveness, self.me) if region else None

    def own_region(self, liveness: Liveness) -> ResolvedRegion | None:
        """Return the region that `me` is a member of; None if there is none, or a conflict took the node from it."""
        for name in sorted(self._regions_of.get(self.me, ())):
            members = {info.node for info in self._world.gateways[name].status.nodes}
            if self.me in members - self._conflicts.refused(name).nodes:
                return self.region(name, liveness)
        return None

    def regions_of(self, nodes: Iterable[str]) -> set[str]:
        """Return the regions that name one of these nodes, as member or as endpoint."""
        return {name for node in nodes for name in self._regions_of.get(node, ())}

    def hubs(self, liveness: Liveness) -> tuple[Hub, ...]:
        """Return the hubs, in a fixed order.

        Which regions serve does not depend on liveness: the two ends of a pair may have different verdicts, and then
        they would choose from different hubs.
        """
        found = []
        for _, name in self._hub_ranks[:MAX_HUBS]:
            region = self.region(name, liveness)
            found.append(as_hub(region if region and region.serves_as_hub else self._regions[name]))
        return tuple(found)

    def refused(self, name: str) -> RefusedClaims:
        """Return what this Gateway lost in conflicts."""
        return self._conflicts.refused(name)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every conflict of the world, sorted."""
        return self._conflicts.conflicts()

    def _resolve(self, name: str) -> ResolvedRegion | None:
        gateway = self._world.gateways.get(name)
        if gateway is None:
            return None
        refused = self._conflicts.refused(name)
        return resolve_region(gateway, self._world.peers, refused, forward_node_ip=self._forward_node_ip)

    def _reindex_nodes(self, name: str, before: Gateway | None, after: Gateway | None) -> None:
        old, new = _nodes_named(before), _nodes_named(after)
        for node in old - new:
            regions = self._regions_of[node]
            regions.discard(name)
            if not regions:
                del self._regions_of[node]
        for node in new - old:
            self._regions_of.setdefault(node, set()).add(name)

    def _replace(self, name: str, region: ResolvedRegion | None) -> None:
        before = self._regions.pop(name, None)
        rank = (hub_rank(name), name)
        if before is not None and before.serves_as_hub:
            del self._hub_ranks[bisect_left(self._hub_ranks, rank)]
        if region is not None:
            self._regions[name] = region
            if region.serves_as_hub:
                insort(self._hub_ranks, rank)


def _nodes_named(gateway: Gateway | None) -> set[str]:
    """Return the nodes whose Peer or liveness can change the region: its members and its endpoints."""
    if gateway is None:
        return set()
    endpoints = (*gateway.endpoints, *gateway.status.active)
    return {info.node for info in gateway.status.nodes} | {e.node for e in endpoints}
