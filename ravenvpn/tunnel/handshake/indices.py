"""Indices: the 32-bit names by which a receiver finds the handshake or session a message belongs to.

Whitepaper §5.4: chosen by the receiver, at random (a sequence would tell an observer how many sessions there are),
unique over handshakes and sessions alike. One table per device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ravenvpn.dataplane.contract import PeerId


class IndexEntry(NamedTuple):
    """Whose an index is. `keypair` is False while only a handshake holds it."""

    peer: PeerId
    keypair: bool


class IndexTable:
    """Index → peer. `random` is asked for four bytes at a time."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._entries: dict[int, IndexEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def allocate(self, peer: PeerId) -> int:
        """A fresh index for a handshake of this peer."""
        index = int.from_bytes(self._random(4), "little")
        while index in self._entries:
            index = int.from_bytes(self._random(4), "little")
        self._entries[index] = IndexEntry(peer, keypair=False)
        return index

    def promote(self, index: int) -> None:
        """The handshake became a session and keeps its index (swapped in place: nothing can slip in between)."""
        self._entries[index] = IndexEntry(self._entries[index].peer, keypair=True)

    def adopt(self, index: int, peer: PeerId) -> None:
        """A session from before a restart. ValueError if the index is taken."""
        if index in self._entries:
            raise ValueError(f"index {index:#010x} is in use")
        self._entries[index] = IndexEntry(peer, keypair=True)

    def find(self, index: int) -> IndexEntry | None:
        return self._entries.get(index)

    def release(self, index: int, peer: PeerId) -> bool:
        """Free it if it is still this peer's; says whether it was."""
        entry = self._entries.get(index)
        if entry is None or entry.peer != peer:
            return False
        del self._entries[index]
        return True
