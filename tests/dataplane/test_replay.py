"""The replay window, compared with a set of all received counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.dataplane.replay import ReplayWindow

# Small steps around a position that jumps now and then, by up to several windows.
steps = st.lists(st.tuples(st.sampled_from([0, 0, 0, 0, 63, 64, 5000, 8128, 8192, 30_000]), st.integers(-9000, 200)))


@given(st.integers(0, 2**63), steps)
def test_a_window_is_a_set_of_all_that_was_seen(place, moves):
    window, seen = ReplayWindow(), set()
    for jump, offset in moves:
        place += jump
        counter = max(0, place + offset)
        fresh = counter not in seen and (not seen or max(seen) - counter <= 8128)
        assert window.is_fresh(counter) is fresh
        if fresh:
            window.mark(counter)
            seen.add(counter)


@given(st.lists(st.integers(0, 20_000)), st.lists(st.integers(0, 40_000)))
def test_a_thawed_window_remembers(before, after):
    window = ReplayWindow()
    for counter in before:
        if window.is_fresh(counter):
            window.mark(counter)
    thawed = ReplayWindow.thaw(*window.freeze())
    for counter in after:
        assert thawed.is_fresh(counter) is window.is_fresh(counter)


def test_a_fresh_window_holds_nothing():
    assert ReplayWindow().freeze() == (-1, bytes(1024))


def test_the_bitmap_is_as_documented():
    window = ReplayWindow()
    window.mark(64 * 128 + 64 * 3 + 5)
    greatest, bitmap = window.freeze()
    assert greatest == 64 * 128 + 64 * 3 + 5
    assert bitmap[3 * 8 : 4 * 8] == (1 << 5).to_bytes(8, "little")
    assert sum(map(int.bit_count, bitmap)) == 1


@pytest.mark.parametrize("size", [0, 1023, 1025])
def test_a_damaged_bitmap_is_refused(size):
    with pytest.raises(ValueError, match="1024"):
        ReplayWindow.thaw(5, bytes(size))


def test_a_word_that_is_used_again_begins_empty():
    """Word 1 of the ring holds counters 64 to 127, and later 8,256 to 8,319."""
    window = ReplayWindow()
    for counter in (70, 8195, 8256 + 60):
        window.mark(counter)
    assert window.is_fresh(8256 + 6)
    assert not window.is_fresh(8195)
