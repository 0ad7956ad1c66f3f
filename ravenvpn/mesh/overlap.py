"""Prefixes of many regions, and who has to give way where they overlap.

CIDR prefixes are nested or apart, never crosswise, so what a change can affect is one range: everything under the
shortest prefix that covers it. Within that range the claims are settled anew, older regions first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ravenvpn.mesh.claims import Announced
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.ownership import Priority

# A key orders prefixes by network, then length, so that a prefix stands right before what it covers.
_Key = int


def _key(network: int, length: int) -> _Key:
    return network << 8 | length


def overlap(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes share an address. As their own method says, without making two addresses to compare."""
    if one.version != other.version:
        return False
    apart = int(one.network_address) ^ int(other.network_address)
    return apart >> (one.max_prefixlen - min(one.prefixlen, other.prefixlen)) == 0


class Claim(NamedTuple):
    region: str
    announced: Announced


class Settled(NamedTuple):
    """A claim that had to give way: to which, and everything accepted that it overlaps."""

    claim: Claim
    winner: Claim
    overlaps: tuple[Prefix, ...]


class _Family:
    """All claims of one address family."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.claims: dict[_Key, dict[str, Claim]] = {}  # by region
        self.keys: list[_Key] = []
        self.lengths: Counter[int] = Counter()

    def add(self, claims: Iterable[Claim]) -> None:
        fresh: list[_Key] = []
        for claim in claims:
            prefix = claim.announced.prefix
            key = _key(int(prefix.network_address), prefix.prefixlen)
            holders = self.claims.get(key)
            if holders is None:
                holders = self.claims[key] = {}
                self.lengths[prefix.prefixlen] += 1
                fresh.append(key)
            holders[claim.region] = claim
        if len(fresh) > 64:
            self.keys += fresh
            self.keys.sort()
        else:
            for key in fresh:
                insort(self.keys, key)

    def remove(self, region: str, prefix: Prefix) -> None:
        key = _key(int(prefix.network_address), prefix.prefixlen)
        holders = self.claims[key]
        del holders[region]
        if not holders:
            del self.claims[key]
            del self.keys[bisect_left(self.keys, key)]
            self.lengths[prefix.prefixlen] -= 1
            if not self.lengths[prefix.prefixlen]:
                del self.lengths[prefix.prefixlen]

    def root(self, network: int, length: int) -> tuple[int, int]:
        """The shortest claimed prefix that covers this one, or this one."""
        for shorter in sorted(self.lengths):
            if shorter >= length:
                break
            cut = network >> (self.bits - shorter) << (self.bits - shorter)
            if _key(cut, shorter) in self.claims:
                return cut, shorter
        return network, length

    def within(self, network: int, length: int) -> list[_Key]:
        first = bisect_left(self.keys, _key(network, length))
        last = network | (1 << (self.bits - length)) - 1
        return self.keys[first : bisect_right(self.keys, _key(last, 255), lo=first)]

    def covering(self, address: int) -> list[_Key]:
        cuts = (_key(address >> (self.bits - n) << (self.bits - n), n) for n in self.lengths)
        return [key for key in cuts if key in self.claims]


class PrefixClaims:
    """Every prefix any region claims. `settle` says who gives way in the parts that changed."""

    def __init__(self) -> None:
        self._families = {4: _Family(32), 6: _Family(128)}

    def add(self, claims: Iterable[Claim]) -> None:
        parts: dict[int, list[Claim]] = {4: [], 6: []}
        for claim in claims:
            parts[claim.announced.prefix.version].append(claim)
        for version, part in parts.items():
            self._families[version].add(part)

    def remove(self, region: str, prefix: Prefix) -> None:
        self._families[prefix.version].remove(region, prefix)

    def covering(self, address: Address) -> list[Prefix]:
        """Claimed prefixes that hold this address."""
        family = self._families[address.version]
        return [_any_prefix(family.claims[key]) for key in family.covering(int(address))]

    def claims(self, prefixes: Iterable[Prefix]) -> list[Claim]:
        """Who claims exactly these prefixes."""
        found: list[Claim] = []
        for prefix in prefixes:
            key = _key(int(prefix.network_address), prefix.prefixlen)
            found += self._families[prefix.version].claims.get(key, {}).values()
        return found

    def settle(
        self,
        changed: Iterable[Prefix],
        priority: Callable[[str], Priority],
        void: Callable[[str, Prefix], bool],
    ) -> tuple[list[Claim], list[Settled]]:
        """Settle every range one of the changed prefixes lies in.

        Returns all claims of those ranges, and those among them that gave way. Claims for which
        `void` is true count for nobody and give way to nobody here: they are refused for another reason.
        """
        ranges: dict[int, set[tuple[int, int]]] = {4: set(), 6: set()}
        for prefix in changed:
            root = self._families[prefix.version].root(int(prefix.network_address), prefix.prefixlen)
            ranges[prefix.version].add(root)
        considered: list[Claim] = []
        lost: list[Settled] = []
        for version, roots in ranges.items():
            family = self._families[version]
            for network, length in roots:
                held = {key: family.claims[key] for key in family.within(network, length)}
                considered += (claim for by in held.values() for claim in by.values())
                if len(held) > 1 or any(len(by) > 1 for by in held.values()):
                    lost += _settle(held, family.bits, priority, void)
        return considered, lost


def _any_prefix(holders: Mapping[str, Claim]) -> Prefix:
    return next(iter(holders.values())).announced.prefix


def _settle(
    held: Mapping[_Key, Mapping[str, Claim]],
    bits: int,
    priority: Callable[[str], Priority],
    void: Callable[[str, Prefix], bool],
) -> list[Settled]:
    """Claims that give way: each region in turn, older first, keeps what overlaps nobody who kept before."""
    lengths = sorted({key & 0xFF for key in held})
    taken: dict[_Key, dict[str, Claim]] = {}  # kept, by key and region
    below: dict[_Key, dict[str, Claim]] = {}  # kept strictly under a claimed prefix, one per region
    waiting: list[tuple[Claim, list[_Key]]] = []
    lost: list[tuple[Claim, list[_Key], Claim]] = []
    for key, by in held.items():
        network, length = key >> 8, key & 0xFF
        above = [_key(network >> (bits - n) << (bits - n), n) for n in lengths if n <= length]
        waiting += [(claim, [k for k in above if k in held]) for claim in by.values()]
    waiting.sort(key=lambda item: (priority(item[0].region), item[1][-1]))
    for claim, above in waiting:
        if void(claim.region, claim.announced.prefix):
            continue
        rivals = [taken.get(key) for key in above] + [below.get(above[-1])]
        winner = next((c for found in rivals if found for c in found.values() if c.region != claim.region), None)
        if winner is not None:
            lost.append((claim, above, winner))
            continue
        taken.setdefault(above[-1], {})[claim.region] = claim
        for key in above[:-1]:
            below.setdefault(key, {}).setdefault(claim.region, claim)
    kept = sorted(taken)
    return [
        Settled(claim, winner, tuple(_overlapping(claim, above, taken, kept, bits))) for claim, above, winner in lost
    ]


def _overlapping(
    claim: Claim, above: list[_Key], taken: Mapping[_Key, Mapping[str, Claim]], kept: list[_Key], bits: int
) -> Iterable[Prefix]:
    """Every kept prefix of another region that covers this claim or lies in it."""
    own = above[-1]
    last = own >> 8 | (1 << (bits - (own & 0xFF))) - 1
    inside = kept[bisect_left(kept, own) : bisect_right(kept, _key(last, 255))]
    for key in (*(key for key in above[:-1] if key in taken), *inside):
        yield from (c.announced.prefix for c in taken[key].values() if c.region != claim.region)


class AddressIndex:
    """Addresses of the underlay, findable by the prefix that would swallow them."""

    def __init__(self) -> None:
        self._keys: dict[int, list[int]] = {4: [], 6: []}
        self._holders: dict[Address, dict[str, str]] = {}  # by region, the field that names it

    def add(self, held: Iterable[tuple[str, Address, str]]) -> None:
        fresh: dict[int, list[int]] = {4: [], 6: []}
        for region, address, where in held:
            holders = self._holders.get(address)
            if holders is None:
                holders = self._holders[address] = {}
                fresh[address.version].append(int(address))
            holders[region] = where
        for version, keys in fresh.items():
            if len(keys) > 64:
                self._keys[version] += keys
                self._keys[version].sort()
            else:
                for key in keys:
                    insort(self._keys[version], key)

    def remove(self, region: str, address: Address) -> None:
        holders = self._holders[address]
        del holders[region]
        if not holders:
            del self._holders[address]
            keys = self._keys[address.version]
            del keys[bisect_left(keys, int(address))]

    def inside(self, prefix: Prefix, wanted: Callable[[str], bool]) -> tuple[Address, str, str] | None:
        """The lowest address in `prefix` held by a region that is `wanted`: address, region, field."""
        keys = self._keys[prefix.version]
        network = int(prefix.network_address)
        first = bisect_left(keys, network)
        last = network | (1 << (prefix.max_prefixlen - prefix.prefixlen)) - 1
        for at in range(first, len(keys)):
            if keys[at] > last:
                return None
            address = prefix.network_address + (keys[at] - network)
            for region, where in sorted(self._holders[address].items()):
                if wanted(region):
                    return address, region, where
        return None
