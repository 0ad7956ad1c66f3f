"""Longest-prefix match, once for where packets go (`Routes`) and once for where they may come from (`Acceptance`).

One dict per prefix length, asked from the longest length present to the shortest: a look-up costs as many probes as
there are different lengths (a mesh has a handful), and adding, moving or removing a prefix one or two, whatever the
size of the table. A trie in Python would pay for every bit.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from ravenvpn.dataplane.contract import Prefix

Value = TypeVar("Value")
Peer = TypeVar("Peer", bound=Hashable)


class PrefixMap(Generic[Value]):
    """Prefixes of one family (`width`: 32 or 128 bits) to values. Addresses and networks are integers."""

    __slots__ = ("_by_length", "_search", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._by_length: dict[int, dict[int, Value]] = {}
        # (bits to shift out, table) from the longest prefix length to the shortest.
        self._search: list[tuple[int, dict[int, Value]]] = []

    def __setitem__(self, prefix: Prefix, value: Value) -> None:
        length = prefix.prefixlen
        table = self._by_length.get(length)
        if table is None:
            table = self._by_length[length] = {}
            self._order()
        table[int(prefix.network_address) >> (self.width - length)] = value

    def get(self, prefix: Prefix) -> Value | None:
        """The value of exactly this prefix."""
        table = self._by_length.get(prefix.prefixlen, {})
        return table.get(int(prefix.network_address) >> (self.width - prefix.prefixlen))

    def pop(self, prefix: Prefix) -> Value | None:
        length = prefix.prefixlen
        table = self._by_length.get(length)
        if table is None:
            return None
        value = table.pop(int(prefix.network_address) >> (self.width - length), None)
        if not table:
            del self._by_length[length]
            self._order()
        return value

    def longest(self, address: int) -> Value | None:
        """The value of the longest prefix that covers `address`."""
        for shift, table in self._search:
            value = table.get(address >> shift)
            if value is not None:
                return value
        return None

    def __len__(self) -> int:
        return sum(map(len, self._by_length.values()))

    def _order(self) -> None:
        self._search = [
            (self.width - length, self._by_length[length]) for length in sorted(self._by_length, reverse=True)
        ]


class _BothFamilies(Generic[Value]):
    __slots__ = ("v4", "v6")

    def __init__(self) -> None:
        self.v4: PrefixMap[Value] = PrefixMap(32)
        self.v6: PrefixMap[Value] = PrefixMap(128)

    def of(self, prefix: Prefix) -> PrefixMap[Value]:
        return self.v4 if prefix.version == 4 else self.v6


class Routes(Generic[Peer]):
    """Egress: which peers carry a prefix. `v4.longest(destination)[0]` is the one that does."""

    __slots__ = ("_held", "_maps")

    def __init__(self) -> None:
        self._maps: _BothFamilies[tuple[Peer, ...]] = _BothFamilies()
        self._held: dict[Peer, set[Prefix]] = {}  # so that forgetting a peer does not walk the table

    @property
    def v4(self) -> PrefixMap[tuple[Peer, ...]]:
        return self._maps.v4

    @property
    def v6(self) -> PrefixMap[tuple[Peer, ...]]:
        return self._maps.v6

    def set(self, prefix: Prefix, peers: tuple[Peer, ...]) -> None:
        """Give `prefix` to `peers`, whoever had it; nobody if empty."""
        table = self._maps.of(prefix)
        for peer in set(table.get(prefix) or ()):
            self._release(peer, prefix)
        if not peers:
            table.pop(prefix)
            return
        table[prefix] = peers
        for peer in peers:
            self._held.setdefault(peer, set()).add(prefix)

    def remove_peer(self, peer: Peer) -> None:
        """Take this peer out of every prefix; one that it held alone goes."""
        for prefix in tuple(self._held.get(peer, ())):
            others = tuple(other for other in self._maps.of(prefix).get(prefix) or () if other != peer)
            self.set(prefix, others)

    def _release(self, peer: Peer, prefix: Prefix) -> None:
        held = self._held[peer]
        held.discard(prefix)
        if not held:
            del self._held[peer]


class Acceptance(Generic[Peer]):
    """Ingress: the peers that may send from a prefix. `v4.longest(source)` holds the sender, or the packet goes.

    The look-up is across all peers: a peer with a shorter prefix may not send from inside another's longer one.
    """

    __slots__ = ("_held", "_maps")

    def __init__(self) -> None:
        self._maps: _BothFamilies[frozenset[Peer]] = _BothFamilies()
        self._held: dict[Peer, set[Prefix]] = {}

    @property
    def v4(self) -> PrefixMap[frozenset[Peer]]:
        return self._maps.v4

    @property
    def v6(self) -> PrefixMap[frozenset[Peer]]:
        return self._maps.v6

    def add(self, peer: Peer, prefix: Prefix) -> None:
        table = self._maps.of(prefix)
        table[prefix] = (table.get(prefix) or frozenset()) | {peer}
        self._held.setdefault(peer, set()).add(prefix)

    def remove(self, peer: Peer, prefix: Prefix) -> None:
        """Nothing happens if the peer does not hold it."""
        held = self._held.get(peer)
        if held is None or prefix not in held:
            return
        held.discard(prefix)
        if not held:
            del self._held[peer]
        table = self._maps.of(prefix)
        left = (table.get(prefix) or frozenset()) - {peer}
        if left:
            table[prefix] = left
        else:
            table.pop(prefix)

    def remove_peer(self, peer: Peer) -> None:
        for prefix in tuple(self._held.get(peer, ())):
            self.remove(peer, prefix)
