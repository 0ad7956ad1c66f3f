"""Roaming: the endpoint for initiations, responses and data, and the messages that change it."""

from __future__ import annotations

from tunnel_world import LATENCY, Flight, World, the

from ravenvpn.dataplane.contract import Endpoint, Source
from ravenvpn.tunnel.roaming import PeerEndpoints

A, B, C, ELSEWHERE = (Endpoint(f"203.0.113.{n}", 51820) for n in (1, 2, 3, 99))


def test_an_initiation_from_a_new_endpoint_is_answered_there(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(10.0)
    alice.addresses = [ELSEWHERE]
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    assert bob.status(alice).endpoint == ELSEWHERE
    bob.sends(b"two", alice)
    world.run(1.0)
    assert alice.delivered == [b"two"]


def test_data_from_a_new_endpoint_moves_the_peer(world: World) -> None:
    """The data plane changes the endpoint on data; handshakes use the new one."""
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(10.0)
    alice.addresses = [ELSEWHERE]
    alice.sends(b"two", bob)
    world.run(1.0)
    bob.device.initiate("alice", world.now)
    world.run(0.0)
    assert the("initiation", world).to == ELSEWHERE


def test_a_replayed_message_from_another_endpoint_moves_no_peer(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    for flight in list(world.sent):
        if flight.to == bob.address:
            world.put(flight.data, ELSEWHERE, bob.address)
    world.run(1.0)
    assert bob.status(alice).endpoint == alice.address


def test_without_roaming_a_peer_stays_where_it_was_configured_and_is_still_answered(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob)
    bob.knows(alice, roaming=False)
    home = alice.address
    alice.addresses = [ELSEWHERE, home]
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]
    assert the("response", world).to == ELSEWHERE
    assert bob.status(alice).endpoint == home


def test_retries_go_round_the_candidates_and_the_confirmed_one_comes_first(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob", C.host)
    alice.knows(bob, endpoints=(A, B, C))
    bob.knows(alice)
    alice.sends(b"hello", bob)
    assert alice.status(bob).endpoint == A
    world.run(6.0)
    assert alice.status(bob).endpoint == B  # no message was received yet, so data uses the endpoint of the handshake
    world.run(6.0)
    assert bob.delivered == [b"hello"]
    assert [flight.to for flight in world.sent if flight.kind == "initiation"] == [A, B, C]
    assert alice.status(bob).endpoint == C
    world.run(20.0)
    world.path = lambda _: []
    alice.device.initiate("bob", world.now)
    world.run(17.0)
    assert [flight.to for flight in world.sent if flight.kind == "initiation"][3:] == [C, A, B, C]
    assert alice.status(bob).endpoint == C  # retries do not change the endpoint of a session that may still be alive


def test_responses_leave_from_the_address_that_was_addressed(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob", "192.0.2.20", "192.0.2.21")
    second = bob.addresses[1]
    alice.knows(bob, endpoints=(second,))
    bob.knows(alice)
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert the("response", world).sender == second
    assert alice.status(bob).endpoint == second
    bob.device.initiate("alice", world.now)
    world.run(6.0)
    assert the("initiation", world).sender == second


def test_a_retry_lets_the_kernel_choose_our_address_again(world: World) -> None:
    alice, bob = world.node("alice", "192.0.2.10", "192.0.2.11"), world.node("bob")
    bob.knows(alice, endpoints=(alice.addresses[1],))
    alice.knows(bob)
    bob.sends(b"hello", alice)
    world.run(1.0)
    alice.sends(b"from the second", bob)
    assert alice.sources[-1] == Source("192.0.2.11", 1)
    world.run(20.0)
    (data,) = alice.dataplane.known.values()
    assert data.source == Source("192.0.2.11", 1)

    def second_address_is_gone(flight: Flight) -> list[float]:
        return [] if alice.addresses[1] in (flight.sender, flight.to) else [LATENCY]

    world.path = second_address_is_gone
    alice.sends(b"and then it went", bob)
    world.run(16.0)
    assert None in alice.sources[-3:]
    assert the("initiation", world).sender == alice.addresses[0]
    alice.sends(b"back", bob)
    world.run(1.0)
    assert bob.delivered[-1] == b"back"


def test_unanswered_data_clears_the_source_address(world: World) -> None:
    alice, bob = world.pair()
    bob.sends(b"hello", alice)
    world.run(1.0)
    (data,) = alice.dataplane.known.values()
    world.path = lambda _: []
    alice.sends(b"lost", bob)
    world.run(14.9)
    assert data.source == Source(alice.address.host, 1)
    world.run(0.5)
    assert data.source is None


def test_set_endpoint_moves_a_peer_that_has_roamed(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    alice.device.set_endpoint("bob", ELSEWHERE)
    assert alice.status(bob).endpoint == ELSEWHERE
    alice.device.initiate("bob", world.now)
    world.run(5.0)
    assert the("initiation", world).to == ELSEWHERE


# PeerEndpoints alone.


def heard(candidates: tuple[Endpoint, ...], at: Endpoint) -> PeerEndpoints:
    endpoints = PeerEndpoints()
    endpoints.configure(candidates)
    endpoints.observe(at, None, roaming=True)
    return endpoints


def test_new_candidates_do_not_move_a_confirmed_peer() -> None:
    endpoints = heard((A, B), ELSEWHERE)
    assert not endpoints.configure((A, C))
    assert endpoints.current() == ELSEWHERE


def test_a_peer_leaves_a_withdrawn_candidate() -> None:
    endpoints = heard((A, B), B)
    assert endpoints.configure((A, C))
    assert endpoints.current() == A


def test_a_new_best_candidate_is_used_at_once() -> None:
    endpoints = heard((A,), ELSEWHERE)
    assert endpoints.configure((B,))
    assert endpoints.current() == B


def test_a_candidate_that_becomes_the_best_but_is_confirmed_already_changes_nothing() -> None:
    endpoints = heard((A, B), B)
    assert not endpoints.configure((B, A))
    assert endpoints.current() == B


def test_removing_all_candidates_keeps_the_confirmed_endpoint() -> None:
    endpoints = heard((A,), ELSEWHERE)
    assert not endpoints.configure(())
    assert endpoints.current() == ELSEWHERE


def test_without_roaming_only_candidates_are_accepted_once_an_endpoint_is_known() -> None:
    endpoints = PeerEndpoints()
    assert endpoints.observe(ELSEWHERE, None, roaming=False)
    endpoints = PeerEndpoints()
    endpoints.configure((A, B))
    assert not endpoints.observe(ELSEWHERE, None, roaming=False)
    assert endpoints.observe(B, None, roaming=False)
    assert endpoints.current() == B
