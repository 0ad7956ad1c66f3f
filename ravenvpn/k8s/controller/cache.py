"""Cache of the cluster: objects as last seen, and the Gateways whose status may have to change.

A change of one Node marks one Gateway as dirty, so that a cluster of a thousand regions is not decided anew for every
Node. Two sources fill the cache: the watches (`informers`) and the API server's answers to the controller's own
writes (`writer`). No clock, no I/O; used on one event loop, not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from enum import StrEnum

from ravenvpn.k8s.controller import decode, decode_services
from ravenvpn.k8s.controller.decode import CachedNode, CalicoBlock
from ravenvpn.k8s.controller.decode_services import CachedService, CachedSlice
from ravenvpn.k8s.controller.indexes import GatewayIndex, ObjectIndex
from ravenvpn.k8s.resource import Object, key_of
from ravenvpn.mesh.model import Node, PeerObject
from ravenvpn.mesh.status import Gates
from ravenvpn.prefixes import sort_key


class ObjectKind(StrEnum):
    """Kinds of objects in the cache, by their `kind` in the API."""

    GATEWAY = "Gateway"
    NODE = "Node"  # only Nodes with the Gateway label
    PEER = "Peer"
    BLOCK = "BlockAffinity"  # Calico's
    SERVICE = "Service"  # only those in front of gateways, in kube-system
    SLICE = "EndpointSlice"  # of these Services
    CONFIG = "ConfigMap"  # only kube-system/raven-cfg


class ClusterCache:
    """The cluster as last seen.

    `dirty` and `dirty_peers` only grow until `drain` empties them, so no change is lost between two rounds. The name
    "" in `dirty` stands for Nodes without a Gateway and is no Gateway.
    """

    def __init__(self) -> None:
        self.gateways = GatewayIndex()
        self.nodes: ObjectIndex[CachedNode] = ObjectIndex(lambda node: node.gateway)
        self.peers: ObjectIndex[PeerObject] = ObjectIndex(lambda peer: peer.name)
        self.services: ObjectIndex[CachedService] = ObjectIndex(lambda service: service.gateway)
        self.slices: ObjectIndex[CachedSlice] = ObjectIndex(lambda one: one.gateway)
        self.gates = Gates()
        self.dirty: set[str] = set()  # Gateways to reconcile, existing or deleted
        self.dirty_peers: set[str] = set()  # Peers that changed or are gone, for the conflict view
        self._blocks: ObjectIndex[CalicoBlock] = ObjectIndex(lambda block: block.node)
        # Each takes the object's name and the object, or None if it was deleted.
        self._updates: Mapping[ObjectKind, Callable[[str, Object | None], None]] = {
            ObjectKind.GATEWAY: self._update_gateway,
            ObjectKind.NODE: self._update_node,
            ObjectKind.PEER: self._update_peer,
            ObjectKind.BLOCK: self._update_block,
            ObjectKind.SERVICE: self._update_service,
            ObjectKind.SLICE: self._update_slice,
            ObjectKind.CONFIG: self._update_config,
        }

    def apply(self, kind: ObjectKind, changed: Iterable[Object], deleted: Iterable[str] = ()) -> None:
        """Store objects as the API server returned them, and remove those under the keys (`resource.key_of`) in
        `deleted`. Marks the Gateways that the change can affect as dirty; an unchanged object (the heartbeat of a
        Node) marks none. Raises nothing on malformed objects, see `decode`.
        """
        update = self._updates[kind]
        for document in changed:
            update(_name(key_of(document)), document)
        for key in deleted:
            update(_name(key), None)

    def mark_all_dirty(self) -> None:
        """Mark every Gateway, and every Gateway that is gone but has Services or EndpointSlices left."""
        self.dirty.update(self.gateways, self.services.index_keys(), self.slices.index_keys())

    def drain(self) -> tuple[Set[str], Set[str]]:
        """Return the dirty Gateways and Peers, and start with empty sets again."""
        gateways, peers = self.dirty - {""}, self.dirty_peers
        self.dirty, self.dirty_peers = set(), set()
        return gateways, peers

    def members(self, gateway: str) -> list[Node]:
        """Return the readable Nodes with the label of this Gateway, sorted by name; `blocks` is set on those whose
        pods have addresses from Calico's blocks.
        """
        return [self._with_blocks(node) for node in self.nodes.lookup(gateway) if node.value is not None]

    def malformed_members(self, gateway: str) -> list[CachedNode]:
        """Return the Nodes with the label of this Gateway that could not be read, sorted by name."""
        return [node for node in self.nodes.lookup(gateway) if node.value is None]

    def _with_blocks(self, node: CachedNode) -> Node:
        """Return the Node with Calico's blocks instead of podCIDRs, if Calico assigns addresses from blocks here."""
        assert node.value is not None
        # Without a single affinity in the cluster Calico assigns what the Nodes' podCIDRs say (host-local IPAM).
        if not node.calico or not self._blocks:
            return node.value
        prefixes = (block.prefix for block in self._blocks.lookup(node.name))
        return replace(node.value, blocks=tuple(sorted(prefixes, key=sort_key)))

    def _update_gateway(self, name: str, document: Object | None) -> None:
        """Mark the Gateway itself; no other Gateway's status depends on its spec. Conflicts between Gateways are
        found by `conflict_view`, which marks the losers.
        """
        if document is None:
            self.gateways.drop(name)
            self.dirty.add(name)
        elif self.gateways.put(document):
            self.dirty.add(name)

    def _update_node(self, name: str, document: Object | None) -> None:
        """Mark the Gateway of the Node's label, before and after the change, and the Gateways that list the Node as
        an endpoint, because their conditions name it.
        """
        node = decode.read_node(document) if document is not None else None
        gateways = self.nodes.put(name, node)
        if gateways:
            self.dirty |= gateways | self.gateways.listing(name)

    def _update_peer(self, name: str, document: Object | None) -> None:
        """Mark the Gateways that list the Peer's node (for its key and address) and the Gateway of the node's label
        (for conflicts).
        """
        peer = decode.read_peer(document) if document is not None else None
        if self.peers.put(name, peer):
            self.dirty_peers.add(name)
            self.dirty |= self.gateways.listing(name)
            if name in self.nodes:
                self.dirty.add(self.nodes[name].gateway)

    def _update_block(self, name: str, document: Object | None) -> None:
        """Mark the Gateway of the block's node, or every Gateway with Calico's nodes for the first and the last
        block.
        """
        block = decode.read_block(document) if document is not None else None
        were_any = bool(self._blocks)
        nodes = self._blocks.put(name, block)
        if bool(self._blocks) is not were_any:
            # Whether there is any block in the cluster decides for every node of Calico, see `_with_blocks`.
            self.dirty.update(node.gateway for node in self.nodes.values() if node.calico)
        else:
            self.dirty.update(self.nodes[node].gateway for node in nodes if node in self.nodes)

    def _update_service(self, name: str, document: Object | None) -> None:
        """Mark the Gateway of the Service's label, before and after the change."""
        service = decode_services.read_service(document) if document is not None else None
        self.dirty |= self.services.put(name, service)

    def _update_slice(self, name: str, document: Object | None) -> None:
        """Mark the Gateway of the EndpointSlice's label, before and after the change."""
        found = decode_services.read_slice(document) if document is not None else None
        self.dirty |= self.slices.put(name, found)

    def _update_config(self, name: str, document: Object | None) -> None:
        """Mark every Gateway if ConfigMap raven-cfg turns a role on or off. Other ConfigMaps are ignored."""
        if name != decode.RAVEN_CFG:
            return
        gates = decode.read_gates(document)
        if gates != self.gates:
            self.gates = gates
            self.mark_all_dirty()


def _name(key: str) -> str:
    """Return the object's name. Namespaced kinds are watched in one namespace only, so names are unique by kind."""
    return key.rpartition("/")[2]
