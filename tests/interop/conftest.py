"""Fixtures: two hosts joined by a veth pair, with one end of a tunnel on each, ours and wireguard-go's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interop_rig import INNER, OUTER, PORTS, End, Host, Pair, namespaces, ours, running, start, wire

Join = Callable[..., None]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with namespaces(2) as (a, b):
        wire(a, b, "eth0", ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        yield a, b


@pytest.fixture(scope="module")
def pair(hosts: tuple[Host, Host], wireguard_go: Path) -> Iterator[Pair]:
    """Both ends with WireGuard's timing, up and not configured."""
    us, them = End(hosts[0], ours(), "rvu"), End(hosts[1], [wireguard_go, "-f"], "rvw")
    with running(us, them):
        start(us, them)
        yield Pair(us, them)


@pytest.fixture
def quick_pair(wireguard_go: Path) -> Iterator[Pair]:
    """Both ends on their own hosts; our end's timers are ten times as fast, so that a test covers several periods."""
    with namespaces(2) as (a, b):
        wire(a, b, "eth0", ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        timing = {"rekey_after_time": 1.0, "reject_after_time": 6.0, "rekey_timeout": 0.5, "keepalive_timeout": 0.5}
        us, them = End(a, ours(**timing, max_jitter=0.05), "rvu"), End(b, [wireguard_go, "-f"], "rvw")
        with running(us, them):
            start(us, them)
            yield Pair(us, them)


@pytest.fixture
def join() -> Join:
    """Configure both ends with wg and new keys; only `starter` knows the other's endpoint."""

    def configure(pair: Pair, *, starter: str = "us", outer: int = 4, psk: str = "", keepalive: int = 0) -> None:
        hosts = [f"[{host}]" if outer == 6 else host for host in OUTER[outer]]
        for one in pair:
            one.new_key()
        sides = [(pair.us, pair.them, 0), (pair.them, pair.us, 1)]
        # The starter comes last: what it says at once must not fall on deaf ears.
        for end, peer, side in sides if starter == "them" else reversed(sides):
            starts = starter == ("us", "them")[side]
            end.configure(
                port=PORTS[side],
                peer=peer,
                allowed=f"{INNER[4][1 - side]}/32, {INNER[6][1 - side]}/128",
                endpoint=f"{hosts[1 - side]}:{PORTS[1 - side]}" if starts else "",
                psk=psk,
                keepalive=keepalive if starts else 0,
            )

    return configure
