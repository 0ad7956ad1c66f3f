"""Static keys: owners, unusable keys, and changes of a node's own key and of a peer's key."""

from __future__ import annotations

import pytest
from fake_dataplane import deterministic_random
from tunnel_world import EVE, LATENCY, World, drops, peer_status, the

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import HandshakeFailure

BOTH = frozenset(Suite)


def test_a_peer_with_our_own_key_gets_no_messages(world: World) -> None:
    alice = world.node("alice")
    alice.device.set_peer(alice.settings(name="mirror", endpoints=(EVE,), warm=True), world.now)
    world.run(30.0)
    assert world.kinds() == []
    assert peer_status(alice.device, "mirror", world.now).failure is HandshakeFailure.OWN_KEY


@pytest.mark.parametrize("low_order", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_of_low_order_can_be_configured_but_gets_no_messages(world: World, low_order: bytes) -> None:
    alice = world.node("alice")
    settings = alice.settings(name="odd", public_keys=(PublicKey(low_order),), endpoints=(EVE,), warm=True)
    alice.device.set_peer(settings, world.now)
    world.run(30.0)
    assert world.kinds() == []
    assert peer_status(alice.device, "odd", world.now).failure is HandshakeFailure.UNUSABLE_KEY


def test_a_key_can_belong_to_one_peer_only(world: World) -> None:
    alice, bob = world.pair()
    with pytest.raises(ValueError, match="belongs to peer 'bob' already"):
        alice.device.set_peer(bob.settings(name="carol"), world.now)
    assert [status.settings.name for status in alice.device.peers(world.now)] == ["bob"]


def test_the_same_settings_again_change_nothing(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    first = alice.status(bob).id
    assert alice.device.set_peer(bob.settings(), world.now) == first
    assert alice.dataplane.known[first].endpoint == bob.address
    assert world.kinds() == ["initiation", "response", "data"]


def test_a_removed_peer_is_unknown_and_its_indices_are_free(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    bob.device.remove_peer("alice")
    alice.sends(b"anyone?", bob)
    alice.device.initiate("bob", world.now)
    world.run(10.0)
    assert bob.delivered == [b"hello"]
    assert drops(bob)["UNKNOWN_STATIC"] >= 1
    assert len(bob.device._indices) == 0
    with pytest.raises(KeyError):
        peer_status(bob.device, "alice", world.now)


# Rotation of static keys.


def test_a_next_key_of_ours_is_answered_and_the_change_to_it_loses_no_packet(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"0", bob)
    world.run(10.0)
    old, new = alice.key, PrivateKey.generate(deterministic_random("alice's next"))
    alice.device.set_next_private_key(new)
    bob.knows(alice, public_keys=(new.public, old.public))
    bob.device.initiate("alice", world.now)
    world.run(10.0)
    assert bob.status(alice).last_handshake_ns // 10**9 == 1_700_000_010
    alice.device.set_private_key(new, world.now)
    alice.device.set_next_private_key(old)
    alice.sends(b"1", bob)
    alice.device.initiate("bob", world.now)
    world.run(10.0)
    alice.sends(b"2", bob)
    alice.device.set_next_private_key(None)
    bob.knows(alice, public_keys=(new.public,))
    alice.sends(b"3", bob)
    world.run(1.0)
    assert bob.delivered == [b"0", b"1", b"2", b"3"]
    assert alice.device.public_key == new.public


def test_the_previous_key_is_answered_for_peers_that_still_use_it(world: World) -> None:
    alice, bob = world.pair()
    new = PrivateKey.generate(deterministic_random("alice's next"))
    alice.device.set_private_key(new, world.now)
    alice.device.set_next_private_key(alice.key)
    bob.sends(b"to the old key", alice)
    world.run(1.0)
    assert alice.delivered == [b"to the old key"]


def test_a_new_private_key_stops_sending_under_old_sessions(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    new = PrivateKey.generate(deterministic_random("alice's next"))
    alice.device.set_private_key(new, world.now)
    bob.knows(alice, public_keys=(new.public,))
    alice.sends(b"as another", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello", b"as another"]
    # at once: the rate limit of initiations does not apply to a new key
    assert world.kinds().count("initiation") == 2


def test_a_peers_key_that_is_withdrawn_ends_the_session_made_with_it(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    new = PrivateKey.generate(deterministic_random("alice's next"))
    bob.knows(alice, public_keys=(new.public,))
    assert bob.status(alice).state is HandshakeState.IDLE
    alice.sends(b"stale", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]


def test_a_response_must_be_addressed_to_the_key_of_the_initiation(world: World) -> None:
    alice, bob = world.pair()
    other = PrivateKey.generate(deterministic_random("alice's next"))
    alice.device.set_next_private_key(other)
    world.path = lambda flight: [] if flight.kind == "response" else [LATENCY]
    alice.sends(b"hello", bob)
    world.run(1.0)
    response = the("response", world).data
    world.path = lambda _: [LATENCY]
    world.put(CookieStamper(other.public).stamp(response[:60], 0.0), bob.address, alice.address)
    world.run(1.0)
    assert drops(alice) == {"NOT_AUTHENTIC": 1}
    world.put(response, bob.address, alice.address)
    world.run(1.0)
    assert bob.delivered == [b"hello"]


def test_the_state_of_a_withdrawn_key_is_deleted(world: World) -> None:
    """A peer that was removed and added again is accepted with the old key and a clock that is behind.

    The case is a reinstalled node.
    """
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    other = PrivateKey.generate(deterministic_random("another"))
    bob.knows(alice, public_keys=(other.public,))
    world.wall_offset_ns = -3600 * 10**9
    alice = world.restart(alice)
    alice.knows(bob)
    bob.knows(alice)
    alice.sends(b"two", bob)
    world.run(1.0)
    assert bob.delivered == [b"one", b"two"]


def test_a_device_without_a_private_key_sends_nothing(world: World) -> None:
    alice, bob = world.pair()
    alice.device.set_private_key(None, world.now)
    alice.sends(b"hello", bob)
    bob.sends(b"hello", alice)
    world.run(1.0)
    assert world.kinds(sender=alice) == []
    assert drops(alice) == {"NOT_LISTENING": 1}
    assert alice.status(bob).failure is HandshakeFailure.NO_PRIVATE_KEY
    alice.device.set_private_key(alice.key, world.now)
    world.run(1.0)
    assert bob.delivered == [b"hello"]


# Up and down.
