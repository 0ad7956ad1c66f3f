"""Where peers were last seen, kept on disk: a gateway that restarts calls those who cannot be named."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from ravenvpn.agent.resolve import is_literal
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.tunnel.peer import PeerStatus

log = logging.getLogger(__name__)

VERSION = 1
MAX_FILE_BYTES = 4 << 20


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    port: int


class _EndpointsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    peers: dict[str, _Seen]


class LastSeen(dict[str, Endpoint]):
    """Peer name → endpoint, with a file behind it. A file that cannot be read is set aside, never fatal."""

    def __init__(self, path: Path) -> None:
        super().__init__(_read(path))
        self._path = path
        self._written = dict(self)
        self._failing = False

    def learn(self, statuses: Iterable[PeerStatus]) -> None:
        """Remember the endpoint of every peer that has a session."""
        for status in statuses:
            if status.endpoint is not None and status.session_age is not None:
                self[status.settings.name] = status.endpoint

    def keep_only(self, names: Collection[str]) -> None:
        """Forget peers that are no longer planned."""
        for name in [name for name in self if name not in names]:
            del self[name]

    @property
    def unsaved(self) -> bool:
        return self != self._written

    def save(self) -> None:
        """Write the file if something changed, in one step and for the owner only. Failure is logged, not raised."""
        now = dict(self)  # in one step: the loop may learn while a thread saves
        if now == self._written:
            return
        content = _EndpointsFile(
            VERSION, {name: _Seen(where.host, where.port) for name, where in sorted(now.items())}
        )
        scratch = self._path.with_name(f".{self._path.name}.new")
        try:
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(msgspec.json.encode(content))
            scratch.replace(self._path)
        except OSError as error:
            if not self._failing:
                log.warning("cannot keep the peers' endpoints in %s: %s", self._path, error)
            self._failing = True
        else:
            self._written, self._failing = now, False


def _read(path: Path) -> dict[str, Endpoint]:
    try:
        with path.open("rb") as stream:
            content = msgspec.json.decode(stream.read(MAX_FILE_BYTES), type=_EndpointsFile)
        if content.version != VERSION:
            raise ValueError(f"version {content.version}")
        for seen in content.peers.values():
            if not is_literal(seen.host) or not 0 < seen.port < 65536:
                raise ValueError(f"no endpoint: {seen.host}:{seen.port}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("set aside %s, which cannot be read: %s", path, error)
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".broken"))
        return {}
    return {name: Endpoint(seen.host, seen.port) for name, seen in content.peers.items()}
