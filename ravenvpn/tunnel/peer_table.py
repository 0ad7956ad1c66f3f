"""All peers of a device, found by id, name and public key; the only way to change one.

A peer is changed in one way only:

    with peers.change(peer_id) as peer:
        ...

Leaving the block commits the change to the `PeerSchedule`: the peer's next deadline, and a session that came or went.
Everything else here returns `PeerView`, through which the type checker refuses changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from ravenvpn.crypto.keys import PublicKey
from ravenvpn.dataplane.contract import PeerId
from ravenvpn.tunnel.peer import Peer, PeerSettings, PeerView
from ravenvpn.tunnel.peer_schedule import PeerSchedule


class PeerTable:
    """Every look-up is O(1). `len()` is the number of peers, iteration goes by age."""

    def __init__(self, schedule: PeerSchedule) -> None:
        self._schedule = schedule
        self._by_id: dict[PeerId, Peer] = {}
        self._by_name: dict[str, Peer] = {}
        self._by_key: dict[PublicKey, Peer] = {}
        self._last_id = 0

    def __iter__(self) -> Iterator[PeerView]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, peer: object) -> bool:
        """Return whether there is a peer of this id."""
        return peer in self._by_id

    def lookup_name(self, name: str) -> PeerView | None:
        """Return the peer of this name, None if there is none."""
        return self._by_name.get(name)

    def lookup_key(self, key: PublicKey) -> PeerView | None:
        """Return the peer that owns this public key, None if there is none."""
        return self._by_key.get(key)

    def id_of(self, name: str) -> PeerId:
        """Return the id of the peer of this name. Raises KeyError with the name if there is none."""
        return self._by_name[name].id

    def new_id(self) -> PeerId:
        """Return an id that was never used before, not even before a hand-over."""
        self._last_id += 1
        return PeerId(self._last_id)

    def add(self, peer: Peer) -> None:
        """Add a peer and schedule its deadline, if it has one. ValueError if another peer owns one of its keys."""
        self._check_keys(peer.settings)
        self._by_id[peer.id] = peer
        self._by_name[peer.settings.name] = peer
        self._by_key.update(dict.fromkeys(peer.settings.public_keys, peer))
        self._last_id = max(self._last_id, peer.id)
        self._schedule.commit(peer)

    def change(self, peer: PeerId) -> PeerTransaction:
        """Return the context manager that lends the peer of this id for changes. KeyError if there is none."""
        return PeerTransaction(self._by_id[peer], self._schedule)

    def replace_settings(self, peer: Peer, settings: PeerSettings) -> None:
        """Replace the settings of a peer, which keeps its name. ValueError, and no change, if a key is another's."""
        self._check_keys(settings)
        for key in set(peer.settings.public_keys):
            del self._by_key[key]
        self._by_key.update(dict.fromkeys(settings.public_keys, peer))
        peer.settings = settings

    def remove(self, peer: PeerId) -> None:
        """Remove a peer with its deadline and its queued initiation; not inside `change`. KeyError if unknown."""
        removed = self._by_id.pop(peer)
        del self._by_name[removed.settings.name]
        for key in set(removed.settings.public_keys):
            del self._by_key[key]
        self._schedule.cancel(peer)

    def _check_keys(self, settings: PeerSettings) -> None:
        for key in settings.public_keys:
            owner = self._by_key.get(key)
            if owner is not None and owner.settings.name != settings.name:
                raise ValueError(
                    f"peer {settings.name!r}: public key {key} belongs to peer {owner.settings.name!r} already"
                )


class PeerTransaction:
    """Context manager of `PeerTable.change`. A class because a generator costs three times as much, per event."""

    __slots__ = ("_peer", "_schedule")

    def __init__(self, peer: Peer, schedule: PeerSchedule) -> None:
        self._peer = peer
        self._schedule = schedule

    def __enter__(self) -> Peer:
        return self._peer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, also after an exception: the changes made before it are in force."""
        self._schedule.commit(self._peer)
