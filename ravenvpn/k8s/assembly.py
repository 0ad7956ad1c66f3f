"""Gateways and Peers as the API returns them, assembled to one World. Pure.

Several feeds may show the same object (Peers are watched with two selectors): it exists as long as one feed shows it.
A malformed object is a Problem, and its last good version stays. Beside each value the fields that it was read from
are kept as JSON, so that the saved world can be read again by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec

from ravenvpn.k8s import crd
from ravenvpn.k8s.problems import Problem
from ravenvpn.k8s.resource import Object, ObjectKey, key_of, version_of
from ravenvpn.mesh.model import Gateway, PeerObject, World

MAX_PROBLEMS = 100  # in `Assembly.problems`; a cluster full of malformed objects must not fill the log


class Feed(StrEnum):
    """One watch of the API. The values are keys in the saved world."""

    GATEWAYS = "gateways"
    PEERS = "peers"  # of gateways and standbys, in all regions
    REGION = "region"  # Peers of our own region

    @property
    def kind(self) -> str:
        """Kind of the objects in this feed."""
        return "Gateway" if self is Feed.GATEWAYS else "Peer"


@dataclass(frozen=True, slots=True)
class SavedObject:
    """An entry of the world cache: the trimmed object, its version, and the feeds that contain it."""

    document: bytes  # JSON of the fields that are read (`trimmed_json`)
    version: str  # resourceVersion
    feeds: frozenset[Feed]  # those that show it


# Fields of metadata that are read. Of the others managedFields alone is longer than all the rest of the object.
_METADATA = ("name", "creationTimestamp", "generation", "labels", "annotations")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Assembly:
    """Applies changes of feeds. `world` is replaced by a new one if and only if a value in it changed."""

    def __init__(self, mesh: str = "") -> None:
        """`mesh`: name of the mesh, for the World."""
        self.world = World(mesh=mesh)
        self.objects: dict[ObjectKey, SavedObject] = {}  # last good versions
        self._shown: dict[ObjectKey, set[Feed]] = {}  # malformed objects included
        self._problems: dict[ObjectKey, tuple[Problem, ...]] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems of the objects as they are now in the API, sorted by kind and name, `MAX_PROBLEMS` at most."""
        found = [problem for key in sorted(self._problems) for problem in self._problems[key]]
        if len(found) <= MAX_PROBLEMS:
            return tuple(found)
        more = Problem(f"{len(found) - MAX_PROBLEMS} more problems are not shown", "correct the first ones")
        return (*found[:MAX_PROBLEMS], more)

    def put(self, feed: Feed, obj: Object) -> None:
        """Add or replace an object that `feed` shows. Never raises because of `obj`."""
        key = ObjectKey(feed.kind, key_of(obj))
        shown = self._shown.setdefault(key, set())
        shown.add(feed)
        known = self.objects.get(key)
        # The same version from another feed, or again after a list: spares the conversion.
        if known is not None and known.version == version_of(obj) and version_of(obj):
            self.objects[key] = replace(known, feeds=frozenset(shown))
            return
        # Not `handwritten`: the API server has dropped unknown fields.
        parsed = crd.parse(obj)
        self._set_problems(key, parsed.problems)
        value = parsed.value
        if not isinstance(value, (Gateway, PeerObject)) or parsed.kind != key.kind:
            return
        try:
            document = trimmed_json(obj)
        except RecursionError:  # in a field that is not read, else `crd` had found it
            problem = Problem("is nested too deeply", "write it as a plain object", subject=f"{key.kind} {key.name}")
            self._set_problems(key, (problem,))
            return
        self.objects[key] = SavedObject(document, version_of(obj), frozenset(shown))
        if isinstance(value, Gateway):
            if self.world.gateways.get(value.name) != value:
                self.world = self.world.with_gateway(value)
        elif self.world.peers.get(value.name) != value:
            self.world = self.world.with_peer(value)

    def remove(self, feed: Feed, name: str) -> None:
        """Withdraw an object from `feed`; it leaves the world once no feed shows it."""
        key = ObjectKey(feed.kind, name)
        shown = self._shown.get(key, set())
        shown.discard(feed)
        if shown:
            if (known := self.objects.get(key)) is not None:
                self.objects[key] = replace(known, feeds=frozenset(shown))
            return
        self._shown.pop(key, None)
        self._problems.pop(key, None)
        if self.objects.pop(key, None) is not None:
            without = self.world.without_gateway if key.kind == "Gateway" else self.world.without_peer
            self.world = without(name)

    def remove_feed(self, feed: Feed) -> None:
        """Withdraw all objects of a feed that is no longer watched."""
        for key in [key for key, shown in self._shown.items() if feed in shown]:
            self.remove(feed, key.name)

    def resource_versions(self, feed: Feed) -> dict[str, str]:
        """Return key → resourceVersion of the last good objects that `feed` shows."""
        return {key.name: known.version for key, known in self.objects.items() if feed in known.feeds}

    def restore(self, objects: Iterable[SavedObject]) -> None:
        """Add objects that an earlier process saved. Raises ValueError if one is not a JSON object."""
        for saved in objects:
            obj: Any = msgspec.json.decode(saved.document)
            if not isinstance(obj, dict):
                raise ValueError("a saved object is not a JSON object")
            obj.setdefault("metadata", {})["resourceVersion"] = saved.version
            for feed in sorted(saved.feeds):
                self.put(feed, obj)

    def regions_of(self, node: str) -> list[str]:
        """Return the Gateways whose status lists the node, sorted by name."""
        gateways = self.world.gateways.values()
        return sorted(g.name for g in gateways if any(info.node == node for info in g.status.nodes))

    def _set_problems(self, key: ObjectKey, problems: tuple[Problem, ...]) -> None:
        """Replace the problems of one object, warnings of an object that is used included."""
        if problems:
            self._problems[key] = problems
        else:
            self._problems.pop(key, None)


def trimmed_json(obj: Object) -> bytes:
    """Return the fields of `obj` that `crd` reads, as JSON. Raises RecursionError if it is nested too deeply.

    Only a Gateway keeps its status."""
    metadata = obj.get("metadata") or {}
    less = {field: metadata[field] for field in _METADATA if metadata.get(field)}
    if isinstance(less.get("annotations"), dict):
        less["annotations"] = {name: text for name, text in less["annotations"].items() if name != _LAST_APPLIED}
    rest = {
        field: obj[field]
        for field in ("apiVersion", "kind", "spec", "status")
        if field in obj and (field != "status" or obj.get("kind") == "Gateway")
    }
    return msgspec.json.encode({**rest, "metadata": less})
