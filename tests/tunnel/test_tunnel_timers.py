"""Timers (whitepaper §6): when a peer sends and when it stops. Times are seconds since the start."""

from __future__ import annotations

import itertools

import pytest
from tunnel_world import BOOT, LATENCY, Flight, Node, World

from ravenvpn.dataplane.contract import Drop, Endpoint, PeerId, Role, Timing, Traffic
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import HandshakeFailure
from ravenvpn.tunnel.session_events import SessionLost, SessionUp
from ravenvpn.tunnel.timers import Timer, Timers

JITTER = 0.333


def lost(_: Flight) -> list[float]:
    return []


def open_path(_: Flight) -> list[float]:
    return [LATENCY]


def moments(world: World, *kinds: str, sender: Node | None = None, since: float = 0.0) -> list[float]:
    """Return the times at which messages of these kinds were sent."""
    return [
        flight.at - BOOT
        for flight in world.sent
        if flight.kind in kinds and flight.at - BOOT >= since and sender in (None, *_owner(world, flight))
    ]


def _owner(world: World, flight: Flight) -> list[Node]:
    return [node for node in world.nodes if flight.sender in node.addresses]


# Retransmission and giving up (§6.4).


def test_an_unanswered_initiation_is_repeated_every_five_seconds_with_jitter(world: World) -> None:
    alice, bob = world.pair()
    world.path = lost
    alice.sends(b"hello", bob)
    world.run(40.0)
    sent = moments(world, "initiation")
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert len(gaps) == 7
    assert all(5.0 <= gap < 5.0 + JITTER for gap in gaps)
    assert len(set(gaps)) == len(gaps)  # jitter is drawn for each attempt
    assert len({flight.data[8:40] for flight in world.sent}) == 8  # and so is the ephemeral key


def test_an_initiation_is_given_up_after_ninety_seconds_and_staged_packets_are_dropped(world: World) -> None:
    world.timing = Timing(max_jitter=0.0)
    alice, bob = world.pair()
    world.path = lost
    alice.sends(b"hello", bob)
    world.run(89.9)
    assert alice.status(bob).attempts == 18
    assert alice.status(bob).staged == 1
    world.run(60.0)
    assert moments(world, "initiation") == [5.0 * n for n in range(18)]
    status = alice.status(bob)
    assert (status.state, status.attempts, status.staged) == (HandshakeState.IDLE, 0, 0)
    assert status.failure is HandshakeFailure.NO_ANSWER
    assert alice.dataplane.drops[Drop.STAGED_EXPIRED] == 1


def test_new_data_after_giving_up_starts_a_new_handshake(world: World) -> None:
    alice, bob = world.pair()
    world.path = lost
    alice.sends(b"lost", bob)
    world.run(120.0)
    world.path = open_path
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]


def test_new_data_restarts_the_ninety_seconds(world: World) -> None:
    """§6.4: new data to send extends the attempts."""
    alice, bob = world.pair()
    world.path = lost
    for _ in range(200):
        alice.sends(b"hello", bob)
        world.run(1.0)
    assert alice.status(bob).state is HandshakeState.INITIATED
    assert moments(world, "initiation")[-1] > 190.0
    assert alice.dataplane.drops[Drop.STAGED_EXPIRED] == 0


def test_a_lost_session_is_reported_once(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(10.0)
    world.path = lost
    alice.sends(b"lost", bob)
    world.run(600.0)
    assert alice.device.drain_events() == [
        SessionUp("bob", bob.address),
        SessionLost("bob", HandshakeFailure.NO_ANSWER),
    ]


# One initiation per REKEY_TIMEOUT (§6.2).


def test_a_handshake_requested_within_five_seconds_of_the_last_is_deferred(world: World) -> None:
    alice, _bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    for _ in range(10):
        alice.device.initiate("bob", world.now)
        world.run(0.1)
    world.run(20.0)
    assert moments(world, "initiation") == [0.0, 5.0]


def test_a_response_of_ours_limits_initiations_too(world: World) -> None:
    alice, bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    bob.device.initiate("alice", world.now)
    world.run(20.0)
    assert moments(world, "initiation", sender=bob) == [5.0 + LATENCY]


# Renewal (§6.2).


def test_the_initiator_renews_a_session_in_use_after_two_minutes(world: World) -> None:
    alice, bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    for _ in range(290):
        alice.sends(b"a", bob)
        bob.sends(b"b", alice)
        world.run(1.0)
    assert moments(world, "initiation", sender=bob) == []
    first, second, third = moments(world, "initiation")
    assert first == 0.0
    assert 120.0 <= second < 122.0
    assert 240.0 <= third < 244.0
    assert len(bob.delivered) == len(alice.delivered) == 290


def test_an_initiator_that_only_receives_renews_before_the_keys_run_out(world: World) -> None:
    """At 165 s: REJECT_AFTER_TIME minus KEEPALIVE_TIMEOUT minus REKEY_TIMEOUT."""
    alice, bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    for _ in range(170):
        bob.sends(b"b", alice)
        world.run(1.0)
    second = moments(world, "initiation")[1]
    # Her passive keepalives are packets too, so one of them may trigger rekey-after-time, two minutes after the
    # handshake.
    assert 120.0 <= second < 166.0
    assert moments(world, "initiation", sender=bob) == []
    assert len(alice.delivered) == 170


def test_an_idle_session_is_not_renewed(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(500.0)
    assert moments(world, "initiation") == [0.0]
    assert alice.status(bob).session_age is None


# Keepalives (§6.5).


def test_data_without_an_answer_is_acknowledged_after_ten_seconds(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(5.0)
    alice.sends(b"two", bob)
    world.run(60.0)
    # Ten seconds after the first data. The keepalive also acknowledges the second.
    assert moments(world, "keepalive") == [10.0 + 3 * LATENCY]
    assert moments(world, "initiation") == [0.0]


def test_data_sent_back_replaces_the_passive_keepalive(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(5.0)
    bob.sends(b"answer", alice)
    world.run(60.0)
    # Bob's answer is data as well, which Alice acknowledges.
    assert moments(world, "keepalive", sender=bob) == []
    assert moments(world, "keepalive", sender=alice) == [15.0 + LATENCY]


def test_a_keepalive_is_not_acknowledged(world: World) -> None:
    alice, _bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(300.0)
    assert world.kinds() == ["initiation", "response", "keepalive"]


def test_data_unanswered_for_fifteen_seconds_starts_a_new_handshake(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(20.0)
    world.path = lost
    alice.sends(b"into the void", bob)
    world.run(16.0)
    sent = moments(world, "initiation")
    assert len(sent) == 2
    assert 35.0 <= sent[1] < 35.0 + JITTER


def test_a_handshake_counts_as_an_answer(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(20.0)
    world.path = lost
    alice.sends(b"into the void", bob)
    world.path = open_path
    world.run(2.0)
    alice.device.initiate("bob", world.now)
    world.run(60.0)
    assert moments(world, "initiation") == [0.0, 22.0]


def test_the_fifteen_seconds_count_from_the_first_unanswered_packet(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(20.0)
    world.path = lost
    for _ in range(16):
        alice.sends(b"into the void", bob)
        world.run(1.0)
    sent = moments(world, "initiation")
    assert len(sent) == 2
    assert 35.0 <= sent[1] < 35.0 + JITTER


def test_a_persistent_keepalive_is_sent_after_an_interval_without_traffic(world: World) -> None:
    world.timing = Timing(max_jitter=0.0)
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob, persistent_keepalive=25.0)
    bob.knows(alice)
    world.run(99.0)
    # One at once, which starts the handshake, then one after each 25 s of silence.
    first = 2 * LATENCY
    assert moments(world, "initiation") == [0.0]
    assert moments(world, "keepalive", sender=alice) == [first, first + 25, first + 50, first + 75]
    assert moments(world, "keepalive", sender=bob) == []


def test_traffic_in_either_direction_restarts_the_persistent_keepalive(world: World) -> None:
    world.timing = Timing(max_jitter=0.0)
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob, persistent_keepalive=25.0)
    bob.knows(alice)
    world.run(20.0)
    alice.sends(b"a", bob)
    world.run(9.0)
    bob.sends(b"b", alice)
    world.run(1.0)
    alice.sends(b"a", bob)
    world.run(30.0)
    # Bob acknowledges the data of second 30 at 40; 25 s of silence after that are not over at 60.
    assert moments(world, "keepalive", since=1.0) == [40.0 + LATENCY]


def test_a_persistent_keepalive_that_is_switched_on_is_sent_at_once(world: World) -> None:
    alice, bob = world.pair()
    world.run(3.0)
    alice.knows(bob, persistent_keepalive=25.0)
    world.run(1.0)
    assert moments(world, "initiation") == [3.0]
    assert len(moments(world, "keepalive")) == 1


def test_a_persistent_keepalive_keeps_initiating_to_a_peer_that_is_away(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob", up=False)
    alice.knows(bob, persistent_keepalive=25.0)
    bob.knows(alice)
    world.run(400.0)
    bob.device.set_up(world.now)
    world.run(35.0)
    assert bob.status(alice).state is HandshakeState.ESTABLISHED


# Zeroing of keys (§6.3).


def test_keys_are_wiped_nine_minutes_after_the_last_session(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(540.0)
    assert len(alice.dataplane.sessions) == 1
    world.run(1.0)
    assert alice.dataplane.sessions == {} == bob.dataplane.sessions
    assert len(alice.device._indices) == 0
    assert alice.status(bob).state is HandshakeState.IDLE
    assert alice.device.deadline() is None


def test_a_pending_handshake_is_wiped_too(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    world.path = lost
    for _ in range(545):
        alice.sends(b"lost", bob)
        world.run(1.0)
    assert alice.dataplane.sessions == {}


def test_the_data_plane_may_retire_old_keypairs_by_itself(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    alice.dataplane.drop_keypairs(alice.status(bob).id)
    alice.turn()
    assert alice.status(bob).state is HandshakeState.IDLE
    assert len(alice.device._indices) == 0
    assert alice.device.drain_events()[-1] == SessionLost("bob", None)


# Warm sessions (an extension of ravenvpn).


def test_a_warm_session_is_made_at_once_and_renewed_without_traffic(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob, warm=True)
    bob.knows(alice, warm=True)
    for _ in range(60):
        world.run(10.0)
        for one, other in ((alice, bob), (bob, alice)):
            age = one.status(other).session_age
            assert age is not None
            assert age < 125.0
    # Both ends initiate at the start; each session is renewed only by its initiator.
    assert len(moments(world, "initiation")) in range(5, 11)


def test_a_warm_peer_that_is_away_gets_initiations_until_it_is_back(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob", up=False)
    alice.knows(bob, warm=True)
    bob.knows(alice)
    world.run(1000.0)
    bob.device.set_up(world.now)
    world.run(5.5)
    assert alice.status(bob).state is HandshakeState.ESTABLISHED
    gaps = [
        later - earlier
        for earlier, later in zip(moments(world, "initiation"), moments(world, "initiation")[1:], strict=False)
    ]
    assert all(5.0 <= gap < 5.0 + JITTER for gap in gaps)


def test_a_responder_renews_a_warm_session_whose_initiator_does_not(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob)
    bob.knows(alice)
    alice.sends(b"hello", bob)
    world.run(1.0)
    bob.knows(alice, warm=True)
    world.run(170.0)
    (renewed,) = moments(world, "initiation", sender=bob)
    assert 165.0 <= renewed < 166.0


def test_a_peer_without_an_endpoint_gets_no_initiation(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob, warm=True, endpoints=())
    bob.knows(alice)
    world.run(100.0)
    assert world.kinds() == []
    assert alice.status(bob).failure is HandshakeFailure.NO_ENDPOINT
    bob.sends(b"hello", alice)
    world.run(1.0)
    assert alice.delivered == [b"hello"]
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]


def test_an_endpoint_that_becomes_known_gets_the_initiation_that_waited(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    bob.knows(alice)
    alice.knows(bob, endpoints=())
    alice.device.initiate("bob", world.now)
    world.run(10.0)
    assert world.kinds() == []
    alice.knows(bob)
    world.run(0.0)
    assert alice.status(bob).failure is None
    world.run(1.0)
    assert world.kinds() == ["initiation", "response", "keepalive"]


def test_the_traffic_facts_are_updated_before_a_timer_fires(world: World) -> None:
    """The answer has arrived, but the data plane does not report that fact by itself."""
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(40.0)
    world.path = lost
    alice.sends(b"question", bob)
    world.run(14.9)
    due = alice.device.deadline()
    assert due is not None
    assert 1055.0 <= due < 1055.0 + JITTER
    bob.dataplane.send_keepalive(bob.status(alice).id)
    world.now = due
    alice.dataplane.receive(world.sent[-1].data, bob.address, None)
    before = len(world.sent)
    alice.device.tick(world.now, world.unix_ns)
    assert len(world.sent) == before


# The class Timers alone.


def facts(**values: float) -> Traffic:
    zero = dict.fromkeys(Traffic._fields[1:], 0.0)
    return Traffic(PeerId(1), **{**zero, **values})


def no_jitter() -> float:
    return 0.25


@pytest.mark.parametrize("answered_at", [100.1, 107.0, 114.9])
def test_a_received_handshake_message_answers_data_sent_before_it(answered_at: float) -> None:
    timers = Timers(Timing(), no_jitter)
    timers.traffic_reported(facts(data_sent=100.0, any_sent=100.0, unanswered_since=100.0))
    assert timers.deadline(Timer.NEW_HANDSHAKE) == 115.25
    timers.response_received(answered_at)
    assert timers.deadline(Timer.NEW_HANDSHAKE) is None
    # The data plane still reports it, since handshake messages bypass it.
    timers.traffic_reported(facts(data_sent=100.0, any_sent=100.0, unanswered_since=100.0))
    assert timers.deadline(Timer.NEW_HANDSHAKE) is None
    timers.traffic_reported(facts(data_sent=120.0, any_sent=120.0, unanswered_since=100.0))
    assert timers.deadline(Timer.NEW_HANDSHAKE) == answered_at + 15.25


def test_packets_at_the_instant_of_a_handshake_message_count_as_later() -> None:
    timers = Timers(Timing(), no_jitter)
    timers.response_received(100.0)
    timers.traffic_reported(facts(data_sent=100.0, any_sent=100.0, unanswered_since=100.0))
    assert timers.deadline(Timer.NEW_HANDSHAKE) == 115.25
    timers.handshake_answered(200.0)
    timers.traffic_reported(facts(data_received=200.0, any_received=200.0, unacknowledged_since=200.0))
    assert timers.deadline(Timer.SEND_KEEPALIVE) == 210.0


def test_a_sent_handshake_message_acknowledges_data_received_before_it() -> None:
    timers = Timers(Timing(), no_jitter)
    timers.traffic_reported(facts(data_received=100.0, any_received=100.0, unacknowledged_since=100.0))
    assert timers.deadline(Timer.SEND_KEEPALIVE) == 110.0
    timers.handshake_initiated(105.0)
    assert timers.deadline(Timer.SEND_KEEPALIVE) is None
    timers.traffic_reported(facts(data_received=106.0, any_received=106.0, unacknowledged_since=100.0))
    assert timers.deadline(Timer.SEND_KEEPALIVE) == 115.0


def test_an_expired_timer_is_disarmed_until_a_new_event() -> None:
    timers = Timers(Timing(), no_jitter)
    report = facts(data_sent=100.0, any_sent=100.0, unanswered_since=100.0)
    timers.traffic_reported(report)
    assert timers.pop_expired(115.3) == [Timer.NEW_HANDSHAKE]
    timers.traffic_reported(report)
    assert timers.next_deadline() is None


def test_timers_that_expire_together_come_in_the_order_of_their_deadlines() -> None:
    timers = Timers(Timing(), no_jitter)
    timers.session_derived(Role.INITIATOR, 0.0)
    timers.traffic_reported(facts(data_received=10.0, unacknowledged_since=10.0, data_sent=3.0, unanswered_since=3.0))
    assert timers.pop_expired(1000.0) == [Timer.NEW_HANDSHAKE, Timer.SEND_KEEPALIVE, Timer.ZERO_KEY_MATERIAL]


def test_the_driver_is_called_when_due_and_not_before(world: World) -> None:
    """One deadline covers all peers: the earliest."""
    alice = world.node("alice")
    assert alice.device.deadline() is None
    world.path = lost
    for number in range(3):
        alice.device.set_peer(
            alice.settings(
                name=f"peer {number}",
                public_keys=(world.node(f"node {number}").key.public,),
                endpoints=(Endpoint("198.51.100.1", 1),),
            ),
            world.now,
        )
        alice.device.initiate(f"peer {number}", world.now)
        assert alice.device.deadline() == 0.0  # work is pending
        alice.turn()
        deadline = alice.device.deadline()
        assert deadline is not None
        assert 1005.0 <= deadline < 1005.0 + JITTER
        world.run(1.0)
