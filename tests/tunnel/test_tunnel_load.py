"""Floods of handshake messages: their cost, and the peers that still connect (whitepaper §5.3)."""

from __future__ import annotations

import pytest
from fake_dataplane import deterministic_random
from tunnel_world import Flight, Node, World, drops, the

from ravenvpn.crypto.cookie import CookieStamper, packed_source
from ravenvpn.dataplane.contract import MAX_DATAGRAMS, Datagram, Endpoint, Timing
from ravenvpn.tunnel.admission.handshake_filter import MAX_INITIATIONS, MAX_VALIDATED
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.handshake_worker import WORK_PER_CALL
from ravenvpn.tunnel.peer import HandshakeFailure

noise = deterministic_random("flood")


def flood(bob: Node, count: int, hosts: int = 250) -> list[Datagram]:
    """Return initiations with a valid mac1 from many sources that do not authenticate."""
    stamper = CookieStamper(bob.key.public)
    return [
        Datagram(
            stamper.stamp(b"\x01\0\0\0" + noise(112), 0.0), Endpoint(f"198.51.100.{n % hosts + 1}", 1000 + n), None
        )
        for n in range(count)
    ]


def receive(bob: Node, world: World, datagrams: list[Datagram]) -> None:
    bob.device.receive(datagrams, world.now, world.unix_ns)


def arrive(bob: Node, datagrams: list[Datagram]) -> None:
    """Deliver the datagrams to the data plane."""
    for one in datagrams:
        bob.dataplane.receive(one.data, one.endpoint, one.source)


def work_off(bob: Node, world: World) -> None:
    while bob.device.worker.work(world.now, world.unix_ns):
        world.now = max(world.now, bob.device.deadline() or 0.0)


def test_handshake_messages_are_processed_within_a_budget(world: World) -> None:
    bob = world.node("bob")
    receive(bob, world, flood(bob, 100))
    assert bob.device.worker.work(world.now, world.unix_ns, limit=10)
    assert drops(bob) == {"NOT_AUTHENTIC": 10}
    deadline = bob.device.deadline()
    assert deadline is not None
    assert deadline <= world.now  # the queue holds more work
    bob.device.tick(world.now, world.unix_ns)
    assert drops(bob) == {"NOT_AUTHENTIC": 10 + WORK_PER_CALL}


def test_the_admission_queue_is_bounded(world: World) -> None:
    bob = world.node("bob")
    receive(bob, world, flood(bob, MAX_DATAGRAMS + 10))
    assert drops(bob) == {"QUEUE_FULL": 10}


def test_initiations_beyond_the_room_of_the_queue_stay_in_the_data_plane(world: World) -> None:
    bob = world.node("bob")
    arrive(bob, flood(bob, 600))
    bob.turn()
    assert bob.dataplane.waiting_initiations() == 600 - MAX_INITIATIONS
    assert set(drops(bob)) == {"COOKIE_SENT"}, "what waits there is load too"
    deadline = bob.device.deadline()
    assert deadline is not None
    assert deadline - world.now < 0.1
    while bob.dataplane.waiting_initiations():
        world.now = max(world.now, bob.device.deadline() or 0.0)
        bob.turn()


def test_messages_refused_at_once_make_room_at_once(world: World) -> None:
    bob = world.node("bob")
    arrive(
        bob, [one._replace(data=one.data[:116] + b"\1" * 16 + bytes(16)) for one in flood(bob, 3 * MAX_INITIATIONS)]
    )
    for turn in (1, 2, 3):
        assert bob.dataplane.has_news
        bob.turn()
        assert drops(bob) == {"BAD_MAC1": turn * MAX_INITIATIONS}
        if turn < 3:
            deadline = bob.device.deadline()
            assert deadline is not None
            assert deadline <= world.now
    assert bob.device.deadline() is None


def test_messages_without_a_valid_mac1_are_not_queued(world: World) -> None:
    bob = world.node("bob")
    receive(bob, world, [one._replace(data=one.data[:116] + bytes(32)) for one in flood(bob, 600)])
    assert drops(bob) == {"BAD_MAC1": 600}
    assert bob.device.deadline() is None


def test_under_load_a_message_without_mac2_gets_a_cookie_reply_only(world: World) -> None:
    bob = world.node("bob")
    datagrams = flood(bob, 600)
    receive(bob, world, datagrams)
    bob.device.worker.work(world.now, world.unix_ns, limit=1)
    # Eight cookie replies cost as much as one handshake.
    assert drops(bob) == {"COOKIE_SENT": 8}
    reply = world.sent[0]
    assert reply.to == datagrams[0].endpoint
    assert len(reply.data) == 64  # shorter than the initiation: no amplification
    assert reply.data[:4] == b"\x03\0\0\0"
    assert reply.data[4:8] == datagrams[0].data[4:8]


def test_not_under_load_mac2_does_not_matter(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    message = the("initiation", world).data
    world.flights.clear()
    receive(bob, world, flood(bob, 100))
    receive(bob, world, [Datagram(message[:-16] + bytes(range(16)), alice.address, None)])
    work_off(bob, world)
    assert drops(bob) == {"NOT_AUTHENTIC": 100}
    assert world.kinds().count("response") == 1


def test_a_peer_behind_a_flood_gets_through_with_a_cookie_on_its_next_try(world: World) -> None:
    alice, bob = world.pair()

    def drown(flight: Flight) -> list[float]:
        if flight.kind == "initiation":
            receive(bob, world, flood(bob, 1500))
        return [0.0]

    world.path = drown
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert drops(bob)["COOKIE_SENT"] > 0
    assert alice.status(bob).failure is HandshakeFailure.COOKIE_DEMANDED
    # A cookie reply causes no immediate message (§6.6) and does not change the endpoint.
    assert world.kinds(sender=alice) == ["initiation"]
    world.run(6.0)
    first, second = (flight.data for flight in world.sent if flight.kind == "initiation" and len(flight.data) == 148)
    assert first[132:] == bytes(16)
    assert second[132:] != bytes(16)
    assert bob.delivered == [b"hello"]
    assert alice.status(bob).failure is None


def test_a_validated_source_has_its_own_rate_limit(world: World) -> None:
    """Twenty a second after a burst of five. Other sources are not affected."""
    alice, bob, carol = world.node("alice"), world.node("bob"), world.node("carol")
    for node in (alice, carol):
        node.knows(bob)
        bob.knows(node)
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    validated = []
    for node, count in ((alice, 8), (carol, 1)):
        stamper = CookieStamper(bob.key.public)
        for number in range(count):
            message = stamper.stamp(
                messages.Initiation(number, next(iter(messages.Suite)), noise(108)).pack(), world.now
            )
            source = bytes(int(part) for part in node.address.host.split(".")) + node.address.port.to_bytes(2, "big")
            stamper.receive_reply(checker.reply(message, source, world.now), world.now)
            message = stamper.stamp(message[:116], world.now)
            validated.append(Datagram(message, node.address, None))
    receive(bob, world, validated + flood(bob, 600))
    bob.device.worker.work(world.now, world.unix_ns, limit=len(validated))
    assert drops(bob)["NOT_AUTHENTIC"] == 5 + 1
    assert drops(bob)["RATE_LIMITED"] == 3


def test_sources_have_no_rate_limit_while_not_under_load(world: World) -> None:
    bob = world.node("bob")
    address = Endpoint("192.0.2.77", 51820)
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    stamper = CookieStamper(bob.key.public)
    validated = []
    for datagram in flood(bob, 8):
        message = stamper.stamp(datagram.data[:116], world.now)
        reply = checker.reply(message, packed_source(address.host, address.port), world.now)
        stamper.receive_reply(reply, world.now)
        validated.append(Datagram(stamper.stamp(datagram.data[:116], world.now), address, None))
    receive(bob, world, validated)
    work_off(bob, world)
    assert drops(bob) == {"NOT_AUTHENTIC": 8}


def test_a_valid_mac2_passes_a_full_queue(world: World) -> None:
    alice, bob = world.pair()
    world.path = lambda _: []
    receive(bob, world, flood(bob, MAX_DATAGRAMS))
    alice.sends(b"hello", bob)
    message = the("initiation", world).data
    receive(bob, world, [Datagram(message, alice.address, None)])
    assert drops(bob) == {"QUEUE_FULL": 1}
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    reply = checker.reply(message, packed_source(alice.address.host, alice.address.port), world.now)
    receive(alice, world, [Datagram(reply, bob.address, None)])
    work_off(alice, world)
    world.now += 5.4
    alice.turn()
    message = the("initiation", world).data
    receive(bob, world, [Datagram(message[:-1] + b"x", alice.address, None)])
    assert drops(bob) == {"QUEUE_FULL": 2}
    receive(bob, world, [Datagram(message, alice.address, None)])
    bob.device.worker.work(world.now, world.unix_ns, limit=1)
    assert world.kinds(sender=bob) == ["response"]


def test_the_queue_of_validated_messages_is_bounded(world: World) -> None:
    bob = world.node("bob")
    receive(bob, world, flood(bob, MAX_DATAGRAMS))
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    validated = []
    for number, datagram in enumerate(flood(bob, MAX_VALIDATED + 3)):
        endpoint = Endpoint(f"10.0.{number // 250}.{number % 250}", 51820)
        stamper = CookieStamper(bob.key.public)
        message = stamper.stamp(datagram.data[:116], world.now)
        reply = checker.reply(message, packed_source(endpoint.host, endpoint.port), world.now)
        stamper.receive_reply(reply, world.now)
        validated.append(Datagram(stamper.stamp(datagram.data[:116], world.now), endpoint, None))
    receive(bob, world, validated)
    assert drops(bob) == {"QUEUE_FULL": 3}


def test_under_a_lasting_flood_handshakes_get_a_share_of_time_and_a_peer_connects(world: World) -> None:
    """Five thousand initiations a second from spoofed sources cost at most as much as 200 handshakes a second."""
    world.timing = Timing(rekey_timeout=1.0)
    alice, bob = world.pair()
    work: list[float] = []
    pool = flood(bob, 600)
    arrive(bob, pool)

    def second() -> None:
        for _ in range(16):
            arrive(bob, pool[:313])
            world.run(0.0625)
        counted = drops(bob)
        work.append(counted.get("COOKIE_SENT", 0) / 8 + counted.get("NOT_AUTHENTIC", 0))

    second()
    alice.sends(b"hello", bob)
    second()
    second()
    assert 198 <= work[2] - work[1] <= 201
    second()
    assert bob.delivered == [b"hello"]


def test_initiations_with_a_valid_mac1_get_a_bounded_share_of_time(world: World) -> None:
    """A thousand initiations a second, in batches too small to fill the queue and set the under-load state."""
    bob = world.node("bob")
    for _ in range(32):
        receive(bob, world, flood(bob, 16))
        world.run(1 / 64)
    assert drops(bob) == {"NOT_AUTHENTIC": 64 + 100}  # the burst, plus 200 a second


def test_responses_to_our_initiations_spend_no_budget(world: World) -> None:
    """A node initiates to all its peers when it starts, and all of them may respond at once."""
    alice = world.node("alice")
    crowd = [world.node(f"crowd {number}") for number in range(100)]
    for one in crowd:
        one.knows(alice)
        alice.knows(one, warm=True)
    world.run(0.1)
    assert all(alice.status(one).state is HandshakeState.ESTABLISHED for one in crowd)


def test_an_expected_response_passes_a_full_queue(world: World) -> None:
    alice, bob = world.pair()
    world.path = lambda _: [0.0]
    receive(alice, world, flood(alice, MAX_DATAGRAMS))
    alice.sends(b"hello", bob)
    world.run(0.01)
    assert bob.delivered == [b"hello"]


def test_an_unexpected_response_costs_no_hash(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    bogus = messages.Response(1, 2, bytes(48)).pack() + bytes(32)
    replayed = the("response", world).data
    receive(alice, world, [Datagram(data, bob.address, None) for data in (bogus, replayed)])
    assert drops(alice) == {"STALE_RESPONSE": 2}
    assert alice.device.deadline() != 0.0


def test_unexpected_cookie_replies_are_not_queued(world: World) -> None:
    """A cookie reply has no mac1, so its sender needs no knowledge of the public key."""
    bob = world.node("bob")
    receive(bob, world, [Datagram(b"\x03\0\0\0" + noise(60), Endpoint("198.51.100.1", 1), None)] * 600)
    assert drops(bob) == {"BAD_COOKIE": 600}
    assert bob.device.deadline() is None


def test_a_cookie_reply_does_not_move_the_endpoint(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    message = the("initiation", world).data
    world.flights.clear()
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    eve = Endpoint("198.51.100.66", 666)
    world.put(checker.reply(message, bytes(6), world.now), eve, alice.address)
    world.run(1.0)
    assert alice.status(bob).failure is HandshakeFailure.COOKIE_DEMANDED
    assert alice.status(bob).endpoint == bob.address
    world.run(5.0)
    assert all(flight.to == bob.address for flight in world.sent if flight.kind == "initiation")


@pytest.mark.parametrize("forgery", ["to no index of ours", "that does not decrypt", "a second time"])
def test_a_forged_cookie_reply_is_counted_and_dropped(world: World, forgery: str) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    message = the("initiation", world).data
    world.flights.clear()
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    reply = bytearray(checker.reply(message, bytes(6), world.now))
    if forgery == "to no index of ours":
        reply[4] ^= 1
    elif forgery == "that does not decrypt":
        reply[40] ^= 1
    else:
        receive(alice, world, [Datagram(bytes(reply), bob.address, None)])
    receive(alice, world, [Datagram(bytes(reply), bob.address, None)])
    work_off(alice, world)
    assert drops(alice) == {"BAD_COOKIE": 1}


def test_a_cookie_expires_after_115_seconds(world: World) -> None:
    alice, bob = world.pair()
    world.path = lambda _: []
    alice.sends(b"hello", bob)
    message = the("initiation", world).data
    checker = bob.device._own_keys.current.checker  # type: ignore[union-attr]
    receive(alice, world, [Datagram(checker.reply(message, bytes(6), world.now), bob.address, None)])
    work_off(alice, world)
    carried = []
    for _ in range(130):
        alice.sends(b"hello", bob)
        world.run(1.0)
    for flight in world.sent[1:]:
        carried.append((flight.at - 1000.0 < 115.0, flight.data[132:] != bytes(16)))
    assert {old_enough for old_enough, _ in carried} == {True, False}
    assert all(fresh is with_mac2 for fresh, with_mac2 in carried)


def test_a_flood_does_not_starve_our_initiations(world: World) -> None:
    alice, bob = world.pair()
    receive(alice, world, flood(alice, MAX_DATAGRAMS))
    alice.sends(b"hello", bob)  # one turn, after which the queue is still nearly full
    assert "initiation" in world.kinds(sender=alice)
    while (deadline := alice.device.deadline()) == world.now:
        alice.turn()
    assert deadline is not None
    assert world.now < deadline < world.now + 0.01  # packets come first, and the remaining work is scheduled


def test_many_initiations_do_not_starve_responses(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    bob.knows(alice)
    alice.knows(bob)
    for number in range(200):
        key = deterministic_random(f"crowd {number}")(32)
        name = f"crowd {number}"
        bob.device.set_peer(
            bob.settings(
                name=name,
                public_keys=(type(alice.key)(key).public,),
                endpoints=(Endpoint("203.0.113.1", number + 1),),
                warm=True,
            ),
            world.now,
        )
    alice.sends(b"hello", bob)
    bob.dataplane.receive(the("initiation", world).data, alice.address, None)
    bob.turn()
    assert "response" in world.kinds(sender=bob)
    assert world.kinds(sender=bob).count("initiation") == WORK_PER_CALL // 2
    assert bob.status(alice).state is HandshakeState.RESPONDED
