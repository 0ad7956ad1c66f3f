"""Indexes of the cache: objects by name, and by the one key through which the controller looks them up.

client-go calls such a store with an index function an Indexer. `put` and `drop` return what the change affects, so
that the cache can mark the Gateways to reconcile. No clock, no I/O; used on one event loop, not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import TypeVar

from ravenvpn.k8s.controller import decode
from ravenvpn.k8s.controller.decode import CachedGateway
from ravenvpn.k8s.resource import Object, key_of
from ravenvpn.mesh.model import EndpointType

Value = TypeVar("Value")


class KeySets:
    """Names under keys, where a name may stand under several keys. A key without names is dropped."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def add(self, key: str, name: str) -> None:
        """Put `name` under `key`; no effect if it stands there."""
        self._names.setdefault(key, set()).add(name)

    def discard(self, key: str, name: str) -> None:
        """Remove `name` from `key`; no effect if it does not stand there."""
        names = self._names.get(key)
        if names is not None:
            names.discard(name)
            if not names:
                del self._names[key]

    def lookup(self, key: str) -> Set[str]:
        """Return the names under `key`, empty if there are none. The set is the index's own: copy it to keep it."""
        return self._names.get(key, frozenset())

    def keys(self) -> Set[str]:
        """Return the keys that have names."""
        return self._names.keys()


class ObjectIndex(Mapping[str, Value]):
    """Objects by name (the mapping itself), and by the key that `key` computes from each."""

    def __init__(self, key: Callable[[Value], str]) -> None:
        self._objects: dict[str, Value] = {}
        self._key = key
        self._by_key = KeySets()

    def __getitem__(self, name: str) -> Value:
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, name: str, value: Value | None) -> Set[str]:
        """Store the object, or remove it if `value` is None. Returns its old and new key; empty if unchanged."""
        before = self._objects.get(name)
        if value == before:
            return frozenset()
        affected = set()
        if before is not None:
            affected.add(self._key(before))
            self._by_key.discard(self._key(before), name)
            del self._objects[name]
        if value is not None:
            affected.add(self._key(value))
            self._by_key.add(self._key(value), name)
            self._objects[name] = value
        return affected

    def lookup(self, key: str) -> list[Value]:
        """Return the objects with this key, sorted by name."""
        return [self._objects[name] for name in sorted(self._by_key.lookup(key))]

    def index_keys(self) -> Set[str]:
        """Return the keys that objects have."""
        return self._by_key.keys()


class GatewayIndex(Mapping[str, CachedGateway]):
    """Gateways by name, by the nodes their endpoints list, and the highest epochs seen of each."""

    def __init__(self) -> None:
        self._gateways: dict[str, CachedGateway] = {}
        self._by_candidate = KeySets()  # node → Gateways whose spec.endpoints list it
        self._epochs: dict[str, dict[EndpointType, int]] = {}

    def __getitem__(self, name: str) -> CachedGateway:
        return self._gateways[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gateways)

    def __len__(self) -> int:
        return len(self._gateways)

    def put(self, document: Object) -> bool:
        """Store a Gateway as the API server returned it; False if a newer resourceVersion is stored already.

        The answer to the controller's own write arrives before the watch event of the version it replaced, which must
        not undo it. A Gateway that was deleted and created again under the same name has another UID: its epochs
        start again and resourceVersions are not compared.
        """
        name = key_of(document)
        before = self._gateways.get(name)
        gateway = decode.read_gateway(document, before)
        if before is not None and before.uid != gateway.uid:
            self.drop(name)
        elif before is not None and _is_older(gateway.resource_version, before.resource_version):
            return False
        self._index_candidates(name, before, gateway)
        self._gateways[name] = gateway
        if gateway.value is not None:
            epochs = self._epochs.setdefault(name, {})
            for endpoint in gateway.value.status.active:
                epochs[endpoint.type] = max(epochs.get(endpoint.type, 0), endpoint.epoch)
        return True

    def drop(self, name: str) -> None:
        """Remove a Gateway and its epochs."""
        self._index_candidates(name, self._gateways.pop(name, None), None)
        self._epochs.pop(name, None)

    def listing(self, node: str) -> Set[str]:
        """Return the names of the Gateways whose spec.endpoints list this node."""
        return self._by_candidate.lookup(node)

    def epochs(self, name: str) -> Mapping[EndpointType, int]:
        """Return the highest epoch seen for each role of this Gateway; its status may have lost them meanwhile."""
        return self._epochs.get(name, {})

    def _index_candidates(self, name: str, before: CachedGateway | None, after: CachedGateway | None) -> None:
        """Move the Gateway from the nodes it listed to those it lists now; None if there is no Gateway."""
        for node in _candidates(before):
            self._by_candidate.discard(node, name)
        for node in _candidates(after):
            self._by_candidate.add(node, name)


def _candidates(gateway: CachedGateway | None) -> set[str]:
    """Return the nodes that spec.endpoints lists, of both roles; empty if the spec was never readable."""
    return {endpoint.node for endpoint in gateway.value.endpoints} if gateway and gateway.value else set()


def _is_older(version: str, than: str) -> bool:
    """Compare resourceVersions. They are opaque by contract and increase in practice (etcd revisions); where one is
    not a number, nothing counts as older."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
