"""Verdicts: when a peer is proven dead, and when it counts as alive again. Times are seconds of a test clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.mesh.liveness import Liveness, LivenessVerdict, PeerFacts, judge, next_judgement


def test_a_peer_that_was_never_probed_is_unknown() -> None:
    assert judge(LivenessVerdict.UNKNOWN, PeerFacts(), 1000.0) is LivenessVerdict.UNKNOWN


def test_silence_without_probes_does_not_prove_death() -> None:
    assert judge(LivenessVerdict.UNKNOWN, PeerFacts(last_received=10.0), 1000.0) is LivenessVerdict.ALIVE


def test_a_peer_that_leaves_two_probes_unanswered_is_dead_within_three_seconds() -> None:
    facts = PeerFacts(last_received=10.0, asked_since=10.2, unanswered=3)

    assert judge(LivenessVerdict.ALIVE, facts, 11.9) is LivenessVerdict.ALIVE
    assert next_judgement(facts) == 12.0
    assert judge(LivenessVerdict.ALIVE, facts, 12.0) is LivenessVerdict.DEAD


def test_a_late_probe_is_given_time_for_its_reply() -> None:
    """After a long silence the first probe has just been sent, so its reply is not overdue."""
    facts = PeerFacts(last_received=10.0, asked_since=50.0, unanswered=2)

    assert judge(LivenessVerdict.ALIVE, facts, 51.3) is LivenessVerdict.ALIVE
    assert judge(LivenessVerdict.ALIVE, facts, 51.5) is LivenessVerdict.DEAD


def test_one_lost_probe_proves_nothing() -> None:
    assert (
        judge(LivenessVerdict.ALIVE, PeerFacts(last_received=10.0, asked_since=10.2, unanswered=1), 99.0)
        is LivenessVerdict.ALIVE
    )


def test_any_authenticated_packet_counts_as_a_reply() -> None:
    facts = PeerFacts(last_received=14.0, asked_since=10.0, unanswered=5)

    assert judge(LivenessVerdict.ALIVE, facts, 14.5) is LivenessVerdict.ALIVE


def test_a_peer_that_never_replied_is_dead_once_probed() -> None:
    assert judge(LivenessVerdict.UNKNOWN, PeerFacts(asked_since=10.0, unanswered=3), 12.5) is LivenessVerdict.DEAD


def test_a_handshake_given_up_proves_death() -> None:
    assert (
        judge(LivenessVerdict.UNKNOWN, PeerFacts(last_received=5.0, handshake_given_up=95.0), 95.0)
        is LivenessVerdict.DEAD
    )


def test_a_dead_peer_is_alive_after_two_replies_in_a_row() -> None:
    once = PeerFacts(last_received=20.0, answered_in_row=1)
    twice = PeerFacts(last_received=21.0, answered_in_row=2)

    assert judge(LivenessVerdict.DEAD, once, 20.0) is LivenessVerdict.DEAD
    assert judge(LivenessVerdict.DEAD, twice, 21.0) is LivenessVerdict.ALIVE


instants = st.floats(0, 100)


@given(
    st.sampled_from(list(LivenessVerdict)),
    st.builds(PeerFacts, instants, instants, st.integers(0, 9), st.integers(0, 9), instants),
    instants,
)
def test_the_verdict_does_not_change_before_next_judgement(
    before: LivenessVerdict, facts: PeerFacts, now: float
) -> None:
    """Silence alone does not change the verdict between now and `next_judgement`."""
    verdict = judge(before, facts, now)
    due = next_judgement(facts)
    later = now + 1000 if due is None or due <= now else (now + due) / 2
    if due is None or due > now:
        assert judge(verdict, facts, later) is verdict or due is not None
        if due is not None and later < due:
            assert judge(verdict, facts, later) is verdict


def test_changes_are_the_nodes_with_another_verdict_or_reachability() -> None:
    before = Liveness({"h1": LivenessVerdict.ALIVE}, {"h1": {"x"}})
    after = Liveness({"h1": LivenessVerdict.DEAD, "h2": LivenessVerdict.UNKNOWN}, {"h1": {"y"}})

    assert after.changes(before) == {"h1", "x", "y"}
    assert after.changes(after) == set()
