"""The Lease: one leader at a time, whatever clocks, crashes and a slow network do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravenvpn.errors import ClusterError, ConfigError
from ravenvpn.k8s.lease import Candidacy, LeaseRecord, read, write
from ravenvpn.k8s.lease_timing import LeaseTiming

WALL = "2026-01-31T12:00:00.000000Z"


def stand(candidacy: Candidacy, server: LeaseRecord, now: float) -> LeaseRecord | None:
    """Look, and claim if possible: what is sent."""
    candidacy.observe(server, now)
    return candidacy.claim(now, WALL)


def leader(identity: str = "a", at: float = 100.0) -> tuple[Candidacy, LeaseRecord]:
    candidacy = Candidacy(identity)
    claim = stand(candidacy, LeaseRecord(), at)
    assert claim is not None
    record = replace(claim, version="1")
    candidacy.written(record, at, at + 0.1)
    return candidacy, record


def test_a_lease_nobody_has_is_taken() -> None:
    a, record = leader()
    assert (record.holder, record.duration, record.transitions) == ("a", 15.0, 0)
    assert a.leading(100.2)


def test_a_lease_another_renews_is_left_alone() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    assert stand(b, record, 100.0) is None
    assert stand(b, replace(record, renewed="later", version="2"), 114.0) is None
    # Fifteen seconds count from when the change was seen, not from the times of another's clock.
    assert stand(b, replace(record, renewed="later", version="2"), 128.9) is None


def test_a_lease_not_renewed_for_its_duration_is_taken() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    b.observe(record, 100.0)
    b.observe(record, 115.0)
    claim = b.claim(115.0, WALL)
    assert claim is not None
    assert (claim.holder, claim.transitions, claim.version) == ("b", 1, "1")


def test_a_leader_writes_no_longer_than_ten_seconds_after_it_asked_for_its_last_renewal() -> None:
    a, _ = leader(at=100.0)
    assert a.budget(100.0) == 14.0
    assert a.budget(109.9) == pytest.approx(4.1)  # what begins last ends before another may begin, at 115
    assert a.budget(110.0) == 0.0
    assert not a.leading(110.0)


def test_renewal_counts_from_when_it_was_asked_for() -> None:
    """The answer may have been long on its way; the Lease was written at any time since the request."""
    a, record = leader(at=100.0)
    claim = a.claim(104.0, WALL)
    assert claim is not None
    a.written(replace(claim, version="2"), asked_at=104.0, now=109.0)
    assert a.leading(113.9)
    assert not a.leading(114.0)
    assert record.version == "1"


def test_who_lost_it_stops_at_once_when_it_sees_that() -> None:
    a, record = leader(at=100.0)
    a.observe(replace(record, holder="b", version="7"), 101.0)
    assert not a.leading(101.0)
    assert a.claim(101.0, WALL) is None


def test_who_could_not_renew_in_time_may_renew_later_if_nobody_took_it() -> None:
    a, _ = leader(at=100.0)
    assert not a.leading(120.0)
    claim = a.claim(120.0, WALL)
    assert claim is not None
    a.written(replace(claim, version="2"), 120.0, 120.1)
    assert a.leading(121.0)


def test_a_lease_given_up_is_taken_without_waiting() -> None:
    a, _ = leader("a", at=100.0)
    released = a.release(WALL)
    assert released is not None
    assert not a.leading(100.5)
    assert a.holder == ""
    claim = stand(Candidacy("b"), replace(released, version="2"), 100.6)
    assert claim is not None
    assert claim.holder == "b"


def test_who_does_not_hold_it_gives_nothing_up() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    b.observe(record, 100.0)
    assert b.release(WALL) is None


def test_a_lease_survives_the_way_to_the_server_and_back() -> None:
    record = LeaseRecord("a", 15.0, WALL, WALL, 3, "77")
    written = write(record, "raven-vpn-controller", "kube-system")
    assert written["metadata"] == {
        "name": "raven-vpn-controller",
        "namespace": "kube-system",
        "resourceVersion": "77",
    }
    assert read(written) == record


def test_a_lease_made_by_hand_is_read_as_held_by_nobody() -> None:
    assert read({"metadata": {"name": "x", "resourceVersion": "5"}}) == LeaseRecord(version="5")
    with pytest.raises(ClusterError):
        read({"metadata": {}, "spec": {"holderIdentity": 7}})


@pytest.mark.parametrize("timing", [(10.0, 10.0, 2.0), (15.0, 14.5, 2.0), (15.0, 2.0, 2.0), (15.0, 10.0, 0.0)])
def test_times_that_do_not_fit_together_are_refused(timing: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError):
        LeaseTiming(*timing)


class Server:
    """Holds the Lease as etcd would: a write with a stale version is refused."""

    def __init__(self) -> None:
        self.record = LeaseRecord()

    def put(self, record: LeaseRecord) -> LeaseRecord | None:
        if record.version != self.record.version:
            return None
        self.record = replace(record, version=str(int(self.record.version or 0) + 1))
        return self.record


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"),  # whose turn it is
        st.floats(0.0, 8.0),  # seconds since the last turn
        st.floats(0.0, 6.0),  # from the look until the write arrives
        st.floats(0.0, 6.0),  # from there until the answer does
        st.booleans(),  # whether the answer does at all
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_never_may_two_write(steps: list[tuple[str, float, float, float, bool]]) -> None:
    """Slow requests, lost answers and replicas that sleep: the intervals in which a replica may write, and in which
    what it wrote may arrive, never overlap another's."""
    server, now = Server(), 0.0
    candidates = {name: Candidacy(name) for name in "abc"}
    for name, pause, there, back, answered in steps:
        now += pause
        mine = candidates[name]
        mine.observe(server.record, now)
        asked_at = now
        claim = mine.claim(asked_at, f"{now:.6f}")
        if claim is None:
            continue
        now += there
        taken = server.put(claim)
        now += back
        if taken is not None and answered:
            mine.written(taken, asked_at, now)
        # Until when can a write of each, begun now, still be under way?
        writers = [one for one, candidacy in candidates.items() if candidacy.budget(now) > 0]
        assert len(writers) <= 1
        for one in writers:
            others = [c for other, c in candidates.items() if other != one]
            ends = now + candidates[one].budget(now)
            for other in others:
                other.observe(server.record, now)
                assert other.claim(ends, "later") is None
