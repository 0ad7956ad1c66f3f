"""Timestamps of initiations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto import tai64n

GRAIN = 2**24  # nanoseconds


@pytest.mark.parametrize(
    ("unix_ns", "stamp"),
    [
        (0, "400000000000000a00000000"),
        (GRAIN - 1, "400000000000000a00000000"),
        (GRAIN, "400000000000000a01000000"),
        (999_999_999, "400000000000000a3b000000"),
        (1_000_000_000, "400000000000000b00000000"),
        (1_767_323_045_000_000_000, "40000000695735af00000000"),
        (-1, "40000000000000093b000000"),
    ],
)
def test_stamps(unix_ns: int, stamp: str):
    assert tai64n.stamp(unix_ns).hex() == stamp


@given(earlier=st.integers(0, 2**62), later=st.integers(0, 2**62))
def test_order_as_bytes_is_order_in_time(earlier: int, later: int):
    """A receiver compares twelve bytes (whitepaper §5.1). Instants of one grain and second are equal."""
    earlier, later = sorted((earlier, later))
    first, second = tai64n.stamp(earlier), tai64n.stamp(later)
    assert first <= second
    if later - earlier >= GRAIN:
        assert first < second
