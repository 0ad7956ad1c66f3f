"""The handshake: which messages are answered, which are ignored, and what state each may change."""

from __future__ import annotations

import pytest
from fake_dataplane import deterministic_random
from tunnel_world import EVE, LATENCY, World, drops, peer_status, the

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.handshake import initiate
from ravenvpn.crypto.keys import PresharedKey, PrivateKey, PublicKey
from ravenvpn.crypto.tai64n import stamp
from ravenvpn.dataplane.contract import Role
from ravenvpn.tunnel.admission.handshake_filter import HandshakeDrop
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import WIREGUARD_ONLY, HandshakeFailure
from ravenvpn.tunnel.session_events import SessionLost, SessionUp

BOTH = frozenset(Suite)


def test_a_packet_to_send_starts_a_handshake(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]
    assert world.kinds() == ["initiation", "response", "data"]
    bob.sends(b"and you", alice)
    world.run(1.0)
    assert alice.delivered == [b"and you"]
    assert world.kinds() == ["initiation", "response", "data", "data"]


def test_both_ends_report_the_session(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    for one, other, phase in ((alice, bob, HandshakeState.ESTABLISHED), (bob, alice, HandshakeState.ESTABLISHED)):
        status = one.status(other)
        assert status.state is phase
        assert status.attempts == 0
        assert status.failure is None
        assert status.endpoint == other.address
        assert status.suite is Suite.CHACHA20POLY1305
        assert one.device.drain_events() == [SessionUp(other.name, other.address)]
    # Alice's session is established by the response, after one round trip; Bob's by the data that follows.
    assert alice.status(bob).last_handshake_ns == 1_700_000_000_031_250_000
    assert bob.status(alice).last_handshake_ns == 1_700_000_000_046_875_000
    # 148 + 92 + a data message of 16 + 5 + 16 (the fake data plane does not pad).
    assert (alice.status(bob).tx_bytes, alice.status(bob).rx_bytes) == (148 + 37, 92)
    assert (bob.status(alice).tx_bytes, bob.status(alice).rx_bytes) == (92, 148 + 37)


def test_the_initiator_confirms_the_key_with_a_keepalive(world: World) -> None:
    alice, bob = world.pair()
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    assert world.kinds() == ["initiation", "response", "keepalive"]
    assert bob.status(alice).state is HandshakeState.ESTABLISHED


def test_a_preshared_key_must_be_the_same_on_both_ends(world: World) -> None:
    right, wrong = PresharedKey(bytes(range(32))), PresharedKey(bytes(range(1, 33)))
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob, preshared_key=right)
    bob.knows(alice, preshared_key=wrong)
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == []
    assert alice.status(bob).failure is HandshakeFailure.BAD_RESPONSE
    assert drops(alice) == {"NOT_AUTHENTIC": 1}
    bob.knows(alice, preshared_key=right)
    world.run(6.0)
    assert bob.delivered == [b"hello"]
    assert alice.status(bob).failure is None


def test_a_changed_preshared_key_takes_effect_with_the_next_handshake(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(6.0)
    for one, other in ((alice, bob), (bob, alice)):
        one.knows(other, preshared_key=PresharedKey(bytes(range(32))))
    alice.sends(b"two", bob)
    world.run(1.0)
    assert world.kinds() == ["initiation", "response", "data", "data"]
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    alice.sends(b"three", bob)
    world.run(1.0)
    assert bob.delivered == [b"one", b"two", b"three"]


def test_a_replayed_initiation_is_ignored(world: World) -> None:
    """A responder accepts each timestamp once (§5.1), also after the session has ended."""
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    recorded = the("initiation", world).data
    before = bob.status(alice)
    world.put(recorded, EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"REPLAYED_TIMESTAMP": 1}
    assert bob.status(alice) == before.__class__(**{**_fields(before), "session_age": before.session_age + 1.0})
    assert "response" not in world.kinds(since=world.now - 1.5)
    world.run(600.0)  # all keys have been zeroed by then
    world.put(recorded, EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"REPLAYED_TIMESTAMP": 2}
    assert bob.status(alice).endpoint == alice.address


def _fields(status: object) -> dict[str, object]:
    return {name: getattr(status, name) for name in status.__slots__}


def test_initiations_of_one_peer_within_20_ms_are_dropped_as_flood(world: World) -> None:
    bob = world.node("bob")
    alice = PrivateKey.generate(deterministic_random("alice"))
    bob.device.set_peer(bob.settings(name="alice", public_keys=(alice.public,)), world.now)
    for count, pause in enumerate([0.0, 0.019, 0.002]):
        world.run(pause)
        world.put(forged(alice, bob.key.public, count * 2**25), EVE, bob.address)
    world.run(1.0)
    assert world.kinds().count("response") == 2
    assert drops(bob) == {"FLOOD": 1}


def forged(
    ours: PrivateKey, theirs: PublicKey, ns: int, suite: Suite = Suite.CHACHA20POLY1305, index: int = 7
) -> bytes:
    """Return a complete initiation made with the private key `ours`."""
    ephemeral = PrivateKey.generate(deterministic_random(f"ephemeral {ns}"))
    body, _ = initiate(ours, theirs, suite, stamp(1_700_000_000 * 10**9 + ns), ephemeral)
    return CookieStamper(theirs).stamp(messages.Initiation(index, suite, body).pack(), 0.0)


def test_an_unknown_static_key_gets_no_answer(world: World) -> None:
    bob = world.node("bob")
    stranger = PrivateKey.generate(deterministic_random("stranger"))
    world.put(forged(stranger, bob.key.public, 0), EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"UNKNOWN_STATIC": 1}
    assert world.kinds() == ["initiation"]


def test_a_wrong_mac1_gets_no_answer_and_costs_no_diffie_hellman(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    message = bytearray(the("initiation", world).data)
    message[116] ^= 1  # mac1
    world.put(bytes(message), EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"BAD_MAC1": 1}


def test_an_initiation_that_does_not_decrypt_changes_nothing(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    genuine = the("initiation", world).data
    altered = bytearray(genuine[:116])
    altered[50] ^= 1
    world.put(CookieStamper(bob.key.public).stamp(bytes(altered), 0.0), EVE, bob.address)
    before = bob.status(alice)
    world.run(0.0)
    world.run(LATENCY)
    assert drops(bob) == {"NOT_AUTHENTIC": 1}
    assert bob.status(alice).endpoint == before.endpoint
    assert bob.status(alice).rx_bytes == before.rx_bytes


def test_a_forged_response_leaves_the_pending_handshake_unchanged(world: World) -> None:
    """§5.4.3: the handshake state is computed on copies and kept only if the message authenticates."""
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    index = int.from_bytes(the("initiation", world).data[4:8], "little")
    bogus = messages.Response(99, index, bytes(range(48))).pack()
    world.put(CookieStamper(alice.key.public).stamp(bogus, 0.0), EVE, alice.address)
    world.path = lambda flight: [0.5] if flight.kind == "response" else [LATENCY]
    world.run(1.0)
    assert drops(alice) == {"NOT_AUTHENTIC": 1}
    assert bob.delivered == [b"hello"]


def test_a_second_copy_of_a_response_is_stale(world: World) -> None:
    alice, bob = world.pair()
    world.path = lambda flight: [LATENCY, 2 * LATENCY] if flight.kind == "response" else [LATENCY]
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert drops(alice) == {"STALE_RESPONSE": 1}
    assert bob.delivered == [b"hello"]


def test_a_response_to_an_initiation_that_was_repeated_is_stale(world: World) -> None:
    alice, bob = world.pair()
    world.path = lambda flight: [5.5] if flight.kind == "response" and flight.at < 1001 else [LATENCY]
    alice.sends(b"hello", bob)
    world.run(8.0)
    assert world.kinds().count("initiation") == 2
    assert drops(alice) == {"STALE_RESPONSE": 1}
    assert bob.delivered == [b"hello"]


def test_both_ends_can_initiate_at_the_same_time(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"from alice", bob)
    bob.sends(b"from bob", alice)
    world.run(1.0)
    assert bob.delivered == [b"from alice"]
    assert alice.delivered == [b"from bob"]
    assert world.kinds().count("initiation") == 2
    alice.sends(b"again", bob)
    bob.sends(b"again", alice)
    world.run(1.0)
    assert (bob.delivered[-1], alice.delivered[-1]) == (b"again", b"again")
    for one, other in ((alice, bob), (bob, alice)):
        assert one.status(other).state is HandshakeState.ESTABLISHED
    world.run(30.0)
    assert world.kinds().count("initiation") == 2


def test_aes_is_used_where_both_ends_announce_it(world: World) -> None:
    alice, bob = world.node("alice", suites=BOTH), world.node("bob", suites=BOTH)
    alice.knows(bob, suites=BOTH)
    bob.knows(alice, suites=BOTH)
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert the("initiation", world).data[:4] == b"\x01\x01\0\0"
    assert (alice.status(bob).suite, bob.status(alice).suite) == (Suite.AES256GCM, Suite.AES256GCM)
    assert bob.delivered == [b"hello"]


@pytest.mark.parametrize("lacking", ["our own", "the peer's"])
def test_a_plain_wireguard_peer_never_receives_a_marker(world: World, lacking: str) -> None:
    alice = world.node("alice", suites=BOTH if lacking != "our own" else frozenset({Suite.CHACHA20POLY1305}))
    bob = world.node("bob", suites=BOTH)
    alice.knows(bob, suites=BOTH if lacking != "the peer's" else frozenset({Suite.CHACHA20POLY1305}))
    bob.knows(alice)
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert the("initiation", world).data[:4] == b"\x01\0\0\0"
    assert bob.delivered == [b"hello"]


@pytest.mark.parametrize(
    ("ours", "the_peers"), [(BOTH, WIREGUARD_ONLY), (WIREGUARD_ONLY, BOTH)], ids=["by the peer", "by us"]
)
def test_a_suite_that_was_not_announced_is_refused(
    world: World, ours: frozenset[Suite], the_peers: frozenset[Suite]
) -> None:
    bob = world.node("bob", suites=ours)
    alice = PrivateKey.generate(deterministic_random("alice"))
    bob.device.set_peer(bob.settings(name="alice", public_keys=(alice.public,), suites=the_peers), world.now)
    world.put(forged(alice, bob.key.public, 0, Suite.AES256GCM), EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"SUITE_REFUSED": 1}
    assert peer_status(bob.device, "alice", world.now).failure is HandshakeFailure.SUITE_REFUSED
    assert world.kinds() == ["initiation"]


def test_a_flipped_marker_does_not_authenticate(world: World) -> None:
    """The handshake hash starts with the protocol's name. An attacker on the path cannot change the suite."""
    alice, bob = world.node("alice", suites=BOTH), world.node("bob", suites=BOTH)
    alice.knows(bob, suites=BOTH)
    bob.knows(alice, suites=BOTH)
    alice.sends(b"hello", bob)
    head = bytearray(the("initiation", world).data[:116])
    head[1] = 0
    world.flights.clear()
    world.put(CookieStamper(bob.key.public).stamp(bytes(head), 0.0), EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"NOT_AUTHENTIC": 1}


def test_a_device_that_is_down_neither_initiates_nor_responds(world: World) -> None:
    alice, bob = world.node("alice", up=False), world.node("bob")
    alice.knows(bob, warm=True, persistent_keepalive=25.0)
    bob.knows(alice)
    alice.sends(b"hello", bob)
    bob.sends(b"hello", alice)
    world.run(3.0)
    assert world.kinds(sender=alice) == []
    assert drops(alice) == {"NOT_LISTENING": 1}
    assert alice.device.deadline() is None


def test_down_wipes_keys_and_up_starts_again(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(10.0)
    alice.device.set_down()
    assert alice.dataplane.sessions == {}
    assert alice.device.deadline() is None
    assert alice.device.drain_events() == [SessionUp("bob", bob.address), SessionLost("bob", None)]
    bob.sends(b"are you there?", alice)
    world.run(1.0)
    assert alice.delivered == []
    alice.device.set_up(world.now)
    alice.sends(b"back", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello", b"back"]


def test_a_replay_is_detected_after_down_and_up(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    bob.device.set_down()
    bob.device.set_up(world.now)
    world.put(the("initiation", world).data, EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"REPLAYED_TIMESTAMP": 1}


# The wall clock.


def test_a_wall_clock_that_goes_back_while_we_run_does_not_lock_us_out(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(200.0)
    world.wall_offset_ns = -3600 * 10**9
    alice.sends(b"two", bob)
    world.run(1.0)
    assert bob.delivered == [b"one", b"two"]


def test_a_peer_restarted_with_a_clock_behind_is_refused_with_the_reason(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(700.0)
    world.wall_offset_ns = -3600 * 10**9
    alice = world.restart(alice)
    alice.knows(bob)
    alice.sends(b"two", bob)
    world.run(1.0)
    assert bob.status(alice).failure is HandshakeFailure.REPLAYED
    assert HandshakeDrop.REPLAYED_TIMESTAMP in bob.device.drops()
    bob.sends(b"I call you", alice)  # the initiation of the other direction carries Bob's clock
    world.run(1.0)
    assert alice.delivered == [b"I call you"]


def test_keypairs_are_installed_with_the_role(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    (ours,), (theirs,) = alice.dataplane.sessions.values(), bob.dataplane.sessions.values()
    assert (ours[1].keypair.role, theirs[1].keypair.role) == (Role.INITIATOR, Role.RESPONDER)
    assert ours[1].keypair.send_key == theirs[1].keypair.receive_key
    assert ours[1].keypair.receive_key == theirs[1].keypair.send_key
