"""Leader election: at most one leader, with clocks that differ, crashes and a slow network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravenvpn.errors import ClusterError, ConfigError
from ravenvpn.k8s.lease import Candidacy, LeaseRecord, read, write
from ravenvpn.k8s.lease_timing import LeaseTiming

WALL = "2026-01-31T12:00:00.000000Z"


def observe_and_claim(candidacy: Candidacy, server: LeaseRecord, now: float) -> LeaseRecord | None:
    """Observe the Lease; return the claim to send, None while another replica holds it."""
    candidacy.observe(server, now)
    return candidacy.claim(now, WALL)


def leader(identity: str = "a", at: float = 100.0) -> tuple[Candidacy, LeaseRecord]:
    candidacy = Candidacy(identity)
    claim = observe_and_claim(candidacy, LeaseRecord(), at)
    assert claim is not None
    record = replace(claim, version="1")
    candidacy.written(record, at, at + 0.1)
    return candidacy, record


def test_a_lease_without_a_holder_is_taken() -> None:
    a, record = leader()
    assert (record.holder, record.duration, record.transitions) == ("a", 15.0, 0)
    assert a.leading(100.2)


def test_a_lease_that_another_replica_renews_is_not_taken() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    assert observe_and_claim(b, record, 100.0) is None
    assert observe_and_claim(b, replace(record, renewed="later", version="2"), 114.0) is None
    # The lease duration counts from the time at which this replica observed the change, not from times in the Lease.
    assert observe_and_claim(b, replace(record, renewed="later", version="2"), 128.9) is None


def test_a_lease_not_renewed_for_its_duration_is_taken() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    b.observe(record, 100.0)
    b.observe(record, 115.0)
    claim = b.claim(115.0, WALL)
    assert claim is not None
    assert (claim.holder, claim.transitions, claim.version) == ("b", 1, "1")


def test_a_leader_begins_no_write_later_than_ten_seconds_after_the_request_of_its_last_renewal() -> None:
    a, _ = leader(at=100.0)
    assert a.budget(100.0) == 14.0
    assert a.budget(109.9) == pytest.approx(4.1)  # the last write ends before another replica may write, at 115
    assert a.budget(110.0) == 0.0
    assert not a.leading(110.0)


def test_a_renewal_counts_from_its_request() -> None:
    """The answer may be slow; the server may have stored the Lease at any time since the request."""
    a, record = leader(at=100.0)
    claim = a.claim(104.0, WALL)
    assert claim is not None
    a.written(replace(claim, version="2"), asked_at=104.0, now=109.0)
    assert a.leading(113.9)
    assert not a.leading(114.0)
    assert record.version == "1"


def test_a_leader_that_observes_another_holder_stops_at_once() -> None:
    a, record = leader(at=100.0)
    a.observe(replace(record, holder="b", version="7"), 101.0)
    assert not a.leading(101.0)
    assert a.claim(101.0, WALL) is None


def test_an_expired_leader_may_renew_if_no_other_replica_took_the_lease() -> None:
    a, _ = leader(at=100.0)
    assert not a.leading(120.0)
    claim = a.claim(120.0, WALL)
    assert claim is not None
    a.written(replace(claim, version="2"), 120.0, 120.1)
    assert a.leading(121.0)


def test_a_released_lease_is_taken_at_once() -> None:
    a, _ = leader("a", at=100.0)
    released = a.release(WALL)
    assert released is not None
    assert not a.leading(100.5)
    assert a.holder == ""
    claim = observe_and_claim(Candidacy("b"), replace(released, version="2"), 100.6)
    assert claim is not None
    assert claim.holder == "b"


def test_a_replica_that_is_not_the_holder_releases_nothing() -> None:
    _, record = leader("a")
    b = Candidacy("b")
    b.observe(record, 100.0)
    assert b.release(WALL) is None


def test_a_lease_is_written_and_read_back() -> None:
    record = LeaseRecord("a", 15.0, WALL, WALL, 3, "77")
    written = write(record, "raven-vpn-controller", "kube-system")
    assert written["metadata"] == {
        "name": "raven-vpn-controller",
        "namespace": "kube-system",
        "resourceVersion": "77",
    }
    assert read(written) == record


def test_a_lease_without_spec_has_no_holder() -> None:
    assert read({"metadata": {"name": "x", "resourceVersion": "5"}}) == LeaseRecord(version="5")
    with pytest.raises(ClusterError):
        read({"metadata": {}, "spec": {"holderIdentity": 7}})


@pytest.mark.parametrize("timing", [(10.0, 10.0, 2.0), (15.0, 14.5, 2.0), (15.0, 2.0, 2.0), (15.0, 10.0, 0.0)])
def test_an_unsafe_timing_is_refused(timing: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError):
        LeaseTiming(*timing)


class Server:
    """Stores the Lease as etcd does: a write with an old resourceVersion is refused."""

    def __init__(self) -> None:
        self.record = LeaseRecord()

    def put(self, record: LeaseRecord) -> LeaseRecord | None:
        if record.version != self.record.version:
            return None
        self.record = replace(record, version=str(int(self.record.version or 0) + 1))
        return self.record


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"),  # replica that acts
        st.floats(0.0, 8.0),  # seconds since the last step
        st.floats(0.0, 6.0),  # seconds from the observation until the write arrives
        st.floats(0.0, 6.0),  # seconds until the answer arrives
        st.booleans(),  # whether the answer arrives at all
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_no_two_replicas_may_write_at_the_same_time(steps: list[tuple[str, float, float, float, bool]]) -> None:
    """With slow requests, lost answers and sleeping replicas, the write intervals of two replicas never overlap.

    A write interval lasts as long as the replica may write or its last write may still arrive.
    """
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
        # Until the last write that may begin now has ended, no other replica may take the Lease.
        writers = [one for one, candidacy in candidates.items() if candidacy.budget(now) > 0]
        assert len(writers) <= 1
        for one in writers:
            others = [c for other, c in candidates.items() if other != one]
            ends = now + candidates[one].budget(now)
            for other in others:
                other.observe(server.record, now)
                assert other.claim(ends, "later") is None
