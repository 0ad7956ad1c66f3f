"""All peers of a device, found by id, by name and by public key."""

from __future__ import annotations

from collections.abc import Iterator

from ravenvpn.crypto.keys import PublicKey
from ravenvpn.dataplane.contract import PeerId
from ravenvpn.tunnel.peer import Peer, PeerSettings


class PeerTable:
    def __init__(self) -> None:
        self._by_id: dict[PeerId, Peer] = {}
        self._by_name: dict[str, Peer] = {}
        self._by_key: dict[PublicKey, Peer] = {}
        self._last_id = 0

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def next_id(self) -> PeerId:
        """Never given twice, also across a hand-over."""
        self._last_id += 1
        return PeerId(self._last_id)

    def add(self, peer: Peer) -> None:
        self.check_keys(peer.settings)
        self._by_id[peer.id] = peer
        self._by_name[peer.settings.name] = peer
        self._by_key.update(dict.fromkeys(peer.settings.public_keys, peer))
        self._last_id = max(self._last_id, peer.id)

    def change(self, peer: Peer, settings: PeerSettings) -> None:
        """Replace the settings of a peer of that name. ValueError, and no change, if a key is another's."""
        self.check_keys(settings)
        for key in set(peer.settings.public_keys):
            del self._by_key[key]
        self._by_key.update(dict.fromkeys(settings.public_keys, peer))
        peer.settings = settings

    def remove(self, peer: Peer) -> None:
        del self._by_id[peer.id]
        del self._by_name[peer.settings.name]
        for key in set(peer.settings.public_keys):
            del self._by_key[key]

    def check_keys(self, settings: PeerSettings) -> None:
        for key in settings.public_keys:
            owner = self._by_key.get(key)
            if owner is not None and owner.settings.name != settings.name:
                raise ValueError(f"public key {key} of peer {settings.name!r} is already {owner.settings.name!r}'s")

    def get(self, peer: PeerId) -> Peer | None:
        return self._by_id.get(peer)

    def named(self, name: str) -> Peer | None:
        return self._by_name.get(name)

    def with_key(self, key: PublicKey) -> Peer | None:
        return self._by_key.get(key)
