"""The manifests of a directory as one World: which file an object comes from, and which version stays after an error.

Bytes in, world and problems out; `ravenvpn.k8s.files` reads and watches the directory. The work is incremental: a
file that did not change is not parsed again, and the status of a Gateway is computed again only if the Gateway or one
of its Nodes changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ravenvpn.k8s import crd
from ravenvpn.k8s.manifest import Document, load
from ravenvpn.k8s.problems import Problem
from ravenvpn.k8s.resource import ObjectKey
from ravenvpn.mesh.model import DEFAULT_MESH, EndpointType, Gateway, Node, PeerObject, World
from ravenvpn.mesh.status import Gates, fill

# Kinds whose `items` are objects: `kubectl get -o yaml` prints List, an API server the others.
_LISTS = ("List", "GatewayList", "NodeList", "PeerList")
MAX_PROBLEMS = 100  # of one file; a directory with the wrong files must not fill the log


@dataclass(frozen=True, slots=True)
class _Held:
    """An object of one file."""

    value: Gateway | Node | PeerObject
    line: int  # where it begins
    stale: bool = False  # the last good version: the file, or the object in it, is malformed now


@dataclass(slots=True)
class _ManifestFile:
    """Parsed content of one file."""

    objects: dict[ObjectKey, _Held] = field(default_factory=dict)  # stale ones included
    problems: tuple[Problem, ...] = ()  # in the order of lines


class Manifests:
    """The objects of all files. `update` applies changed files; `world` and `problems` are the result.

    * A malformed object keeps its last good version; a file that cannot be parsed keeps all of its objects.
    * An object in several files is used from a file where it is valid, and of those from the first by name.
    * The status of Gateways is computed here, as the controller does in a cluster: active endpoints, their epochs,
      and the nodes with the label of the region.
    """

    def __init__(self, mesh: str = DEFAULT_MESH, gates: Gates | None = None) -> None:
        """`mesh`: name of the mesh. `gates`: feature gates that change how a status is computed."""
        self.world = World(mesh=mesh)
        self._gates = gates or Gates()
        self._files: dict[str, _ManifestFile] = {}
        self._holders: dict[ObjectKey, set[str]] = {}  # names of the files that contain an object
        self._duplicates: dict[ObjectKey, Problem] = {}
        self._stated: dict[str, Gateway] = {}  # as in the manifest; `world` has them with the computed status
        self._members: dict[str, set[str]] = {}  # Gateway → names of the Nodes with its label
        self._epochs: dict[str, dict[EndpointType, int]] = {}  # Gateway → type → highest epoch so far

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems of all files, in the order of file names, then objects that are in several files."""
        found = [p for name in sorted(self._files) for p in self._files[name].problems]
        return (*found, *(self._duplicates[key] for key in sorted(self._duplicates)))

    def update(self, files: Mapping[str, bytes | Problem | None]) -> None:
        """Apply changed files, by name: the content, a Problem if it cannot be read, None if the file was removed."""
        touched: set[ObjectKey] = set()
        # Only objects that differ by identity are touched; `_same` keeps those whose content is equal.
        for name, content in sorted(files.items()):
            before = self._files.get(name, _ManifestFile())
            after = _ManifestFile() if content is None else _read(name, content, before)
            for key in before.objects.keys() | after.objects.keys():
                if before.objects.get(key) is not after.objects.get(key):
                    touched.add(key)
                    holders = self._holders.setdefault(key, set())
                    (holders.add if key in after.objects else holders.discard)(name)
            if content is None:
                self._files.pop(name, None)
            else:
                self._files[name] = after
        self._apply(touched)

    def _apply(self, touched: Iterable[ObjectKey]) -> None:
        """Update the world for objects that some file added, changed or removed."""
        world = self.world
        gateways: set[str] = set()  # whose status has to be computed again
        for key in sorted(touched):
            value = self._winner(key)
            if key.kind == "Peer":
                world = world.with_peer(value) if isinstance(value, PeerObject) else world.without_peer(key.name)
            elif key.kind == "Node":
                before = world.nodes.get(key.name)
                world = world.with_node(value) if isinstance(value, Node) else world.without_node(key.name)
                gateways |= self._move_member(key.name, before, world.nodes.get(key.name))
            else:
                gateways.add(key.name)
                world = self._state(world, key.name, value if isinstance(value, Gateway) else None)
        for name in sorted(gateways):
            world = self._fill(world, name)
        self.world = world

    def _winner(self, key: ObjectKey) -> Gateway | Node | PeerObject | None:
        """The version of an object that counts: a valid one before a stale one, then by file name.

        Records a problem if several files contain a valid one."""
        held = sorted((self._files[name].objects[key].stale, name) for name in self._holders.get(key, ()))
        self._duplicates.pop(key, None)
        if not held:
            self._holders.pop(key, None)
            return None
        valid = [name for stale, name in held if not stale]
        if len(valid) > 1:
            self._duplicates[key] = Problem(
                f"is also in {valid[0]}, whose version is used",
                "keep one of the two, or give it another name",
                "metadata.name",
                f"{key.kind} {key.name}",
                valid[1],
                self._files[valid[1]].objects[key].line,
            )
        return self._files[held[0][1]].objects[key].value

    def _move_member(self, node: str, before: Node | None, after: Node | None) -> set[str]:
        """Update the members of Gateways for a changed Node; return the Gateways whose status it changes."""
        touched = set()
        if before is not None and before.gateway:
            self._members.get(before.gateway, set()).discard(node)
            touched.add(before.gateway)
        if after is not None and after.gateway:
            self._members.setdefault(after.gateway, set()).add(node)
            touched.add(after.gateway)
        return touched

    def _state(self, world: World, name: str, stated: Gateway | None) -> World:
        """Apply a Gateway as its manifest states it; None removes it."""
        if stated is None:
            self._stated.pop(name, None)
            self._epochs.pop(name, None)
            return world.without_gateway(name)
        before, current = self._stated.get(name), world.gateways.get(name)
        self._stated[name] = stated
        # The active endpoint keeps its role, unless the manifest names another one than it did before.
        if current is not None and before is not None and before.status.active == stated.status.active:
            active = current.status.active
        else:
            active = stated.status.active
        return world.with_gateway(replace(stated, status=replace(stated.status, active=active)))

    def _fill(self, world: World, name: str) -> World:
        """Compute the status of a Gateway, as the controller does in a cluster."""
        gateway, stated = world.gateways.get(name), self._stated.get(name)
        if gateway is None or stated is None:
            return world
        nodes = [world.nodes[member] for member in sorted(self._members.get(name, ()))]
        if not nodes:
            # Without manifests of Nodes the nodes are those in the status of the Gateway's own manifest.
            nodes = [
                Node(info.node, name, True, (info.private_ip,) if info.private_ip else (), info.subnets)
                for info in stated.status.nodes
            ]
        # The highest epoch is kept while no endpoint is active, so that no epoch is used twice.
        known = self._epochs.setdefault(name, {})
        status = fill(gateway, nodes, self._gates, known)
        for endpoint in status.active:
            known[endpoint.type] = max(known.get(endpoint.type, 0), endpoint.epoch)
        return world.with_gateway(replace(gateway, status=status))


def _read(name: str, content: bytes | Problem, before: _ManifestFile) -> _ManifestFile:
    """Parse one file. Objects that are malformed now keep the version they had `before`."""
    if isinstance(content, Problem):
        return _ManifestFile(_stale(before.objects, None), (content,))
    # An editor or a full disk can leave an empty file: objects stay in force until the file is removed.
    if not content.strip():
        if not before.objects:
            return _ManifestFile(problems=(Problem("is empty", "remove it or fill it", file=name, fatal=False),))
        message = "is empty; its last objects stay in force"
        return _ManifestFile(_stale(before.objects, None), (Problem(message, "remove it or fill it", file=name),))
    loaded = load(content, name)
    problems = list(loaded.problems)
    objects: dict[ObjectKey, _Held] = {}
    broken: set[ObjectKey] = set()
    # An object whose name cannot be read may be any of those the file had: then all of them stay.
    nameless = bool(problems)
    for document in loaded.documents:
        for prefix, part in _parts(document):
            parsed = crd.parse(part, handwritten=True)
            problems += [
                replace(p, file=name, field=prefix + p.field, line=document.lines.line_of(prefix + p.field))
                for p in parsed.problems
            ]
            key = ObjectKey(parsed.kind, parsed.name)
            if parsed.value is not None and key in objects:
                line = objects[key].line
                problems.append(
                    Problem(
                        f"is already on line {line} of this file, which is used",
                        "keep one of the two, or give it another name",
                        f"{prefix}metadata.name",
                        f"{key.kind} {key.name}",
                        name,
                        document.lines.line_of(f"{prefix}metadata.name"),
                    )
                )
            elif parsed.value is not None:
                objects[key] = _same(before, key, parsed.value, document.lines.line_of(prefix.removesuffix(".")))
            elif any(p.fatal for p in parsed.problems):
                broken.add(key)
                nameless |= not key.name
    # Valid objects of this version take precedence over stale ones of the version before.
    objects = {**_stale(before.objects, None if nameless else broken), **objects}
    return _ManifestFile(objects, _bounded(problems, name))


def _same(before: _ManifestFile, key: ObjectKey, value: Gateway | Node | PeerObject, line: int) -> _Held:
    """Return the object held before if the content is equal: the caller compares by identity."""
    held = before.objects.get(key)
    if held is not None and not held.stale and held.value == value:
        return held
    return _Held(value, line)


def _stale(objects: dict[ObjectKey, _Held], only: set[ObjectKey] | None) -> dict[ObjectKey, _Held]:
    """The objects, or those in `only`, marked as stale."""
    return {
        key: held if held.stale else replace(held, stale=True)
        for key, held in objects.items()
        if only is None or key in only
    }


def _parts(document: Document) -> list[tuple[str, object]]:
    """The objects of a document, each with its field path as prefix: several for a List, as kubectl prints it."""
    value = document.value
    if isinstance(value, dict) and value.get("kind") in _LISTS and isinstance(value.get("items"), list):
        return [(f"items[{i}].", item) for i, item in enumerate(value["items"])]
    return [("", value)]


def _bounded(problems: list[Problem], name: str) -> tuple[Problem, ...]:
    """The first `MAX_PROBLEMS`, and one that counts the others."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    more = Problem(f"has {len(problems) - MAX_PROBLEMS} more problems", "correct the first ones", file=name)
    return (*problems[:MAX_PROBLEMS], more)
