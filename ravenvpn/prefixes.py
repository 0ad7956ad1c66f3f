"""IPv4 and IPv6 prefixes by containment: longest-prefix match, the prefixes over an address, the prefixes inside one.

The one look-up structure of the package. The data plane uses it for cryptokey routing, the mesh for overlapping
claims, the node for the addresses of other regions. No I/O, no clock; not thread-safe, except that reading from
several threads is safe while no thread writes.

There is one dict per family and prefix length, searched from the longest length present to the shortest. A look-up
costs one dict probe per distinct length (a mesh has a handful), and adding or removing a prefix costs one or two,
whatever the size of the table. A trie in Python costs a step per bit. `inside` needs an order as well: it keeps a
sorted list of keys, built by its first call and maintained from then on.

CIDR prefixes are nested or disjoint, never partly overlapping. So every prefix that shares an address with P is
either in `covering(P)` or in `inside(P)`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

Value = TypeVar("Value")
Entry = tuple[Prefix, Value]

# A network number and a prefix length as one integer. Keys sort by network, then by length, so a prefix stands
# directly before the prefixes inside it.
_Key = int
_LENGTH_BITS = 8

# More new keys than this are appended and sorted at once; fewer are inserted one by one, each a memmove.
_SORT_THRESHOLD = 64


def overlaps(one: Prefix, other: Prefix) -> bool:
    """Return True if the prefixes share an address. Prefixes of different families never do.

    The same answer as `IPv4Network.overlaps`, without the address objects that method creates.
    """
    if one.version != other.version:
        return False
    difference = int(one.network_address) ^ int(other.network_address)
    return difference >> (one.max_prefixlen - min(one.prefixlen, other.prefixlen)) == 0


def sort_key(prefix: Prefix) -> tuple[int, int, int]:
    """Return the key of the order in which prefixes are shown: IPv4 first, then by network, the shorter first."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


class PrefixMap(Generic[Value]):
    """A mapping of prefixes of both families to values, with look-ups by containment.

    Addresses are ipaddress objects, or 4 or 16 bytes in network byte order in the methods named `…_packed`, for
    callers that read them from packets. Iteration is in no particular order.
    """

    __slots__ = ("_v4", "_v6")

    def __init__(self, entries: Iterable[Entry[Value]] = ()) -> None:
        self._v4: _FamilyTable[Value] = _FamilyTable(32)
        self._v6: _FamilyTable[Value] = _FamilyTable(128)
        for prefix, value in entries:
            self[prefix] = value

    def __setitem__(self, prefix: Prefix, value: Value) -> None:
        self._table(prefix).put(prefix, value)

    def __getitem__(self, prefix: Prefix) -> Value:
        """Return the value of exactly this prefix. Raises KeyError."""
        entry = self._table(prefix).exact(prefix)
        if entry is None:
            raise KeyError(prefix)
        return entry[1]

    def __delitem__(self, prefix: Prefix) -> None:
        """Remove exactly this prefix. Raises KeyError."""
        if self._table(prefix).remove(prefix) is None:
            raise KeyError(prefix)

    def __contains__(self, prefix: object) -> bool:
        """Return True if exactly this prefix is a key; see `longest_match` for containment."""
        return isinstance(prefix, Prefix) and self._table(prefix).exact(prefix) is not None

    def __len__(self) -> int:
        return len(self._v4) + len(self._v6)

    def __iter__(self) -> Iterator[Prefix]:
        for prefix, _ in self.items():
            yield prefix

    def items(self) -> Iterator[Entry[Value]]:
        """Yield (prefix, value) of every prefix. The map must not change meanwhile."""
        for family in (self._v4, self._v6):
            for table in family.by_length.values():
                yield from table.values()

    def get(self, prefix: Prefix) -> Value | None:
        """Return the value of exactly this prefix, None if it is not a key."""
        entry = self._table(prefix).exact(prefix)
        return None if entry is None else entry[1]

    def pop(self, prefix: Prefix) -> Value | None:
        """Remove exactly this prefix and return its value, None if it was not a key."""
        entry = self._table(prefix).remove(prefix)
        return None if entry is None else entry[1]

    def longest_match(self, address: Address) -> Entry[Value] | None:
        """Return (prefix, value) of the longest prefix that contains `address`, None if no prefix does."""
        return (self._v4 if address.version == 4 else self._v6).longest(int(address))

    def longest_match_packed(self, address: bytes) -> Entry[Value] | None:
        """Return `longest_match` of an address given as 4 or 16 bytes."""
        return (self._v4 if len(address) == 4 else self._v6).longest(int.from_bytes(address, "big"))

    def covering(self, prefix: Prefix) -> list[Entry[Value]]:
        """Return the entries whose prefix contains `prefix` (or equals it), the shortest first."""
        return self._table(prefix).covering(int(prefix.network_address), prefix.prefixlen)

    def inside(self, prefix: Prefix) -> list[Entry[Value]]:
        """Return the entries whose prefix lies in `prefix` (or equals it), by network, the shorter first.

        O(log n + entries returned), plus one sort if many prefixes were added since the last call.
        """
        return self._table(prefix).inside(int(prefix.network_address), prefix.prefixlen)

    def copy(self) -> PrefixMap[Value]:
        """Return an independent map with the same entries. A dict copy per prefix length: about 1 ms for 20,000."""
        new: PrefixMap[Value] = PrefixMap()
        new._v4, new._v6 = self._v4.copy(), self._v6.copy()
        return new

    def _table(self, prefix: Prefix) -> _FamilyTable[Value]:
        return self._v4 if prefix.version == 4 else self._v6


class PrefixSet:
    """A set of prefixes of both families, for the question whether an address lies in one of them."""

    __slots__ = ("_map",)

    def __init__(self, prefixes: Iterable[Prefix] = ()) -> None:
        self._map: PrefixMap[None] = PrefixMap()
        self.update(prefixes)

    def add(self, prefix: Prefix) -> None:
        """Add a prefix; no effect if it is a member."""
        self._map[prefix] = None

    def discard(self, prefix: Prefix) -> None:
        """Remove a prefix; no effect if it is not a member."""
        self._map.pop(prefix)

    def update(self, prefixes: Iterable[Prefix]) -> None:
        """Add every prefix of an iterable, which may be another PrefixSet."""
        for prefix in prefixes:
            self._map[prefix] = None

    def __or__(self, other: Iterable[Prefix]) -> PrefixSet:
        """Return a new set with the members of both."""
        both = PrefixSet()
        both._map = self._map.copy()
        both.update(other)
        return both

    def __contains__(self, prefix: object) -> bool:
        """Return True if exactly this prefix is a member; see `covers` for addresses."""
        return prefix in self._map

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def covers(self, address: Address) -> bool:
        """Return True if a member contains `address`."""
        return self._map.longest_match(address) is not None

    def covers_packed(self, address: bytes) -> bool:
        """Return True if a member contains the address given as 4 or 16 bytes in network byte order."""
        return self._map.longest_match_packed(address) is not None


class _FamilyTable(Generic[Value]):
    """The entries of one family. Addresses and networks are integers of `bits` bits.

    Invariant: `search` lists every table of `by_length`, longest prefix first, with the bits to shift out of an
    address; no table is empty. A table is keyed by the network's leading bits alone.
    """

    __slots__ = ("bits", "by_length", "search", "sorted_keys", "unsorted_keys")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.by_length: dict[int, dict[int, Entry[Value]]] = {}
        self.search: list[tuple[int, dict[int, Entry[Value]]]] = []
        self.sorted_keys: list[_Key] | None = None  # None until `inside` is called for the first time
        self.unsorted_keys: list[_Key] = []  # added since the last call of `inside`

    def __len__(self) -> int:
        return sum(map(len, self.by_length.values()))

    def copy(self) -> _FamilyTable[Value]:
        new: _FamilyTable[Value] = _FamilyTable(self.bits)
        new.by_length = {length: table.copy() for length, table in self.by_length.items()}
        new._rebuild_search()
        return new

    def put(self, prefix: Prefix, value: Value) -> None:
        length, network = prefix.prefixlen, int(prefix.network_address)
        table = self.by_length.get(length)
        if table is None:
            table = self.by_length[length] = {}
            self._rebuild_search()
        leading = network >> (self.bits - length)
        if self.sorted_keys is not None and leading not in table:
            self.unsorted_keys.append(network << _LENGTH_BITS | length)
        table[leading] = (prefix, value)

    def exact(self, prefix: Prefix) -> Entry[Value] | None:
        table = self.by_length.get(prefix.prefixlen)
        return None if table is None else table.get(int(prefix.network_address) >> (self.bits - prefix.prefixlen))

    def remove(self, prefix: Prefix) -> Entry[Value] | None:
        length, network = prefix.prefixlen, int(prefix.network_address)
        table = self.by_length.get(length)
        entry = None if table is None else table.pop(network >> (self.bits - length), None)
        if table is None or entry is None:
            return None
        if not table:
            del self.by_length[length]
            self._rebuild_search()
        if self.sorted_keys is not None:
            keys = self._sort()
            del keys[bisect_left(keys, network << _LENGTH_BITS | length)]
        return entry

    def longest(self, address: int) -> Entry[Value] | None:
        for shift, table in self.search:
            entry = table.get(address >> shift)
            if entry is not None:
                return entry
        return None

    def covering(self, network: int, length: int) -> list[Entry[Value]]:
        shortest_shift = self.bits - length
        found = [table.get(network >> shift) for shift, table in reversed(self.search) if shift >= shortest_shift]
        return [entry for entry in found if entry is not None]

    def inside(self, network: int, length: int) -> list[Entry[Value]]:
        keys = self._sort()
        first = bisect_left(keys, network << _LENGTH_BITS | length)
        last_address = network | (1 << (self.bits - length)) - 1
        last = bisect_right(keys, last_address << _LENGTH_BITS | self.bits, lo=first)
        return [self._at(key) for key in keys[first:last]]

    def _at(self, key: _Key) -> Entry[Value]:
        length = key & (1 << _LENGTH_BITS) - 1
        return self.by_length[length][key >> _LENGTH_BITS >> (self.bits - length)]

    def _sort(self) -> list[_Key]:
        """Return the sorted keys, with those added since the last call in their places."""
        keys = self.sorted_keys
        if keys is None:
            keys = self.sorted_keys = sorted(
                int(prefix.network_address) << _LENGTH_BITS | prefix.prefixlen
                for table in self.by_length.values()
                for prefix, _ in table.values()
            )
        elif len(self.unsorted_keys) > _SORT_THRESHOLD:
            keys += self.unsorted_keys
            keys.sort()
        else:
            for key in self.unsorted_keys:
                insort(keys, key)
        self.unsorted_keys.clear()
        return keys

    def _rebuild_search(self) -> None:
        self.search = [
            (self.bits - length, self.by_length[length]) for length in sorted(self.by_length, reverse=True)
        ]
