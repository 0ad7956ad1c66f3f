"""Look up a gateway node by the 64-bit hash that stands for it in a forwarding verdict (docs/protocol.md).

A hub's probes name the nodes it does not reach by hash, at most a few dozen a probe. Hashing every node of the world
for each of them would cost O(nodes) a verdict, so the hashes are kept and follow the world change by change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv6Address

from ravenvpn.mesh.identity import tunnel_address
from ravenvpn.mesh.model import World


def subject(address: IPv6Address) -> int:
    """Return the hash that stands for a node in a probe: the lower 64 bits of its tunnel address.

    They depend on the node's name alone, the upper ones on the mesh (`mesh.identity`)."""
    return int(address) & 0xFFFFFFFFFFFFFFFF


class SubjectIndex:
    """Map of hash to name, over the active gateway nodes of one world.

    A look-up costs O(1), and O(changed Gateways) the first time after the world changed. Owned by the event loop.
    """

    def __init__(self) -> None:
        self._world = World()
        self._nodes: dict[int, str] = {}
        self._references: Counter[str] = Counter()  # in how many places Gateways name the node as active

    def lookup(self, hashed: int, world: World) -> str | None:
        """Return the active gateway node of `world` that has this hash, None where there is none."""
        if world is not self._world:
            self._follow(world)
        return self._nodes.get(hashed)

    def _follow(self, world: World) -> None:
        """Bring the index to this world."""
        changed = world.changes(self._world).gateways
        self._remove(_active(self._world, changed))
        self._add(_active(world, changed), world.mesh)
        self._world = world

    def _add(self, nodes: Iterable[str], mesh: str) -> None:
        for node in nodes:
            self._references[node] += 1
            if self._references[node] == 1:
                self._nodes[subject(tunnel_address(mesh, node))] = node

    def _remove(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._references[node] -= 1
            if not self._references[node]:
                del self._references[node]
                del self._nodes[subject(tunnel_address(self._world.mesh, node))]


def _active(world: World, gateways: Iterable[str]) -> list[str]:
    """Return the active nodes of these Gateways, those of one that is absent left out; with repetitions."""
    found = (world.gateways.get(name) for name in gateways)
    return [endpoint.node for gateway in found if gateway for endpoint in gateway.status.active]
