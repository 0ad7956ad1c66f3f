"""Overlapping prefixes of many regions: which claims give way, found for the changed part of the address space alone.

CIDR prefixes are nested or disjoint, never partly overlapping (`ravenvpn.prefixes`). So a changed prefix can only
affect the claims inside the shortest claimed prefix that contains it. The claims of that range are resolved anew,
those of older regions first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ravenvpn.mesh.claims import Announced
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import host_prefix
from ravenvpn.mesh.ownership import Priority
from ravenvpn.prefixes import PrefixMap

# More new numbers than this are appended to a sorted list and sorted at once; fewer are inserted one by one.
_SORT_THRESHOLD = 64


class Claim(NamedTuple):
    """One region's claim to a prefix."""

    region: str  # name of the Gateway
    announced: Announced


class LostClaim(NamedTuple):
    """A claim that gives way to another region's."""

    claim: Claim
    winner: Claim
    overlaps: tuple[Prefix, ...]  # every accepted prefix of other regions that overlaps it, the winner's among them


_Entry = tuple[Prefix, dict[str, Claim]]  # a prefix, and its claims by region


class PrefixClaims:
    """Every prefix that any region claims. `resolve` decides which claims give way in the ranges that changed."""

    def __init__(self) -> None:
        self._claims: PrefixMap[dict[str, Claim]] = PrefixMap()  # prefix → region → claim; no empty dict

    def add(self, claims: Iterable[Claim]) -> None:
        """Add or replace claims."""
        for claim in claims:
            holders = self._claims.get(claim.announced.prefix)
            if holders is None:
                self._claims[claim.announced.prefix] = {claim.region: claim}
            else:
                holders[claim.region] = claim

    def remove(self, region: str, prefix: Prefix) -> None:
        """Remove a claim. Raises KeyError if there is none."""
        holders = self._claims[prefix]
        del holders[region]
        if not holders:
            del self._claims[prefix]

    def covering(self, address: Address) -> list[Prefix]:
        """Return the claimed prefixes that contain this address."""
        return [prefix for prefix, _ in self._claims.covering(host_prefix(address))]

    def claims_of(self, prefixes: Iterable[Prefix]) -> list[Claim]:
        """Return the claims to exactly these prefixes."""
        return [claim for prefix in prefixes for claim in (self._claims.get(prefix) or {}).values()]

    def resolve(
        self,
        changed: Iterable[Prefix],
        priority: Callable[[str], Priority],
        excluded: Callable[[str, Prefix], bool],
    ) -> tuple[list[Claim], list[LostClaim]]:
        """Resolve every range that a changed prefix lies in.

        `priority` orders regions, smallest first. Claims for which `excluded` is true neither win nor lose here: they
        are refused for another reason. Returns all claims of the ranges, and the lost ones among them.
        """
        roots = {self._root(prefix) for prefix in changed}
        considered: list[Claim] = []
        lost: list[LostClaim] = []
        for root in roots:
            entries = self._claims.inside(root)
            considered += (claim for _, holders in entries for claim in holders.values())
            if len(entries) > 1 or any(len(holders) > 1 for _, holders in entries):
                lost += _resolve_range(entries, priority, excluded)
        return considered, lost

    def _root(self, prefix: Prefix) -> Prefix:
        """Return the shortest claimed prefix that contains this one, or this one."""
        covering = self._claims.covering(prefix)
        return covering[0][0] if covering else prefix


def _resolve_range(
    entries: list[_Entry], priority: Callable[[str], Priority], excluded: Callable[[str, Prefix], bool]
) -> list[LostClaim]:
    """Return the claims that give way. By priority, each region keeps what overlaps no claim another one kept.

    Entries are named by their index. `entries` are sorted by network, the shorter first (`PrefixMap.inside`).
    """
    chains, ends = _nesting([prefix for prefix, _ in entries])
    waiting = [(claim, index) for index, (_, holders) in enumerate(entries) for claim in holders.values()]
    waiting.sort(key=lambda item: (priority(item[0].region), item[1]))
    kept: dict[int, dict[str, Claim]] = {}  # index → region → claim
    kept_inside: dict[int, dict[str, Claim]] = {}  # index → kept claims strictly inside it, one for each region
    lost: list[tuple[Claim, int, Claim]] = []
    for claim, index in waiting:
        if excluded(claim.region, claim.announced.prefix):
            continue
        rivals = [kept.get(i) for i in chains[index]] + [kept_inside.get(index)]
        winner = next((c for found in rivals if found for c in found.values() if c.region != claim.region), None)
        if winner is not None:
            lost.append((claim, index, winner))
            continue
        kept.setdefault(index, {})[claim.region] = claim
        for outer in chains[index][:-1]:
            kept_inside.setdefault(outer, {}).setdefault(claim.region, claim)

    indices = sorted(kept)

    def overlapping(claim: Claim, index: int) -> Iterable[Prefix]:
        """Yield the kept prefixes of other regions that contain this claim's or lie in it."""
        inside = indices[bisect_left(indices, index) : bisect_left(indices, ends[index])]
        for i in (*(i for i in chains[index][:-1] if i in kept), *inside):
            yield from (c.announced.prefix for c in kept[i].values() if c.region != claim.region)

    return [LostClaim(claim, winner, tuple(overlapping(claim, index))) for claim, index, winner in lost]


def _nesting(prefixes: list[Prefix]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return, for each prefix, the indices of those that contain it (itself last), and the end of those inside it.

    The prefixes inside the one at i are those from i + 1 up to, not including, its end. `prefixes` are of one
    family, sorted by network, the shorter first, so a prefix directly precedes those inside it.
    """
    chains: list[tuple[int, ...]] = []
    ends = [len(prefixes)] * len(prefixes)
    open_: list[tuple[int, int]] = []  # (index, last address) of the prefixes that contain the present one
    for index, prefix in enumerate(prefixes):
        network = int(prefix.network_address)
        while open_ and open_[-1][1] < network:
            ends[open_.pop()[0]] = index
        open_.append((index, network | (1 << (prefix.max_prefixlen - prefix.prefixlen)) - 1))
        chains.append(tuple(i for i, _ in open_))
    return chains, ends


class AddressIndex:
    """Addresses of the underlay by region, in order, for the question which of them a prefix contains.

    A sorted list rather than a `PrefixMap`: a wide prefix contains thousands, and the first one suffices.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, list[int]] = {4: [], 6: []}  # sorted addresses by IP version
        self._holders: dict[Address, dict[str, str]] = {}  # address → region → field that names it

    def add(self, held: Iterable[tuple[str, Address, str]]) -> None:
        """Add (region, address, field), or replace the field."""
        fresh: dict[int, list[int]] = {4: [], 6: []}
        for region, address, where in held:
            holders = self._holders.get(address)
            if holders is None:
                holders = self._holders[address] = {}
                fresh[address.version].append(int(address))
            holders[region] = where
        for version, numbers in fresh.items():
            if len(numbers) > _SORT_THRESHOLD:
                self._numbers[version] += numbers
                self._numbers[version].sort()
            else:
                for number in numbers:
                    insort(self._numbers[version], number)

    def remove(self, region: str, address: Address) -> None:
        """Remove an address of a region. Raises KeyError if it is not there."""
        holders = self._holders[address]
        del holders[region]
        if not holders:
            del self._holders[address]
            numbers = self._numbers[address.version]
            del numbers[bisect_left(numbers, int(address))]

    def first_inside(self, prefix: Prefix, matches: Callable[[str], bool]) -> tuple[Address, str, str] | None:
        """Return (address, region, field) of the lowest address in `prefix` whose region `matches`, or None."""
        numbers = self._numbers[prefix.version]
        network = int(prefix.network_address)
        last = network | (1 << (prefix.max_prefixlen - prefix.prefixlen)) - 1
        for at in range(bisect_left(numbers, network), len(numbers)):
            if numbers[at] > last:
                return None
            address = prefix.network_address + (numbers[at] - network)
            for region, where in sorted(self._holders[address].items()):
                if matches(region):
                    return address, region, where
        return None
