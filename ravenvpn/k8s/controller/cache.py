"""What the API server has said, and which Gateways a change touches: one Node's change touches one Gateway.

No clock, no I/O. Everything else looks at the cluster through this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import StrEnum

from ravenvpn.k8s.controller import decode, service_addresses
from ravenvpn.k8s.controller.decode import YURT_MANAGER, Block, HeldGateway, HeldNode
from ravenvpn.k8s.controller.service_addresses import HeldService, HeldSlice
from ravenvpn.k8s.resource import Object, key_of
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import EndpointType, Node, PeerObject
from ravenvpn.mesh.status import Gates


class ObjectKind(StrEnum):
    """What is followed."""

    GATEWAY = "Gateway"
    NODE = "Node"
    PEER = "Peer"
    BLOCK = "BlockAffinity"
    SERVICE = "Service"
    SLICE = "EndpointSlice"
    CONFIG = "ConfigMap"


class ClusterCache:
    """The cluster as last seen. `touched` grows by every change; whoever decides empties it."""

    def __init__(self) -> None:
        self.gateways: dict[str, HeldGateway] = {}
        self.nodes: dict[str, HeldNode] = {}
        self.peers: dict[str, PeerObject] = {}
        self.services: dict[str, HeldService] = {}
        self.slices: dict[str, HeldSlice] = {}
        self.written_by_others: dict[str, HeldGateway] = {}  # whose status yurt-manager has written
        self.gates = Gates()
        self.touched: set[str] = set()
        self.touched_peers: set[str] = set()
        self._members: dict[str, set[str]] = {}  # Gateway → Nodes with its label
        self._candidates: dict[str, set[str]] = {}  # node → Gateways whose endpoints name it
        self._exposed: dict[str, set[str]] = {}  # Gateway → its Services
        self._sliced: dict[str, set[str]] = {}  # Gateway → its EndpointSlices
        self._block_of: dict[str, Block] = {}
        self._blocks: dict[str, dict[str, Prefix]] = {}  # node → BlockAffinity → prefix
        self._epochs: dict[str, dict[EndpointType, int]] = {}
        take: dict[ObjectKind, tuple[Callable[[Object], None], Callable[[str], None]]] = {
            ObjectKind.GATEWAY: (self._gateway, self._no_gateway),
            ObjectKind.NODE: (self._node, self._no_node),
            ObjectKind.PEER: (self._peer, self._no_peer),
            ObjectKind.BLOCK: (self._block, self._no_block),
            ObjectKind.SERVICE: (self._service, self._no_service),
            ObjectKind.SLICE: (self._slice, self._no_slice),
            ObjectKind.CONFIG: (self._config, self._no_config),
        }
        self._take = take

    def take(self, kind: ObjectKind, changed: Iterable[Object], deleted: Iterable[str] = ()) -> None:
        """Objects as the API server has them now, and keys (`resource.key_of`) of those it has no more."""
        put, drop = self._take[kind]
        for document in changed:
            put(document)
        for key in deleted:
            drop(key.rpartition("/")[2])

    def touch_all(self) -> None:
        self.touched.update(self.gateways)
        self.touched.update(self._exposed)
        self.touched.update(self._sliced)

    # Looking.

    def members(self, gateway: str) -> list[Node]:
        """The readable Nodes with the label of this Gateway, by name, each with Calico's blocks where those rule."""
        held = (self.nodes[name] for name in sorted(self._members.get(gateway, ())))
        return [self._with_blocks(one.value, one.calico) for one in held if one.value is not None]

    def broken_members(self, gateway: str) -> list[HeldNode]:
        return [held for name in sorted(self._members.get(gateway, ())) if not (held := self.nodes[name]).value]

    def epochs(self, gateway: str) -> dict[EndpointType, int]:
        """The highest epochs ever seen of this Gateway."""
        return self._epochs.get(gateway, {})

    def services_of(self, gateway: str) -> list[HeldService]:
        return [self.services[name] for name in sorted(self._exposed.get(gateway, ()))]

    def slices_of(self, gateway: str) -> list[HeldSlice]:
        return [self.slices[name] for name in sorted(self._sliced.get(gateway, ()))]

    def _with_blocks(self, node: Node, calico: bool) -> Node:
        # Without any affinity in the whole cluster Calico hands out what the Nodes' podCIDRs say (host-local IPAM).
        if not calico or not self._block_of:
            return node
        return replace(node, blocks=tuple(sorted(self._blocks.get(node.name, {}).values(), key=_by_family)))

    # Taking in.

    def _gateway(self, document: Object) -> None:
        name = key_of(document)
        before = self.gateways.get(name)
        held = decode.read_gateway(document, before)
        if before is not None and before.uid == held.uid and _older(held.version, before.version):
            return  # the watch has yet to catch up with the answer to our own write
        if before is not None and before.uid != held.uid:
            self._no_gateway(name)
        self.gateways[name] = held
        if any(YURT_MANAGER in writer.manager for writer in held.writers):
            self.written_by_others[name] = held
        else:
            self.written_by_others.pop(name, None)
        for node in {e.node for e in before.value.endpoints} if before and before.value else ():
            _discard(self._candidates, node, name)
        if held.value is not None:
            for endpoint in held.value.endpoints:
                self._candidates.setdefault(endpoint.node, set()).add(name)
            epochs = self._epochs.setdefault(name, {})
            for endpoint in held.value.status.active:
                epochs[endpoint.type] = max(epochs.get(endpoint.type, 0), endpoint.epoch)
        self.touched.add(name)

    def _no_gateway(self, name: str) -> None:
        held = self.gateways.pop(name, None)
        self.written_by_others.pop(name, None)
        self._epochs.pop(name, None)
        if held is not None and held.value is not None:
            for node in {e.node for e in held.value.endpoints}:
                _discard(self._candidates, node, name)
        self.touched.add(name)

    def _node(self, document: Object) -> None:
        held = decode.read_node(document)
        before = self.nodes.get(held.name)
        if before == held:
            return  # a heartbeat
        if before is not None:
            _discard(self._members, before.gateway, held.name)
            self.touched.add(before.gateway)
        self.nodes[held.name] = held
        self._members.setdefault(held.gateway, set()).add(held.name)
        self.touched.add(held.gateway)
        self.touched |= self._candidates.get(held.name, set())

    def _no_node(self, name: str) -> None:
        held = self.nodes.pop(name, None)
        if held is not None:
            _discard(self._members, held.gateway, name)
            self.touched.add(held.gateway)
            self.touched |= self._candidates.get(name, set())

    def _peer(self, document: Object) -> None:
        held, name = decode.read_peer(document), key_of(document)
        if held is None:
            self._no_peer(name)
        elif held != self.peers.get(name):
            self.peers[name] = held
            self._touch_peer(name)

    def _no_peer(self, name: str) -> None:
        if self.peers.pop(name, None) is not None:
            self._touch_peer(name)

    def _touch_peer(self, name: str) -> None:
        self.touched_peers.add(name)
        self.touched |= self._candidates.get(name, set())
        if name in self.nodes:
            self.touched.add(self.nodes[name].gateway)

    def _block(self, document: Object) -> None:
        name, block = key_of(document), decode.read_block(document)
        if block == self._block_of.get(name):
            return
        first = not self._block_of
        self._no_block(name)
        if block is not None:
            self._block_of[name] = block
            self._blocks.setdefault(block.node, {})[name] = block.prefix
            self._touch_blocks(block.node, first)

    def _no_block(self, name: str) -> None:
        block = self._block_of.pop(name, None)
        if block is not None:
            self._blocks[block.node].pop(name, None)
            self._touch_blocks(block.node, not self._block_of)

    def _touch_blocks(self, node: str, everywhere: bool) -> None:
        if everywhere:
            self.touched.update(held.gateway for held in self.nodes.values() if held.calico)
        elif node in self.nodes:
            self.touched.add(self.nodes[node].gateway)

    def _service(self, document: Object) -> None:
        held = service_addresses.read_service(document)
        if held is None or held == self.services.get(held.name):
            return
        self._no_service(held.name)
        self.services[held.name] = held
        self._exposed.setdefault(held.gateway, set()).add(held.name)
        self.touched.add(held.gateway)

    def _no_service(self, name: str) -> None:
        held = self.services.pop(name, None)
        if held is not None:
            _discard(self._exposed, held.gateway, name)
            self.touched.add(held.gateway)

    def _slice(self, document: Object) -> None:
        held = service_addresses.read_slice(document)
        if held is None or held == self.slices.get(held.name):
            return
        self._no_slice(held.name)
        self.slices[held.name] = held
        self._sliced.setdefault(held.gateway, set()).add(held.name)
        self.touched.add(held.gateway)

    def _no_slice(self, name: str) -> None:
        held = self.slices.pop(name, None)
        if held is not None:
            _discard(self._sliced, held.gateway, name)
            self.touched.add(held.gateway)

    def _config(self, document: Object) -> None:
        if key_of(document).rpartition("/")[2] == decode.RAVEN_CFG:
            self._set_gates(decode.read_gates(document))

    def _no_config(self, name: str) -> None:
        if name == decode.RAVEN_CFG:
            self._set_gates(decode.read_gates(None))

    def _set_gates(self, gates: Gates) -> None:
        if gates != self.gates:
            self.gates = gates
            self.touch_all()


def _discard(index: dict[str, set[str]], key: str, name: str) -> None:
    if key in index:
        index[key].discard(name)
        if not index[key]:
            del index[key]


def _older(version: str, than: str) -> bool:
    """resourceVersions are opaque by promise and count up in fact; where they are no numbers nothing is older."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)


def _by_family(prefix: Prefix) -> tuple[int, Sequence[int]]:
    return prefix.version, (int(prefix.network_address), prefix.prefixlen)
