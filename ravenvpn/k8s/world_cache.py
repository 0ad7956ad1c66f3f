"""The saved world: the last good objects of the cluster on this node's disk, for starts without the API server.

One file, replaced atomically: a line of JSON (`_Head`) with the checksum of the rest, then one line for each object.
The file holds no secret; its mode is 0600 nevertheless, since it shows how the whole mesh is built. A file that is
truncated, changed or of a newer format is renamed, so that it can be examined, and never used.

    {"ravenvpn_world":1,"cluster":"<UID>","mesh":"<UID>",...,"count":2,"sha256":"..."}
    ["4711",["gateways"],{"apiVersion":"raven.openyurt.io/v1beta1","kind":"Gateway",...}]
    ["4712",["peers","region"],{"apiVersion":"ravenvpn.io/v1alpha1","kind":"Peer",...}]

An object line has its resourceVersion, the feeds that show it, and its JSON.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ravenvpn import atomic_file
from ravenvpn.k8s.assembly import Feed, SavedObject

FORMAT = 1  # raised when an older ravenvpn could misread the file
MAX_BYTES = 256 << 20  # of a file that is read; bounds memory


class _Head(msgspec.Struct, forbid_unknown_fields=False):
    """First line of the file. Fields that a later version adds are ignored."""

    ravenvpn_world: int  # FORMAT
    cluster: str = ""
    mesh: str = ""
    server: str = ""
    api: list[tuple[str, int]] = []
    saved_at: float = 0.0
    versions: dict[str, str] = {}  # by Feed
    count: int = 0  # objects, one a line
    sha256: str = ""  # of everything after the first line, in hexadecimal


class _Line(msgspec.Struct, array_like=True):
    """One object."""

    version: str
    feeds: list[Feed]
    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class SavedWorld:
    """Content of the file."""

    cluster: str  # UID of namespace kube-system
    mesh: str  # name of the mesh
    server: str = ""  # URL of the API server
    api: tuple[tuple[str, int], ...] = ()  # addresses and ports of the API server
    saved_at: float = 0.0  # Unix seconds
    versions: dict[Feed, str] = field(default_factory=dict)  # resourceVersion that each feed had reached
    objects: tuple[SavedObject, ...] = ()


class WorldCache:
    """The file. All methods block; `store` may be called in several threads, one write at a time."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist; its folder must, before the first `store`."""
        self.path = Path(path)
        self.complaint = ""  # why the last `load` returned None; "" if there was no file
        self.size = 0  # bytes, of the file as last read or written
        self._storing = threading.Lock()

    def load(self) -> SavedWorld | None:
        """Return the content; None, and the reason in `complaint`, if it cannot be read or used. Never raises."""
        self.complaint = ""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.complaint = f"{self.path} cannot be read: {error.strerror or error}"
            return None
        self.size = len(content)
        try:
            return _decoded(content)
        except _NewerError as error:
            self._set_aside("newer", str(error))
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            self._set_aside("corrupt", str(error))
        return None

    def store(self, saved: SavedWorld) -> None:
        """Replace the file atomically. Raises OSError, and leaves the old file, if that fails."""
        with self._storing:
            content = _encoded(saved)
            atomic_file.replace(self.path, content)
            self.size = len(content)

    def reject(self, why: str) -> None:
        """Rename the file after `load`, because its content turned out to be unusable; `why` goes to `complaint`."""
        self._set_aside("corrupt", why)

    def _set_aside(self, suffix: str, why: str) -> None:
        """Rename the file to `<name>.<suffix>`; a second one of that name replaces the first."""
        aside = self.path.with_name(f"{self.path.name}.{suffix}")
        try:
            os.replace(self.path, aside)
        except OSError as error:
            self.complaint = f"the saved world {self.path} is not used: {why}; and cannot be moved: {error.strerror}"
        else:
            self.complaint = f"the saved world is not used: {why}; it is kept as {aside}"


class _NewerError(Exception):
    """The file was written by a newer version of ravenvpn."""


def _encoded(saved: SavedWorld) -> bytes:
    """Content of the file. Documents are copied as they are (`msgspec.Raw`), without decoding them."""
    lines = [
        msgspec.json.encode(_Line(obj.version, sorted(obj.feeds), msgspec.Raw(obj.document))) for obj in saved.objects
    ]
    body = b"".join(line + b"\n" for line in lines)
    head = _Head(
        FORMAT,
        saved.cluster,
        saved.mesh,
        saved.server,
        list(saved.api),
        saved.saved_at,
        {feed.value: version for feed, version in saved.versions.items()},
        len(lines),
        hashlib.sha256(body).hexdigest(),
    )
    return msgspec.json.encode(head) + b"\n" + body


def _decoded(content: bytes) -> SavedWorld:
    """Parse the file. Raises _NewerError for a newer format, ValueError or MsgspecError if it is damaged.

    The format is checked first: a newer version may compute the checksum in another way."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    first, _, body = content.partition(b"\n")
    head = msgspec.json.decode(first, type=_Head)
    if head.ravenvpn_world > FORMAT:
        raise _NewerError(f"its format {head.ravenvpn_world} is newer than {FORMAT}, which this ravenvpn reads")
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise ValueError("it is truncated or changed: the checksum does not match")
    decoder = msgspec.json.Decoder(_Line)
    lines = [decoder.decode(line) for line in body.splitlines()]
    if len(lines) != head.count:
        raise ValueError(f"it holds {len(lines)} objects instead of {head.count}")
    return SavedWorld(
        cluster=head.cluster,
        mesh=head.mesh,
        server=head.server,
        api=tuple(head.api),
        saved_at=head.saved_at,
        versions={Feed(feed): version for feed, version in head.versions.items()},
        objects=tuple(SavedObject(bytes(line.object), line.version, frozenset(line.feeds)) for line in lines),
    )
