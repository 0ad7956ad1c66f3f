"""Routes and acceptance, compared with a linear search."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.dataplane.cryptokey_routing import Acceptance, Routes

# Few addresses, so that prefixes overlap: they differ in their first five and last two bits.
v4_addresses = st.builds(lambda high, low: high << 27 | low, st.integers(0, 31), st.integers(0, 3))
v6_addresses = st.builds(lambda high, low: high << 123 | low, st.integers(0, 31), st.integers(0, 3))
v4_prefixes = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    v4_addresses,
    st.sampled_from([0, 1, 2, 3, 5, 31, 32]),
)
v6_prefixes = st.builds(
    lambda address, length: IPv6Network((address, length), strict=False),
    v6_addresses,
    st.sampled_from([0, 1, 2, 3, 5, 127, 128]),
)
prefixes = v4_prefixes | v6_prefixes
peers = st.integers(1, 3)


def longest(entries: dict, version: int, address: int):
    """Return the longest matching prefix by linear search."""
    covering = [
        prefix
        for prefix in entries
        if prefix.version == version
        and address >> (prefix.max_prefixlen - prefix.prefixlen)
        == int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
    ]
    return entries[max(covering, key=lambda prefix: prefix.prefixlen)] if covering else None


@given(
    st.lists(
        st.tuples(st.just("set"), prefixes, st.lists(peers, max_size=3))
        | st.tuples(st.just("remove peer"), prefixes, st.lists(peers, min_size=1, max_size=1))
    ),
    st.lists(v4_addresses),
    st.lists(v6_addresses),
)
def test_routes_agree_with_a_linear_search(changes, v4, v6):
    routes, entries = Routes(), {}
    for what, prefix, carriers in changes:
        if what == "set":
            routes.set(prefix, tuple(carriers))
            entries.pop(prefix, None)
            if carriers:
                entries[prefix] = tuple(carriers)
        else:
            routes.remove_peer(carriers[0])
            entries = {
                prefix: left
                for prefix, had in entries.items()
                if (left := tuple(peer for peer in had if peer != carriers[0]))
            }
    for address in v4:
        assert routes.lookup(address.to_bytes(4, "big")) == (longest(entries, 4, address) or ())
    for address in v6:
        assert routes.lookup(address.to_bytes(16, "big")) == (longest(entries, 6, address) or ())


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "remove peer"]), prefixes, peers)),
    st.lists(v4_addresses),
    st.lists(v6_addresses),
)
def test_acceptance_agrees_with_a_linear_search(changes, v4, v6):
    acceptance, entries = Acceptance(), {}
    for what, prefix, peer in changes:
        if what == "add":
            acceptance.add(peer, prefix)
            entries[prefix] = entries.get(prefix, frozenset()) | {peer}
        elif what == "remove":
            acceptance.remove(peer, prefix)
            entries[prefix] = entries.get(prefix, frozenset()) - {peer}
        else:
            acceptance.remove_peer(peer)
            entries = {prefix: had - {peer} for prefix, had in entries.items()}
        entries = {prefix: had for prefix, had in entries.items() if had}
    for address in v4:
        assert acceptance.lookup(address.to_bytes(4, "big")) == (longest(entries, 4, address) or frozenset())
    for address in v6:
        assert acceptance.lookup(address.to_bytes(16, "big")) == (longest(entries, 6, address) or frozenset())


def test_moving_ten_thousand_prefixes_takes_linear_time():
    """A failover moves a region's prefixes. Its cost must not grow with the prefixes of other peers."""
    routes = Routes()
    everyone = [ip_network((0x0A000000 + (n << 8), 24)) for n in range(10_000)]
    for n, prefix in enumerate(everyone):
        routes.set(prefix, (n % 1000,))
    began = time.perf_counter()
    for n, prefix in enumerate(everyone):
        routes.set(prefix, (n % 1000 + 1000,))
    for peer in range(1000, 2000):
        routes.remove_peer(peer)
    assert time.perf_counter() - began < 2.0  # seconds; a quadratic algorithm takes minutes
    assert len(routes) == 0
