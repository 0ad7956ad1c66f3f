"""Our tunnel with wireguard-go over real sockets: either end initiates, both families, with and without a PSK."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from interop_rig import INNER, OUTER, PORTS, Host, Pair, transfer, until, wg

pytestmark = [pytest.mark.root, pytest.mark.wireguard_go, pytest.mark.needs("wg", "ping")]

COMBINATIONS = list(itertools.product(("us", "them"), (4, 6), (True, False), (4, 6)))
MEGABYTE = 1_000_000
# All sixteen ping and move a megabyte each way; these four, in which each choice is made both ways, a hundred.
THOROUGH = [("us", 4, True, 6), ("us", 6, False, 4), ("them", 4, False, 4), ("them", 6, True, 6)]


def name_of(combination: tuple[str, int, bool, int]) -> str:
    starter, outer, psk, inner = combination
    return f"{starter}-start-over-v{outer}-{'psk' if psk else 'no-psk'}-inner-v{inner}"


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_both_ends_exchange_packets(pair: Pair, join: Callable[..., None], combination: tuple[str, int, bool, int]):
    starter, outer, psk, inner = combination
    us, them = pair
    if outer == 6:
        # One that has talked over IPv4 sends some datagrams for IPv6 to a truncated address.
        them.stop()
        them.start(f"{INNER[4][1]}/24", f"{INNER[6][1]}/64")
    join(pair, starter=starter, outer=outer, psk=wg("genpsk") if psk else "")
    if starter == "us":
        us.host.pings(INNER[inner][1], 10)
    else:
        them.host.pings(INNER[inner][0], 10)

    assert us.handshake() > 0
    assert them.handshake() > 0
    # Each side has learned, or kept, where the other is.
    host = OUTER[outer]
    shown = ("[{}]:{}" if outer == 6 else "{}:{}").format
    assert us.show("endpoints") == shown(host[1], PORTS[1])
    assert them.show("endpoints") == shown(host[0], PORTS[0])

    size = (100 if combination in THOROUGH else 1) * MEGABYTE
    transfer(us.host, them.host, INNER[inner][1], size)
    transfer(them.host, us.host, INNER[inner][0], size)


def test_both_ends_count_the_same_bytes(pair: Pair, join: Callable[..., None]):
    """The byte counts that WireGuard's own test suite expects after ten pings: 148 or 92 for the handshake, ten times
    128."""
    join(pair)
    pair.us.host.run("ping", "-n", "-c", "10", "-i", "0.01", INNER[4][1])
    assert pair.us.show("transfer") == "1372\t1428"
    assert pair.them.show("transfer") == "1428\t1372"


def test_different_preshared_keys_make_no_session(pair: Pair, join: Callable[..., None]):
    join(pair, psk=wg("genpsk"))
    pair.them.wg("set", "peer", pair.us.public, "preshared-key", "/dev/stdin", stdin=wg("genpsk"))
    assert not pair.us.host.reaches(INNER[4][1], wait=1)
    assert pair.us.handshake() == 0


def test_a_source_outside_the_allowed_ips_is_dropped(pair: Pair, join: Callable[..., None]):
    join(pair)
    pair.us.host.pings(INNER[4][1])
    pair.us.wg("set", "peer", pair.them.public, "allowed-ips", f"{INNER[6][1]}/128")
    assert not pair.them.host.reaches(INNER[4][0])
    pair.them.host.pings(INNER[6][0])


def test_rekeying_under_traffic_loses_no_packet(quick_pair: Pair, join: Callable[..., None]):
    """The initiator rekeys old sessions (whitepaper §6.2): here after 1 s instead of 120 s."""
    us, them = quick_pair
    join(quick_pair)
    us.host.pings(INNER[4][1])
    pinging = subprocess.Popen(
        us.host.command("ping", "-n", "-c", "180", "-i", "0.02", INNER[4][1]), stdout=subprocess.PIPE, text=True
    )
    seen: set[tuple[int, int]] = set()
    while pinging.poll() is None:
        seen.add((us.handshake(), them.handshake()))
        time.sleep(0.1)
    out, _ = pinging.communicate()
    assert " 180 received" in out
    # At least three in 3.6 seconds, seen by both ends.
    assert len({ours for ours, _ in seen}) >= 3
    assert len({theirs for _, theirs in seen}) >= 3


@contextmanager
def moved(host: Host, old: str, new: str) -> Iterator[None]:
    """Replace an address of the host by another, both with their prefix length."""
    host.ip("address", "add", new, "dev", "eth0")
    host.ip("address", "delete", old, "dev", "eth0")
    try:
        yield
    finally:
        host.ip("address", "add", old, "dev", "eth0")
        host.ip("address", "delete", new, "dev", "eth0")


def test_wireguard_go_roams(pair: Pair, join: Callable[..., None]):
    join(pair)
    us, them = pair
    us.host.pings(INNER[4][1])
    with moved(them.host, "192.0.2.2/24", "192.0.2.22/24"):
        them.host.pings(INNER[4][0])
        assert us.show("endpoints") == f"192.0.2.22:{PORTS[1]}"
        us.host.pings(INNER[4][1], 10)


def test_wireguard_go_roams_to_another_family_and_port(pair: Pair, join: Callable[..., None]):
    join(pair)
    us, them = pair
    us.host.pings(INNER[4][1])
    them.wg("set", "listen-port", "52000", "peer", us.public, "endpoint", f"[{OUTER[6][0]}]:{PORTS[0]}")
    # wireguard-go itself may take seconds to change the family (wireguard-go's pooled addresses).
    them.host.pings(INNER[4][0], 10, within=20)
    assert us.show("endpoints") == f"[{OUTER[6][1]}]:52000"
    us.host.pings(INNER[4][1], 10)


def test_our_end_roams(pair: Pair, join: Callable[..., None]):
    join(pair)
    us, them = pair
    us.host.pings(INNER[4][1])
    with moved(us.host, "192.0.2.1/24", "192.0.2.11/24"):
        us.host.pings(INNER[4][1], 10)
        assert them.show("endpoints") == f"192.0.2.11:{PORTS[0]}"
        them.host.pings(INNER[4][0], 10)


def test_our_end_changes_its_port_under_traffic(pair: Pair, join: Callable[..., None]):
    join(pair)
    us, them = pair
    us.host.pings(INNER[4][1])
    us.wg("set", "listen-port", "52001")
    us.host.pings(INNER[4][1], 10)
    assert them.show("endpoints") == "192.0.2.1:52001"
    assert us.wg("show", "listen-port").strip() == "52001"


def test_wireguard_go_restarts(quick_pair: Pair, join: Callable[..., None]):
    """A peer that answers nothing for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT gets a new initiation (§6.5); it has lost its
    keys."""
    us, them = quick_pair
    join(quick_pair)
    us.host.pings(INNER[4][1])
    them.stop(signal.SIGKILL)
    them.start(f"{INNER[4][1]}/24", f"{INNER[6][1]}/64")
    them.configure(port=PORTS[1], peer=us, allowed=f"{INNER[4][0]}/32")
    us.host.pings(INNER[4][1], 10, within=4)


def test_our_end_restarts(quick_pair: Pair, join: Callable[..., None]):
    """After SIGKILL the socket of the dead process is replaced, and newer timestamps are accepted at once."""
    us, them = quick_pair
    join(quick_pair)
    us.host.pings(INNER[4][1])
    us.stop(signal.SIGKILL)
    assert us.socket.exists()
    us.start(f"{INNER[4][0]}/24", f"{INNER[6][0]}/64")
    us.configure(port=PORTS[0], peer=them, allowed=f"{INNER[4][1]}/32", endpoint=f"{OUTER[4][1]}:{PORTS[1]}")
    us.host.pings(INNER[4][1], 10, within=4)


def test_a_persistent_keepalive_opens_the_path_for_the_end_that_cannot_initiate(
    pair: Pair, join: Callable[..., None]
):
    join(pair, keepalive=25)
    until(lambda: pair.them.handshake() > 0, "the first keepalive makes a session without any traffic")
    pair.them.host.pings(INNER[4][0], 10)
