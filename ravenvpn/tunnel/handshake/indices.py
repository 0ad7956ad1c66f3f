"""Table of the 32-bit receiver indices by which a message names a handshake or session of ours.

Whitepaper §5.4: the receiver chooses the index at random (a sequence would tell an observer how many sessions there
are). Indices are unique over handshakes and sessions together. One table per device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ravenvpn.dataplane.contract import PeerId


class IndexEntry(NamedTuple):
    """The owner of an index."""

    peer: PeerId
    keypair: bool  # False while only a handshake uses the index, True once a session has it


class IndexTable:
    """Index → peer. All operations are O(1). `len()` is the number of indices in use."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """`random(n)` returns n random bytes; it is called with 4."""
        self._random = random
        self._entries: dict[int, IndexEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def allocate(self, peer: PeerId) -> int:
        """Return an unused random index, now in use for a handshake of this peer."""
        index = int.from_bytes(self._random(4), "little")
        while index in self._entries:
            index = int.from_bytes(self._random(4), "little")
        self._entries[index] = IndexEntry(peer, keypair=False)
        return index

    def promote(self, index: int) -> None:
        """Mark the index as used by a session: the handshake completed. Replaced in place, so never free between."""
        self._entries[index] = IndexEntry(self._entries[index].peer, keypair=True)

    def adopt(self, index: int, peer: PeerId) -> None:
        """Enter the index of a session from before a restart. ValueError if the index is in use.

        For session hand-over on restart; no caller in the agent yet.
        """
        if index in self._entries:
            raise ValueError(f"index {index:#010x} is in use")
        self._entries[index] = IndexEntry(peer, keypair=True)

    def lookup(self, index: int) -> IndexEntry | None:
        """Return the owner of the index, None if it is not in use."""
        return self._entries.get(index)

    def release(self, index: int, peer: PeerId) -> bool:
        """Free the index if this peer owns it; return whether it did."""
        entry = self._entries.get(index)
        if entry is None or entry.peer != peer:
            return False
        del self._entries[index]
        return True
