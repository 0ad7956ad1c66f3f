"""Gateways and Peers as they come from the API, put together to one world. Pure.

Several feeds may show the same object (Peers are followed by two selectors): it is there as long as one of them shows
it. A malformed object is a problem, and its last good version stays. What is kept of each object beside its value is
just what it takes to read it again, for the world that is saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from ravenvpn.k8s import crd
from ravenvpn.k8s.problems import Problem
from ravenvpn.k8s.resource import Object, key_of, version_of
from ravenvpn.mesh.model import Gateway, PeerObject, World

MAX_PROBLEMS = 100  # told at once


class Feed(StrEnum):
    """What is followed."""

    GATEWAYS = "gateways"
    PEERS = "peers"  # of gateways and standbys everywhere
    REGION = "region"  # Peers of our own region

    @property
    def kind(self) -> str:
        return "Gateway" if self is Feed.GATEWAYS else "Peer"


class ObjectKey(NamedTuple):
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Kept:
    """An object as it is saved: its JSON without what nobody reads, and the feeds that showed it."""

    document: bytes
    version: str  # resourceVersion
    feeds: frozenset[Feed]


# Beside these, metadata is of no use here; managedFields alone is longer than all the rest.
_METADATA = ("name", "creationTimestamp", "generation", "labels", "annotations")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Assembly:
    """Takes changes in; `world` and `problems` are the whole."""

    def __init__(self, mesh: str = "") -> None:
        self.world = World(mesh=mesh)
        self.kept: dict[ObjectKey, Kept] = {}
        self._shown: dict[ObjectKey, set[Feed]] = {}  # malformed ones too
        self._problems: dict[ObjectKey, tuple[Problem, ...]] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        found = [problem for key in sorted(self._problems) for problem in self._problems[key]]
        if len(found) <= MAX_PROBLEMS:
            return tuple(found)
        more = Problem(f"{len(found) - MAX_PROBLEMS} objects more have problems", "mend the first ones")
        return (*found[:MAX_PROBLEMS], more)

    def put(self, feed: Feed, thing: Object) -> None:
        """An object is there, or another than it was."""
        key = ObjectKey(feed.kind, key_of(thing))
        shown = self._shown.setdefault(key, set())
        shown.add(feed)
        kept = self.kept.get(key)
        if kept is not None and kept.version == version_of(thing) and version_of(thing):
            self.kept[key] = Kept(kept.document, kept.version, frozenset(shown))
            return
        parsed = crd.parse(thing)
        self._tell(key, parsed.problems)
        value = parsed.value
        if not isinstance(value, (Gateway, PeerObject)) or parsed.kind != key.kind:
            return
        try:
            document = trimmed(thing)
        except RecursionError:  # in a part that is not read
            self._tell(
                key, (Problem("is nested too deeply", "write it as a plain object", "", f"{key.kind} {key.name}"),)
            )
            return
        self.kept[key] = Kept(document, version_of(thing), frozenset(shown))
        if isinstance(value, Gateway):
            if self.world.gateways.get(value.name) != value:
                self.world = self.world.with_gateway(value)
        elif self.world.peers.get(value.name) != value:
            self.world = self.world.with_peer(value)

    def remove(self, feed: Feed, name: str) -> None:
        """A feed no longer shows it."""
        key = ObjectKey(feed.kind, name)
        shown = self._shown.get(key, set())
        shown.discard(feed)
        if shown:
            if (kept := self.kept.get(key)) is not None:
                self.kept[key] = Kept(kept.document, kept.version, frozenset(shown))
            return
        self._shown.pop(key, None)
        self._problems.pop(key, None)
        if self.kept.pop(key, None) is not None:
            gone = self.world.without_gateway if key.kind == "Gateway" else self.world.without_peer
            self.world = gone(name)

    def drop(self, feed: Feed) -> None:
        """The feed is no longer followed."""
        for key in [key for key, shown in self._shown.items() if feed in shown]:
            self.remove(feed, key.name)

    def known(self, feed: Feed) -> dict[str, str]:
        """Key → resourceVersion of what a feed showed, as far as it could be read."""
        return {key.name: kept.version for key, kept in self.kept.items() if feed in kept.feeds}

    def restore(self, kept: Iterable[Kept]) -> None:
        """Take in what an earlier process saved. ValueError where it cannot be read."""
        for one in kept:
            thing: Any = msgspec.json.decode(one.document)
            if not isinstance(thing, dict):
                raise ValueError("an object that is none")
            thing.setdefault("metadata", {})["resourceVersion"] = one.version
            for feed in sorted(one.feeds):
                self.put(feed, thing)

    def regions_of(self, node: str) -> list[str]:
        """Gateways whose status names the node, by name."""
        gateways = self.world.gateways.values()
        return sorted(g.name for g in gateways if any(info.node == node for info in g.status.nodes))

    def _tell(self, key: ObjectKey, problems: tuple[Problem, ...]) -> None:
        if problems:
            self._problems[key] = problems
        else:
            self._problems.pop(key, None)


def trimmed(thing: Object) -> bytes:
    """The object as JSON, with what `crd` reads."""
    metadata = thing.get("metadata") or {}
    less = {field: metadata[field] for field in _METADATA if metadata.get(field)}
    if isinstance(less.get("annotations"), dict):
        less["annotations"] = {name: text for name, text in less["annotations"].items() if name != _LAST_APPLIED}
    rest = {
        field: thing[field]
        for field in ("apiVersion", "kind", "spec", "status")
        if field in thing and (field != "status" or thing.get("kind") == "Gateway")
    }
    return msgspec.json.encode({**rest, "metadata": less})
