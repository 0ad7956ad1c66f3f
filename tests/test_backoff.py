"""Delays between attempts: doubling, limit, jitter, reset."""

from __future__ import annotations

from ravenvpn.backoff import Backoff, doubled


def test_without_randomness_the_delay_doubles_up_to_the_limit():
    backoff = Backoff(first=1.0, limit=10.0)
    assert [backoff.delay() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_jitter_is_drawn_from_the_whole_interval():
    draws = iter([0.0, 0.5, 1.0])
    backoff = Backoff(lambda: next(draws), first=1.0, limit=30.0)
    assert [backoff.delay() for _ in range(3)] == [0.0, 1.0, 4.0]


def test_a_reset_starts_at_the_first_delay_again():
    backoff = Backoff()
    backoff.delay()
    backoff.delay()
    backoff.reset()
    assert backoff.delay() == 1.0


def test_the_time_a_server_asked_for_is_added_in_full():
    backoff = Backoff(lambda: 0.5, first=2.0)
    assert backoff.delay(at_least=7.0) == 8.0


def test_any_number_of_failures_is_within_the_limit():
    assert doubled(0.5, 1_000_000, 30.0) == 30.0
