"""Endpoints at which peers had their last session, saved on disk, so that a restarted gateway can call NATed peers.

The address of a NATed peer stands in no manifest: it is known only from the peer's own packets. Without this file a
restarted public gateway would wait until each NATed peer notices the loss and calls by itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from ravenvpn import atomic_file
from ravenvpn.agent.resolve import is_literal
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.tunnel.peer import PeerStatus

log = logging.getLogger(__name__)

VERSION = 1  # of the file's format
MAX_FILE_BYTES = 4 << 20  # read at most; 1,000 peers take about 70 kB


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One endpoint as the file holds it."""

    host: str  # IPv4 or IPv6 address
    port: int  # UDP


class _EndpointsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file, as JSON."""

    version: int
    peers: dict[str, _Seen]  # by node name


class LastSeen(dict[str, Endpoint]):
    """Map of peer name to endpoint, with a file behind it.

    Owned by the event loop; only `save` may run in another thread. A file that cannot be parsed is renamed to
    `….broken` with a warning and the map starts empty: it is an optimisation, never a reason not to start.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_read(path))
        self._path = path
        self._written = dict(self)  # content of the file
        self._failing = False  # the last write failed, so that the warning is logged once

    def observe(self, statuses: Iterable[PeerStatus]) -> None:
        """Record the endpoint of every peer that has a session."""
        for status in statuses:
            if status.endpoint is not None and status.session_age is not None:
                self[status.settings.name] = status.endpoint

    def retain(self, names: Collection[str]) -> None:
        """Drop the peers that are not among `names`."""
        for name in [name for name in self if name not in names]:
            del self[name]

    @property
    def unsaved(self) -> bool:
        """Whether the file differs from the map."""
        return self != self._written

    def save(self) -> None:
        """Write the file if the map changed: atomically and with mode 0600.

        An OSError is logged once, not raised. May run in a thread while the loop observes: the map is copied first.
        """
        now = dict(self)
        if now == self._written:
            return
        content = _EndpointsFile(
            VERSION, {name: _Seen(where.host, where.port) for name, where in sorted(now.items())}
        )
        try:
            # Not durable: a peer that moves would cost an fsync a second, and after a power loss an old endpoint is
            # as good as none.
            atomic_file.replace(self._path, msgspec.json.encode(content), durable=False)
        except OSError as error:
            if not self._failing:
                log.warning(
                    "%s cannot be written: %s; after a restart NATed peers must call first; check state_dir",
                    self._path,
                    error,
                )
            self._failing = True
        else:
            self._written, self._failing = now, False


def _read(path: Path) -> dict[str, Endpoint]:
    """Return the content of the file, empty where it is absent or was set aside as `….broken`."""
    try:
        with path.open("rb") as stream:
            content = msgspec.json.decode(stream.read(MAX_FILE_BYTES), type=_EndpointsFile)
        if content.version != VERSION:
            raise ValueError(f"version {content.version}")
        for seen in content.peers.values():
            if not is_literal(seen.host) or not 0 < seen.port < 65536:
                raise ValueError(f"not an endpoint: {seen.host}:{seen.port}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("%s cannot be read: %s; it is set aside as %s.broken", path, error, path.name)
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".broken"))
        return {}
    return {name: Endpoint(seen.host, seen.port) for name, seen in content.peers.items()}
