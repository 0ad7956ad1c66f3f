"""What differs between two whole plans of a host, found at the price of what differs. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ravenvpn.mesh.hoststate import HostDelta, HostState

T = TypeVar("T")


def between(previous: HostState, wanted: HostState) -> HostDelta:
    """The delta of two whole states."""
    old_routes, new_routes = difference(previous.routes, wanted.routes)
    old_neighbours, new_neighbours = difference(previous.neighbours, wanted.neighbours)
    old_entries, new_entries = difference(previous.forwarding, wanted.forwarding)
    added = replace(wanted, routes=new_routes, neighbours=new_neighbours, forwarding=new_entries)
    removed = replace(previous, routes=old_routes, neighbours=old_neighbours, forwarding=old_entries)
    if (previous.tun, previous.vxlan) == (wanted.tun, wanted.vxlan):
        added, removed = replace(added, tun=None, vxlan=None), replace(removed, tun=None, vxlan=None)
    return HostDelta(added, removed, filter_replaced=True)


def difference(before: tuple[T, ...], after: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """What is only in one of two plans' tuples. Walks both at once, by identity: plans share what did not change.

    Costs nanoseconds for an element both share in the same order, where comparing or hashing routes by value costs
    microseconds. An equal element that is not shared, or moved, may show up on both sides; `diff` sees that it is
    the same.
    """
    removed: list[T] = []
    added: list[T] = []
    i = j = 0
    while True:
        same = _common(before, i, after, j)
        i, j = i + same, j + same
        if i == len(before) or j == len(after):
            removed += before[i:]
            added += after[j:]
            return tuple(removed), tuple(added)
        skip_before, skip_after = _resume(before, i, after, j)
        removed += before[i : i + skip_before]
        added += after[j : j + skip_after]
        i, j = i + skip_before, j + skip_after


def _common(before: tuple[T, ...], i: int, after: tuple[T, ...], j: int) -> int:
    """How many elements from here on are the same. Slices compare in C, and by identity first."""
    start, step = i, 4096
    while step:
        if i + step <= len(before) and before[i : i + step] == after[j : j + step]:
            i, j = i + step, j + step
        else:
            step //= 2
    return i - start


def _resume(before: tuple[T, ...], i: int, after: tuple[T, ...], j: int) -> tuple[int, int]:
    """How far to skip on both sides to the next element they share."""
    window, longest = 64, max(len(before) - i, len(after) - j)
    while True:
        places = {id(item): place for place, item in enumerate(after[j : j + window])}
        for skipped, item in enumerate(before[i : i + window]):
            if id(item) in places:
                return skipped, places[id(item)]
        if window >= longest:
            return len(before) - i, len(after) - j
        window *= 4
