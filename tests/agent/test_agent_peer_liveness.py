"""Two ends that probe each other in memory with a simulated clock: verdicts, intervals, verdicts of hubs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from agent_ends import End, end, plan

from ravenvpn.mesh.liveness import LivenessVerdict


def carry(ends: dict[str, End], now: float, arrives: Callable[[str, str], bool] = lambda *_: True) -> int:
    """Deliver all sent packets and their answers. Return their number."""
    count = 0
    while any(one.sent for one in ends.values()):
        for one in ends.values():
            packets, one.sent = one.sent, []
            for name, packet in packets:
                count += 1
                if arrives(one.name, name):
                    ends[name].probing.receive(one.name, packet, now)
    return count


def run(
    ends: dict[str, End], begin: float, until: float, arrives: Callable[[str, str], bool] = lambda *_: True
) -> list[float]:
    """Advance the clock in steps of 0.1 s. Return the times at which the first end of `ends` sent a packet."""
    asked = []
    first = next(iter(ends.values()))
    now = begin
    while now < until:
        for one in ends.values():
            one.probing.observe([one.status(peer) for peer in ends if peer != one.name], now)
            one.probing.tick(now)
        if first.sent:
            asked.append(round(now, 1))
        carry(ends, now, arrives)
        now += 0.1
    return asked


@pytest.fixture
def pair() -> dict[str, End]:
    return {"edge": end("edge", "hub"), "hub": end("hub", "edge")}


def test_a_peer_that_answers_is_alive_and_its_loss_is_measured(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    assert pair["edge"].probing.liveness.of("hub") is LivenessVerdict.ALIVE
    assert pair["edge"].probing.quality()["hub"].loss == 0.0


def test_a_silent_peer_is_dead_within_3_s_and_reported_once(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    before = pair["edge"].changes
    edge = {"edge": pair["edge"], "hub": pair["hub"]}
    run(edge, 105.0, 107.0, arrives=lambda *_: False)
    assert pair["edge"].probing.liveness.of("hub") is LivenessVerdict.ALIVE, "two seconds of silence are no proof yet"
    # With traffic there is a probe every second. Without traffic two probes must be unanswered first.
    run(edge, 107.0, 110.0, arrives=lambda *_: False)
    assert pair["edge"].probing.liveness.of("hub") is LivenessVerdict.DEAD
    assert pair["edge"].changes == before + 1


def test_a_dead_peer_is_alive_after_several_answers_not_after_one(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    run(pair, 105.0, 111.0, arrives=lambda *_: False)
    edge = pair["edge"].probing
    assert edge.liveness.of("hub") is LivenessVerdict.DEAD
    now = 111.0
    verdicts = []
    while now < 117.0:
        edge.observe([pair["edge"].status("hub")], now)
        edge.tick(now)
        if pair["edge"].sent:
            carry(pair, now)
            verdicts.append(edge.liveness.of("hub"))
        now += 0.1
    # Lost probes may still be counted in between, so more than two answers can be necessary.
    answers_needed = verdicts.index(LivenessVerdict.ALIVE) + 1
    assert 2 <= answers_needed <= 4
    assert verdicts[answers_needed:] == [LivenessVerdict.ALIVE] * (len(verdicts) - answers_needed)


def test_an_idle_peer_is_probed_every_2_s_and_a_busy_one_every_second(pair: dict[str, End]) -> None:
    edge, hub = pair["edge"], pair["hub"]
    hub.probing.set_peers({}, 100.0)

    def asked(packets: Callable[[float], int]) -> int:
        count, now = 0, 100.0
        while now < 120.0:
            edge.probing.observe([edge.status("hub", packets=packets(now))], now)
            edge.probing.tick(now)
            count += len(edge.sent)
            for _, packet in edge.sent:
                # Each probe is answered: an open probe would shorten the interval.
                replies = end("hub", "edge")
                replies.probing.receive("edge", packet, now)
                edge.probing.receive("hub", replies.sent[0][1], now)
            edge.sent.clear()
            now += 0.1
        return count

    assert asked(lambda _: 0) in (10, 11)
    edge.probing.set_peers({}, 120.0)
    edge.probing.set_peers({"hub": plan("hub")}, 100.0)
    assert asked(lambda now: int(now * 1000)) in (19, 20, 21)


def test_a_cold_peer_without_session_is_not_probed() -> None:
    edge = end("edge", "hub", warm=False)
    for tenth in range(100):
        edge.probing.observe([edge.status("hub", session=False)], 100.0 + tenth / 10)
        edge.probing.tick(100.0 + tenth / 10)
    assert edge.sent == []
    assert edge.probing.liveness.of("hub") is LivenessVerdict.UNKNOWN


def test_a_hub_reports_the_nodes_it_does_not_reach() -> None:
    ends = {"edge": end("edge", "hub"), "hub": end("hub", "edge", "island"), "island": end("island", "hub")}
    run(ends, 100.0, 105.0)
    assert ends["edge"].probing.liveness.carries("hub", "island")
    run(ends, 105.0, 113.0, arrives=lambda one, other: "island" not in (one, other))
    assert ends["hub"].probing.liveness.of("island") is LivenessVerdict.DEAD
    assert not ends["edge"].probing.liveness.carries("hub", "island")
    run(ends, 113.0, 120.0)
    assert ends["edge"].probing.liveness.carries("hub", "island")


def test_a_handshake_that_was_given_up_makes_the_peer_dead(pair: dict[str, End]) -> None:
    pair["edge"].probing.handshake_failed("hub", 101.0)
    assert pair["edge"].probing.liveness.of("hub") is LivenessVerdict.DEAD


def test_the_end_of_a_cold_session_resets_the_verdict() -> None:
    """A cold peer is not probed, so a dead verdict would never be revoked."""
    edge = end("edge", "hub", warm=False)
    run({"edge": edge, "hub": end("hub", "edge")}, 100.0, 105.0)
    run({"edge": edge, "hub": end("hub", "edge")}, 105.0, 110.0, arrives=lambda *_: False)
    assert edge.probing.liveness.of("hub") is LivenessVerdict.DEAD
    edge.probing.observe([edge.status("hub", session=False)], 110.0)
    assert edge.probing.liveness.of("hub") is LivenessVerdict.UNKNOWN
    for second in range(20):
        edge.probing.observe([edge.status("hub", session=False)], 111.0 + second)
        assert edge.probing.tick(111.0 + second) is None
    assert edge.sent == []


def test_another_tunnel_starts_without_verdicts(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    pair["edge"].probing.attach(None, None)
    assert pair["edge"].probing.liveness.of("hub") is LivenessVerdict.UNKNOWN
    assert pair["edge"].probing.tick(106.0) is None


def test_tick_returns_the_next_deadline() -> None:
    """No call is needed before that time."""
    edge = end("edge", "hub")
    run({"edge": edge, "hub": end("hub", "edge")}, 100.0, 103.0)
    due = edge.probing.tick(103.0)
    assert due is not None
    assert due > 103.0
