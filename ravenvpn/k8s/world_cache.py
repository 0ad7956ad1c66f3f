"""The last good world on this node's disk: what an agent goes by while it cannot reach the API server.

One file, replaced whole: a line of JSON that says what follows, with its checksum, then one line for each object. No
secret is in it, and yet it is the owner's alone, since it tells how the whole mesh is built. What is not whole, or is
of a newer version of ravenvpn, is set aside under another name, so that it can be looked at, and never believed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ravenvpn import atomic_file
from ravenvpn.k8s.assembly import Feed, Kept

FORMAT = 1
MAX_BYTES = 256 << 20


class _Head(msgspec.Struct, forbid_unknown_fields=False):
    ravenvpn_world: int  # FORMAT
    cluster: str = ""
    mesh: str = ""
    server: str = ""
    api: list[tuple[str, int]] = []
    saved_at: float = 0.0
    versions: dict[str, str] = {}
    count: int = 0
    sha256: str = ""


class _Line(msgspec.Struct, array_like=True):
    version: str
    feeds: list[Feed]
    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Saved:
    """`cluster` is the UID of its namespace kube-system, `mesh` the mesh's name, `api` the API server's addresses and
    ports, `versions` how far each feed had come (resourceVersion), `saved_at` Unix seconds."""

    cluster: str
    mesh: str
    server: str = ""
    api: tuple[tuple[str, int], ...] = ()
    saved_at: float = 0.0
    versions: dict[Feed, str] = field(default_factory=dict)
    objects: tuple[Kept, ...] = ()


class WorldCache:
    """Blocking; `complaint` says why the last `load` came to nothing, if it was not just absence."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.complaint = ""
        self.size = 0  # bytes, of the last that was read or written
        self._storing = threading.Lock()

    def load(self) -> Saved | None:
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

    def store(self, saved: Saved) -> None:
        """Replace the file; OSError where that cannot be done, and the old one stays."""
        with self._storing:
            content = _encoded(saved)
            atomic_file.replace(self.path, content)
            self.size = len(content)

    def reject(self, why: str) -> None:
        """It could be read and is of no use after all."""
        self._set_aside("corrupt", why)

    def _set_aside(self, suffix: str, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.{suffix}")
        try:
            os.replace(self.path, aside)
        except OSError as error:
            self.complaint = f"the saved world {self.path} is not used: {why}; and cannot be moved: {error.strerror}"
        else:
            self.complaint = f"the saved world is not used: {why}; it is kept as {aside}"


class _NewerError(Exception):
    pass


def _encoded(saved: Saved) -> bytes:
    lines = [
        msgspec.json.encode(_Line(kept.version, sorted(kept.feeds), msgspec.Raw(kept.document)))
        for kept in saved.objects
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


def _decoded(content: bytes) -> Saved:
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    first, _, body = content.partition(b"\n")
    head = msgspec.json.decode(first, type=_Head)
    if head.ravenvpn_world > FORMAT:
        raise _NewerError(f"it is of format {head.ravenvpn_world}, and this ravenvpn reads {FORMAT}")
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise ValueError("it is truncated or changed: its checksum is another")
    decoder = msgspec.json.Decoder(_Line)
    lines = [decoder.decode(line) for line in body.splitlines()]
    if len(lines) != head.count:
        raise ValueError(f"it holds {len(lines)} objects and should hold {head.count}")
    return Saved(
        cluster=head.cluster,
        mesh=head.mesh,
        server=head.server,
        api=tuple(head.api),
        saved_at=head.saved_at,
        versions={Feed(feed): version for feed, version in head.versions.items()},
        objects=tuple(Kept(bytes(line.object), line.version, frozenset(line.feeds)) for line in lines),
    )
