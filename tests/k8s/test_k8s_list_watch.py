"""What a follower of the API does next, decided without a server."""

from __future__ import annotations

import random

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.list_watch import ListWatch, NextRequest
from ravenvpn.k8s.resource import ApiError

GONE = ApiError("too old resource version", status=410, reason="Expired")
REFUSED = ApiError("connection refused", reason="Unreachable")


def half() -> float:
    return 0.5


def test_a_new_follower_lists_at_once() -> None:
    assert ListWatch(half).next_request() == NextRequest(0.0, "")


def test_one_that_knows_how_far_it_had_come_goes_on_there() -> None:
    assert ListWatch(half, "4711").next_request() == NextRequest(0.0, "4711")


def test_after_the_list_it_watches_from_the_lists_version() -> None:
    list_watch = ListWatch(half)
    list_watch.list_completed("100")
    assert list_watch.next_request() == NextRequest(0.0, "100")


def test_a_watch_that_ends_in_good_order_is_resumed_at_once_after_the_last_event_or_bookmark() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.watch_accepted(now=0.0)
    list_watch.event_received("105")
    list_watch.event_received("")  # an event that names none
    list_watch.watch_ended(now=900.0)
    assert list_watch.next_request() == NextRequest(0.0, "105")


def test_a_server_that_ends_every_watch_at_once_is_asked_ever_less_often() -> None:
    list_watch = ListWatch(half, "100")
    waits = []
    for now in range(6):
        list_watch.watch_accepted(float(now))
        list_watch.watch_ended(float(now))
        waits.append(list_watch.next_request().after)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0]


def test_a_connection_that_breaks_is_resumed_and_nothing_listed() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.watch_accepted(now=0.0)
    list_watch.event_received("120")
    list_watch.request_failed(REFUSED, now=3600.0)
    assert list_watch.next_request() == NextRequest(0.5, "120")


def test_what_the_server_has_forgotten_is_listed_anew() -> None:
    list_watch = ListWatch(half, "1")
    list_watch.request_failed(GONE, now=0.0)
    assert list_watch.next_request() == NextRequest(0.5, "")


def test_a_server_that_was_away_and_is_back_with_nothing_to_resume_is_listed_soon() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(9):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.request_failed(GONE, now=60.0)
    assert list_watch.next_request() == NextRequest(0.5, "")


def test_one_that_forgets_again_and_again_is_listed_ever_less_often() -> None:
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
    assert list_watch.next_request().after == 0.5, "a watch held for so long"


def test_a_server_that_is_away_is_tried_at_most_every_30_seconds() -> None:
    list_watch = ListWatch(lambda: 1.0, "100")
    for _ in range(50):
        list_watch.request_failed(REFUSED, now=0.0)
    assert list_watch.next_request() == NextRequest(30.0, "100")


def test_what_the_server_asks_for_is_kept_to_and_spread() -> None:
    list_watch = ListWatch(half, "100")
    list_watch.request_failed(ApiError("storage is (re)initializing", status=429, retry_after=5.0), now=0.0)
    assert list_watch.next_request() == NextRequest(5.5, "100")


def test_a_watch_that_held_makes_earlier_failures_forgotten() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(5):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.watch_accepted(now=60.0)
    list_watch.request_failed(REFUSED, now=120.0)
    assert list_watch.next_request().after == 0.5


def test_one_that_broke_at_once_does_not() -> None:
    list_watch = ListWatch(half, "100")
    for _ in range(5):
        list_watch.request_failed(REFUSED, now=0.0)
    list_watch.watch_accepted(now=60.0)
    list_watch.request_failed(REFUSED, now=61.0)
    assert list_watch.next_request().after == 15.0


def test_a_server_restored_from_an_old_backup_is_listed_anew_after_three_refusals() -> None:
    ahead = ApiError("Too large resource version", status=504, reason="ResourceVersionTooLarge")
    list_watch = ListWatch(half, "100")
    for version in ("100", "100", ""):
        list_watch.request_failed(ahead, now=0.0)
        assert list_watch.next_request().version == version


def test_a_thousand_clients_that_lose_the_server_in_one_instant_come_back_spread() -> None:
    """It is away for 20 s. Nobody may be alone with hundreds of others in any 100 ms after that."""
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


def test_a_thousand_clients_after_a_short_restart() -> None:
    """Back after 2 s, as a kube-apiserver is: the first to return are no crowd either."""
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
