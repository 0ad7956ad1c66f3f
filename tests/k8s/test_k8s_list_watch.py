"""Decisions between list and watch, and their delays, without a server."""

from __future__ import annotations

import random

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.list_watch import ListWatch, NextRequest
from ravenvpn.k8s.resource import ApiError

GONE = ApiError("too old resource version", status=410, reason="Expired")
REFUSED = ApiError("connection refused", reason="Unreachable")


def half() -> float:
    return 0.5


def test_without_a_version_it_lists_at_once() -> None:
    assert ListWatch(half).next_request() == NextRequest(0.0, "")


def test_with_a_saved_version_it_resumes_the_watch() -> None:
    assert ListWatch(half, "4711").next_request() == NextRequest(0.0, "4711")


def test_after_a_list_it_watches_from_the_version_of_the_list() -> None:
    list_watch = ListWatch(half)
    list_watch.list_completed("100")
    assert list_watch.next_request() == NextRequest(0.0, "100")


def test_a_watch_that_reached_its_timeout_is_resumed_at_once_from_the_last_event() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.watch_accepted(now=0.0)
    list_watch.event_received("105")
    list_watch.event_received("")  # an event without resourceVersion
    list_watch.watch_ended(now=900.0)
    assert list_watch.next_request() == NextRequest(0.0, "105")


def test_watches_that_end_at_once_are_resumed_with_back_off() -> None:
    list_watch = ListWatch(half, "100")
    waits = []
    for now in range(6):
        list_watch.watch_accepted(float(now))
        list_watch.watch_ended(float(now))
        waits.append(list_watch.next_request().after)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0]


def test_a_broken_watch_is_resumed_without_a_list() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.watch_accepted(now=0.0)
    list_watch.event_received("120")
    list_watch.request_failed(REFUSED, now=3600.0)
    assert list_watch.next_request() == NextRequest(0.5, "120")


def test_an_expired_version_leads_to_a_list() -> None:
    list_watch = ListWatch(half, "1")
    list_watch.request_failed(GONE, now=0.0)
    assert list_watch.next_request() == NextRequest(0.5, "")


def test_an_expired_version_after_an_outage_leads_to_a_list_without_the_long_delay() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(9):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.request_failed(GONE, now=60.0)
    assert list_watch.next_request() == NextRequest(0.5, "")


def test_repeated_expiry_leads_to_lists_with_back_off() -> None:
    list_watch = ListWatch(half, "100")
    waits = []
    for now in range(4):
        list_watch.request_failed(GONE, now=float(now))
        waits.append(list_watch.next_request().after)
        list_watch.list_completed("200")
        list_watch.watch_accepted(float(now))
    assert waits == [0.5, 1.0, 2.0, 4.0]
    list_watch.request_failed(REFUSED, now=60.0)
    list_watch.request_failed(GONE, now=60.0)
    assert list_watch.next_request().after == 0.5, "a stable watch resets the back-off"


def test_the_back_off_is_at_most_30_seconds() -> None:
    list_watch = ListWatch(lambda: 1.0, "100")
    for _ in range(50):
        list_watch.request_failed(REFUSED, now=0.0)
    assert list_watch.next_request() == NextRequest(30.0, "100")


def test_retry_after_is_kept_and_spread() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.request_failed(ApiError("storage is (re)initializing", status=429, retry_after=5.0), now=0.0)
    assert list_watch.next_request() == NextRequest(5.5, "100")


def test_a_stable_watch_resets_the_back_off() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(5):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.watch_accepted(now=60.0)
    list_watch.request_failed(REFUSED, now=120.0)
    assert list_watch.next_request().after == 0.5


def test_a_watch_that_breaks_at_once_does_not_reset_the_back_off() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(5):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.watch_accepted(now=60.0)
    list_watch.request_failed(REFUSED, now=61.0)
    assert list_watch.next_request().after == 15.0


def test_a_version_that_the_server_has_not_reached_leads_to_a_list_after_three_answers() -> None:
    ahead = ApiError("Too large resource version", status=504, reason="ResourceVersionTooLarge")
    list_watch = ListWatch(half, "100")
    for version in ("100", "100", ""):
        list_watch.request_failed(ahead, now=0.0)
        assert list_watch.next_request().version == version


def test_a_thousand_clients_return_spread_after_an_outage_of_20_seconds() -> None:
    """At most 40 clients may return within any 100 ms."""
    dice = random.Random(1)
    returns = []
    for _ in range(1000):
        backoff, now = Backoff(dice.random), 0.0
        while now < 20.0:
            now += backoff.delay()
        returns.append(now - 20.0)
    buckets = [0] * 400
    for moment in returns:
        buckets[int(moment * 10)] += 1
    assert max(buckets) <= 40  # of 1000: at most 400 connections a second
    assert max(returns) <= 30.0


def test_a_thousand_clients_return_spread_after_a_restart_of_2_seconds() -> None:
    """A kube-apiserver restarts in about 2 s."""
    dice = random.Random(2)
    returns = []
    for _ in range(1000):
        backoff, now = Backoff(dice.random), 0.0
        while now < 2.0:
            now += backoff.delay()
        returns.append(now - 2.0)
    assert sum(moment < 0.1 for moment in returns) <= 70
    assert sorted(returns)[900] <= 8.0
    assert max(returns) <= 30.0
