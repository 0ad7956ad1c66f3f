"""What is to be found out about this host before planning, and when again. Pure: whoever asks looks.

Looking costs a route lookup for every address that the world names for a gateway or for a neighbour in our region, so
it happens when something of it may have changed: the host's addresses, the addresses named, or the pods of this node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import World, address_of, lan_addresses


class Question(NamedTuple):
    destinations: tuple[Address, ...]  # the MTU towards these is asked for
    pods: tuple[Prefix, ...]  # of this node: behind which devices are they?


class Underlay:
    """Of one node. Remembers what the last look was for."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._world = World()
        self._destinations: set[Address] = set()
        self._pods: tuple[Prefix, ...] = ()
        self._lan: dict[str, tuple[Address, ...]] = {}  # of the other nodes of our region
        self._due = True

    def changed(self) -> None:
        """Something about the host is another than it was."""
        self._due = True

    def question(self, world: World) -> Question | None:
        """What to look at before planning for this world; None if all is known. Costs what changed since the last."""
        changes = world.changes(self._world)
        named = set(_addresses(world, changes.gateways, changes.peers))
        if any(self._names_us(world, name) or self._names_us(self._world, name) for name in changes.gateways):
            pods = self._pods_in(world)
            self._due |= pods != self._pods
            self._pods = pods
            self._lan = self._neighbours(world)
        elif changes.peers & self._lan.keys():
            self._lan = self._neighbours(world)
        named.update(*self._lan.values())
        self._world = world
        if not self._due and named <= self._destinations:
            return None
        self._due = False
        self._destinations = set(_addresses(world, world.gateways, world.peers)).union(*self._lan.values())
        return Question(tuple(sorted(self._destinations, key=lambda a: (a.version, int(a)))), self._pods)

    def _names_us(self, world: World, gateway: str) -> bool:
        found = world.gateways.get(gateway)
        return found is not None and any(info.node == self._node for info in found.status.nodes)

    def _pods_in(self, world: World) -> tuple[Prefix, ...]:
        own = (
            info for gateway in world.gateways.values() for info in gateway.status.nodes if info.node == self._node
        )
        return tuple(prefix for info in own for prefix in info.subnets)

    def _neighbours(self, world: World) -> dict[str, tuple[Address, ...]]:
        return {
            info.node: lan_addresses(info, world.peers.get(info.node))
            for name, gateway in world.gateways.items()
            if self._names_us(world, name)
            for info in gateway.status.nodes
            if info.node != self._node
        }


def _addresses(world: World, gateways: Iterable[str], peers: Iterable[str]) -> Iterator[Address]:
    """Literal addresses that these objects name for gateway nodes."""
    for name in gateways:
        gateway = world.gateways.get(name)
        for endpoint in gateway.endpoints if gateway else ():
            address = address_of(endpoint.public_ip or "")
            if address is not None:
                yield address
    for name in peers:
        peer = world.peers.get(name)
        for host, _ in peer.addresses if peer else ():
            address = address_of(str(host))
            if address is not None:
                yield address
