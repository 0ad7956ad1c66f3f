"""The small data structures below the device, each compared with a slow and obvious one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.dataplane.contract import PeerId
from ravenvpn.tunnel.admission.load_monitor import LoadMonitor
from ravenvpn.tunnel.admission.source_limit import SourceLimiter
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.handshake.indices import IndexTable

ALICE, BOB = PeerId(1), PeerId(2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["expect", "forget", "take"]), st.integers(1, 5), st.integers(0, 50)), max_size=200
    )
)
def test_deadlines_agree_with_a_table_that_is_searched_linearly(steps: list[tuple[str, int, int]]) -> None:
    deadlines, table = Deadlines(), dict[int, float]()
    for what, peer, at in steps:
        match what:
            case "expect":
                deadlines.schedule(PeerId(peer), float(at))
                table[peer] = min(at, table.get(peer, at))
            case "forget":
                deadlines.cancel(PeerId(peer))
                table.pop(peer, None)
            case "take":
                due = {one for one, when in table.items() if when <= at}
                assert set(deadlines.pop_due(float(at))) == due
                table = {one: when for one, when in table.items() if one not in due}
        assert deadlines.next_due() == min(table.values(), default=None)


def test_the_heap_does_not_grow_with_the_number_of_changes() -> None:
    deadlines = Deadlines()
    deadlines.schedule(BOB, 1e8)  # the entries behind Bob's are never popped
    for second in range(20_000):
        deadlines.schedule(ALICE, 1e9)
        deadlines.schedule(ALICE, second + 0.5)
        deadlines.pop_due(second + 1.0)
    assert len(deadlines._heap) <= 68


def test_an_index_in_use_is_not_allocated_again() -> None:
    drawn = iter([b"\1\0\0\0", b"\1\0\0\0", b"\1\0\0\0", b"\2\0\0\0"])
    indices = IndexTable(lambda _: next(drawn))
    assert indices.allocate(ALICE) == 1
    assert indices.allocate(BOB) == 2


def test_an_index_is_released_only_by_its_peer() -> None:
    indices = IndexTable(lambda _: b"\7\0\0\0")
    index = indices.allocate(ALICE)
    assert not indices.release(index, BOB)
    assert indices.lookup(index) is not None
    assert indices.release(index, ALICE)
    assert indices.lookup(index) is None


def test_a_source_gets_a_burst_of_five_and_twenty_a_second() -> None:
    limiter = SourceLimiter()
    assert [limiter.allow("192.0.2.1", 10.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow("192.0.2.2", 10.0)
    assert [limiter.allow("192.0.2.1", 10.06) for _ in range(2)] == [True, False]
    granted = sum(limiter.allow("192.0.2.1", 11.0 + step / 1000) for step in range(2000))
    assert granted == 5 + 39


def test_ipv6_sources_are_limited_by_their_64_bit_prefix() -> None:
    limiter = SourceLimiter()
    assert [limiter.allow(f"2001:db8::{last:x}00:0:0:1", 0.0) for last in range(6)] == [True] * 5 + [False]
    assert limiter.allow("2001:db8:0:1::1", 0.0)
    assert limiter.allow("fe80::1%eth0", 0.0)


def test_the_table_of_sources_is_bounded_and_swept_every_second() -> None:
    limiter = SourceLimiter(max_sources=100)
    assert sum(limiter.allow(f"10.0.{n // 256}.{n % 256}", 5.0) for n in range(200)) == 100
    assert len(limiter) == 100
    assert limiter.allow("192.0.2.1", 6.1)
    assert len(limiter) == 1


def test_under_load_starts_at_an_eighth_of_the_queue_and_lasts_a_second_longer() -> None:
    load = LoadMonitor()
    assert not load.observe(511, 100.0)
    assert load.observe(512, 100.0)
    assert load.observe(0, 100.99)
    assert not load.observe(0, 101.0)
