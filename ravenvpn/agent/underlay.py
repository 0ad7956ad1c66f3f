"""Decide when this host has to be examined again before planning, and for which addresses. Pure.

Host discovery costs a route look-up (RTM_GETROUTE) for every address that the world names for a gateway or for a
neighbour in our region. It is therefore done only when its result may differ: the host's addresses changed, the world
names addresses that were not looked up, or the pod prefixes of this node changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import World, address_of, lan_addresses


class DiscoveryQuery(NamedTuple):
    """Facts to look up on this host before planning."""

    destinations: tuple[Address, ...]  # the MTU of the route to each is needed; sorted, IPv4 first
    pods: tuple[Prefix, ...]  # pod prefixes of this node, to find the devices behind which pods live


class Underlay:
    """Addresses of the underlay that one node's plan depends on. Keeps what the last query contained."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._world = World()  # of the last query
        self._destinations: set[Address] = set()
        self._pods: tuple[Prefix, ...] = ()
        self._lan: dict[str, tuple[Address, ...]] = {}  # other nodes of our region → their addresses on its LAN
        self._stale = True

    def invalidate(self) -> None:
        """Make the next `query` return something: the host itself changed, or an operator asked for a reload."""
        self._stale = True

    def query(self, world: World) -> DiscoveryQuery | None:
        """Return what to look up before planning for this world, None if all of it is known.

        Costs time proportional to what changed since the last call; a query that is returned lists everything."""
        changes = world.changes(self._world)
        named = set(_addresses(world, changes.gateways, changes.peers))
        if any(self._is_own(world, name) or self._is_own(self._world, name) for name in changes.gateways):
            pods = self._pods_in(world)
            self._stale |= pods != self._pods
            self._pods = pods
            self._lan = self._neighbours(world)
        elif changes.peers & self._lan.keys():
            self._lan = self._neighbours(world)
        named.update(*self._lan.values())
        self._world = world
        if not self._stale and named <= self._destinations:
            return None
        self._stale = False
        self._destinations = set(_addresses(world, world.gateways, world.peers)).union(*self._lan.values())
        return DiscoveryQuery(tuple(sorted(self._destinations, key=lambda a: (a.version, int(a)))), self._pods)

    def _is_own(self, world: World, gateway: str) -> bool:
        """Return whether this node is a member of that Gateway's region in this world. A Gateway can be absent there,
        since the changes of two worlds name those that were removed as well."""
        found = world.gateways.get(gateway)
        return found is not None and any(info.node == self._node for info in found.status.nodes)

    def _pods_in(self, world: World) -> tuple[Prefix, ...]:
        """Return the pod prefixes of this node, in the order of the Gateways' status."""
        own = (
            info for gateway in world.gateways.values() for info in gateway.status.nodes if info.node == self._node
        )
        return tuple(prefix for info in own for prefix in info.subnets)

    def _neighbours(self, world: World) -> dict[str, tuple[Address, ...]]:
        """Return the other nodes of our region with their LAN addresses: the VXLAN has to fit the MTU towards
        them."""
        return {
            info.node: lan_addresses(info, world.peers.get(info.node))
            for name, gateway in world.gateways.items()
            if self._is_own(world, name)
            for info in gateway.status.nodes
            if info.node != self._node
        }


def _addresses(world: World, gateways: Iterable[str], peers: Iterable[str]) -> Iterator[Address]:
    """Yield the literal addresses that these Gateways and Peers name for gateway nodes; DNS names are left out."""
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
