"""Look-ups by containment, against a list that is searched from end to end."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.prefixes import Prefix, PrefixMap, PrefixSet, overlaps, sort_key

# Few enough networks that prefixes nest: they differ in their first five and last two bits.
v4_prefixes = st.builds(
    lambda high, low, length: IPv4Network((high << 27 | low, length), strict=False),
    st.integers(0, 31),
    st.integers(0, 3),
    st.sampled_from([0, 1, 2, 3, 5, 31, 32]),
)
v6_prefixes = st.builds(
    lambda high, low, length: IPv6Network((high << 123 | low, length), strict=False),
    st.integers(0, 31),
    st.integers(0, 3),
    st.sampled_from([0, 1, 2, 3, 5, 127, 128]),
)
prefixes = v4_prefixes | v6_prefixes
changes = st.lists(
    st.tuples(st.sampled_from(["set", "pop", "query"]), prefixes, st.none() | st.integers(1, 3)), max_size=40
)


def contains(outer: Prefix, inner: Prefix) -> bool:
    """The slow and obvious answer."""
    return outer.version == inner.version and inner.subnet_of(outer)


@given(changes, st.lists(prefixes, max_size=5))
def test_a_map_agrees_with_a_linear_search(steps, queries):
    table: PrefixMap[int | None] = PrefixMap()
    entries: dict[Prefix, int | None] = {}

    def check(query: Prefix) -> None:
        covering = sorted(
            (item for item in entries.items() if contains(item[0], query)), key=lambda e: e[0].prefixlen
        )
        assert table.covering(query) == covering
        inside = sorted((item for item in entries.items() if contains(query, item[0])), key=lambda e: sort_key(e[0]))
        assert table.inside(query) == inside
        address = query.network_address
        over = [item for item in entries.items() if item[0].version == query.version and address in item[0]]
        longest = max(over, key=lambda item: item[0].prefixlen, default=None)
        assert table.longest_match(address) == table.longest_match_packed(address.packed) == longest

    for what, prefix, value in steps:
        if what == "set":
            table[prefix] = entries[prefix] = value
        elif what == "pop":
            assert table.pop(prefix) == entries.pop(prefix, None)
        else:
            check(prefix)  # between changes, so that the sorted keys are kept up to date and not only built
    assert dict(table.items()) == entries
    assert set(table) == set(entries)
    assert len(table) == len(entries)
    for query in queries:
        assert (query in table) == (query in entries)
        assert table.get(query) == entries.get(query)
        check(query)


def test_a_missing_prefix_raises_key_error():
    table = PrefixMap([(ip_network("10.0.0.0/8"), 1)])
    assert table[ip_network("10.0.0.0/8")] == 1
    with pytest.raises(KeyError):
        table[ip_network("10.0.0.0/9")]
    with pytest.raises(KeyError):
        del table[ip_network("::/0")]
    del table[ip_network("10.0.0.0/8")]
    assert len(table) == 0


def test_prefixes_added_in_bulk_after_a_query_are_found():
    table = PrefixMap([(ip_network("10.0.0.0/8"), 0)])
    assert table.inside(ip_network("10.0.0.0/8")) == [(ip_network("10.0.0.0/8"), 0)]
    added = [ip_network((0x0A000000 + (n << 8), 24)) for n in reversed(range(200))]
    for n, prefix in enumerate(added):
        table[prefix] = n
    assert [prefix for prefix, _ in table.inside(ip_network("10.0.0.0/16"))] == list(reversed(added))


@given(st.lists(prefixes), st.lists(prefixes), prefixes)
def test_a_set_agrees_with_a_builtin_set(one, other, query):
    both = PrefixSet(one) | PrefixSet(other)
    assert set(both) == {*one, *other}
    assert len(both) == len({*one, *other})
    for prefix in other:
        both.discard(prefix)
    both.discard(query)
    members = set(one) - {*other, query}
    assert set(both) == members
    assert bool(both) == bool(members)
    address = query.network_address
    covered = any(address in member for member in members if member.version == address.version)
    assert both.covers(address) == both.covers_packed(address.packed) == covered
    both.add(query)
    assert query in both


@given(prefixes, prefixes)
def test_overlaps_agrees_with_the_standard_library(one, other):
    assert overlaps(one, other) == (one.version == other.version and one.overlaps(other))


def test_an_address_of_the_other_family_is_not_covered():
    assert not PrefixSet([ip_network("0.0.0.0/0")]).covers(ip_address("::1"))
