"""The token bucket: refill, burst, debt, and a clock that steps back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.token_bucket import TokenBucket


def test_a_burst_is_allowed_at_once_and_then_the_rate() -> None:
    bucket = TokenBucket(rate=20.0, burst=5.0)
    assert [bucket.allow(10.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.allow(10.06) for _ in range(2)] == [True, False]
    assert sum(bucket.allow(11.0 + step / 1000) for step in range(2000)) == 5 + 39


def test_the_burst_is_the_most_that_is_saved_up() -> None:
    bucket = TokenBucket(rate=1.0, burst=3.0)
    assert bucket.tokens(1e9) == 3.0
    assert bucket.is_full(1e9)


def test_spending_may_leave_a_debt_which_is_paid_back_at_the_rate() -> None:
    bucket = TokenBucket(rate=100.0, burst=8.0)
    assert bucket.tokens(50.0) == 8.0
    bucket.spend(7.5)
    assert bucket.ready_at() == 50.005
    assert bucket.tokens(50.005) == pytest.approx(1.0)
    bucket.spend(2.0)
    assert not bucket.allow(50.01)
    assert bucket.tokens(51.0) == 8.0
    assert bucket.ready_at() == 51.0


def test_a_clock_that_steps_back_neither_refills_nor_blocks() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0)
    assert bucket.allow(1000.0)
    assert not bucket.allow(10.0)
    assert bucket.allow(11.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_bucket_that_could_never_work_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(rate, burst)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_no_interval_grants_more_than_its_burst_and_rate(instants: list[float]) -> None:
    instants.sort()
    bucket = TokenBucket(rate=2.0, burst=4.0)
    granted = [now for now in instants if bucket.allow(now)]
    for first, start in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= 4.0 + 2.0 * (granted[last] - start) + 1e-6
