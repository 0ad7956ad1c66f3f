"""`Host.apply_delta` on a real kernel: only changed objects are written."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from node.applying import apply, change_host
from node.box import Box
from node.worlds import gateway, lan_gateway, remote_routes

from ravenvpn.mesh.hoststate import PacketFilter
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.format import format_object

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge", "sysctl", "iptables-legacy")]


def test_a_delta_writes_only_what_changed(gateway_node: Box, state_file: Path) -> None:
    """A delta leads from one plan to the next without an observation. An observation then finds no difference."""
    first = lan_gateway()
    assert first.packet_filter is not None
    kept = first.routes[2:]
    moved = tuple(replace(route, mtu=1400) if route.mtu == 1420 else route for route in kept[:2])
    second = replace(
        first,
        routes=(*moved, *kept[2:], *remote_routes("10.250.0.0/16", "fd00:50::/64")),
        neighbours=first.neighbours[:1],
        sysctls=first.sysctls[:-1],
        packet_filter=replace(
            first.packet_filter,
            local=(*first.packet_filter.local, ip_network("10.244.7.0/24")),
            remote=(*first.packet_filter.remote[1:], ip_network("10.250.0.0/16")),
        ),
    )

    def change() -> tuple[ApplyResult, ApplyResult, ApplyResult]:
        with Host(state_file) as host:
            assert host.apply(first).failed == ()
            return change_host(host, first, second), host.apply(second), change_host(host, second, first)

    changed, looked, back = gateway_node.call(change)

    assert looked == ApplyResult()
    assert changed.failed == ()
    assert [f"{operation.verb} {format_object(operation.target)}" for operation in changed.changed] == [
        "add route unreachable 10.250.0.0/16 table 9127 metric 4278198272",
        "add route unreachable fd00:50::/64 table 9127 metric 4278198272",
        "change nft table ravenvpn: 5 set elements",
        "change route 10.244.3.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1400",
        "add route 10.250.0.0/16 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "add route fd00:50::/64 table 9127 dev ravenvpn0 src fd00:1::1 mtu 1420",
        "remove route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        "remove neighbour fdaa:0:0:2::6 at aa:0f:0a:00:00:06 dev raven0",
        "remove route unreachable 10.244.2.0/24 table 9127 metric 4278198272",
        "remove sysctl net/ipv4/conf/cni0/forwarding=0",
    ]
    assert back.failed == ()
    assert gateway_node.call(apply, state_file, first) == ApplyResult()


def test_a_delta_of_thousands_of_prefixes_is_fast(gateway_node: Box, state_file: Path) -> None:
    """Hundreds of Gateways take a second in total, and a change takes milliseconds."""
    prefixes = [f"{10 + number // 65536}.{number // 256 % 256}.{number % 256}.0/24" for number in range(3_000)]
    base = replace(gateway(), routes=remote_routes(*prefixes))
    assert base.packet_filter is not None
    base = replace(base, packet_filter=PacketFilter(base.packet_filter.local, tuple(map(ip_network, prefixes))))
    base = replace(base, routes=tuple(replace(route, source=None) for route in base.routes))
    changed = replace(base, routes=(*base.routes[:500], *base.routes[520:]))

    def measure() -> tuple[float, float, int]:
        with Host(state_file) as host:
            start = time.perf_counter()
            assert host.apply(base).failed == ()
            whole = time.perf_counter() - start
            removed = change_host(host, base, changed)
            times = []
            for before, after in ((changed, base), (base, changed)) * 3:
                start = time.perf_counter()
                assert change_host(host, before, after).failed == ()
                times.append(time.perf_counter() - start)
            return whole, min(times), len(removed.changed)

    whole, change, operations = gateway_node.call(measure)

    assert operations == 20
    # On idle cores 0.3 s and 6 ms. Route changes wait for a lock that all namespaces of a kernel share, so under
    # other load only gross mistakes show.
    assert whole < 30
    assert change < 5
