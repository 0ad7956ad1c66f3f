"""Cryptokey routing (WireGuard whitepaper §2): which peer a destination goes to, which peers a source may come from.

WireGuard has one table, the allowed IPs, for both. Here they are two, `Routes` for packets that leave and
`Acceptance` for packets that arrive, because the two ends of a tunnel never change a prefix at the same instant: a
prefix is accepted from its new peer before it is routed there, and from its old peer for a while after.
"""

from __future__ import annotations

from collections.abc import Hashable, Set
from typing import Generic, TypeVar

from ravenvpn.prefixes import Prefix, PrefixMap

Peer = TypeVar("Peer", bound=Hashable)


class Routes(Generic[Peer]):
    """The peers that carry packets to a prefix, best first. Cost of a change: O(peers of the prefix)."""

    __slots__ = ("_by_prefix", "_prefixes_of")

    def __init__(self) -> None:
        self._by_prefix: PrefixMap[tuple[Peer, ...]] = PrefixMap()
        self._prefixes_of: dict[Peer, set[Prefix]] = {}  # the reverse, so that removing a peer walks no table

    def __len__(self) -> int:
        """Return the number of prefixes with a peer."""
        return len(self._by_prefix)

    def get(self, prefix: Prefix) -> tuple[Peer, ...]:
        """Return the peers of exactly this prefix; empty if there are none."""
        return self._by_prefix.get(prefix) or ()

    def prefixes_of(self, peer: Peer) -> Set[Prefix]:
        """Return the prefixes this peer carries, as a view that later changes invalidate."""
        return self._prefixes_of.get(peer) or frozenset()

    def lookup(self, destination: bytes) -> tuple[Peer, ...]:
        """Return the peers of the longest prefix over the address (4 or 16 bytes); empty if no prefix contains it."""
        entry = self._by_prefix.longest_match_packed(destination)
        return () if entry is None else entry[1]

    def set(self, prefix: Prefix, peers: tuple[Peer, ...]) -> None:
        """Route `prefix` to `peers` and no others; remove the prefix if `peers` is empty."""
        for peer in set(self.get(prefix)):
            self._release(peer, prefix)
        if not peers:
            self._by_prefix.pop(prefix)
            return
        self._by_prefix[prefix] = peers
        for peer in peers:
            self._prefixes_of.setdefault(peer, set()).add(prefix)

    def remove_peer(self, peer: Peer) -> None:
        """Take this peer out of every prefix; a prefix without other peers is removed."""
        for prefix in tuple(self.prefixes_of(peer)):
            self.set(prefix, tuple(other for other in self.get(prefix) if other != peer))

    def _release(self, peer: Peer, prefix: Prefix) -> None:
        prefixes = self._prefixes_of[peer]
        prefixes.discard(prefix)
        if not prefixes:
            del self._prefixes_of[peer]


class Acceptance(Generic[Peer]):
    """The peers that may send from a prefix.

    The look-up is across all peers: a peer with a shorter prefix may not send from inside another peer's longer one.
    """

    __slots__ = ("_by_prefix", "_prefixes_of")

    def __init__(self) -> None:
        self._by_prefix: PrefixMap[frozenset[Peer]] = PrefixMap()
        self._prefixes_of: dict[Peer, set[Prefix]] = {}

    def get(self, prefix: Prefix) -> frozenset[Peer]:
        """Return the peers that exactly this prefix is accepted from; empty if there are none."""
        return self._by_prefix.get(prefix) or frozenset()

    def prefixes_of(self, peer: Peer) -> Set[Prefix]:
        """Return the prefixes accepted from this peer, as a view that later changes invalidate."""
        return self._prefixes_of.get(peer) or frozenset()

    def lookup(self, source: bytes) -> frozenset[Peer]:
        """Return the peers of the longest prefix over the address (4 or 16 bytes); empty if no prefix contains it."""
        entry = self._by_prefix.longest_match_packed(source)
        return frozenset() if entry is None else entry[1]

    def add(self, peer: Peer, prefix: Prefix) -> None:
        """Accept the prefix from this peer too; no effect if it is accepted already."""
        self._by_prefix[prefix] = self.get(prefix) | {peer}
        self._prefixes_of.setdefault(peer, set()).add(prefix)

    def remove(self, peer: Peer, prefix: Prefix) -> None:
        """Accept the prefix from this peer no more; no effect if it is not accepted from it."""
        prefixes = self._prefixes_of.get(peer)
        if prefixes is None or prefix not in prefixes:
            return
        prefixes.discard(prefix)
        if not prefixes:
            del self._prefixes_of[peer]
        left = self.get(prefix) - {peer}
        if left:
            self._by_prefix[prefix] = left
        else:
            self._by_prefix.pop(prefix)

    def remove_peer(self, peer: Peer) -> None:
        """Take this peer out of every prefix; a prefix without other peers is removed."""
        for prefix in tuple(self.prefixes_of(peer)):
            self.remove(peer, prefix)
