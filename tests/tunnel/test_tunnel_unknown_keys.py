"""Initiations from unknown keys: they are answered when a peer with the key is configured."""

from __future__ import annotations

from fake_dataplane import deterministic_random
from tunnel_world import EVE, World

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.handshake import initiate
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.crypto.tai64n import stamp
from ravenvpn.tunnel.admission.unknown_keys import MAX_UNKNOWN_KEYS
from ravenvpn.tunnel.handshake import messages

LATENCY = 1 / 64


def call(ours: PrivateKey, theirs: PublicKey, ns: int) -> bytes:
    """Return a complete initiation made with the private key `ours`."""
    ephemeral = PrivateKey.generate(deterministic_random(f"ephemeral {ns}"))
    body, _ = initiate(ours, theirs, Suite.CHACHA20POLY1305, stamp(1_700_000_000 * 10**9 + ns), ephemeral)
    message = messages.Initiation(7, Suite.CHACHA20POLY1305, body).pack()
    return CookieStamper(theirs).stamp(message, 0.0)


def test_an_early_initiation_is_answered_when_its_peer_is_configured(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob)
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert world.kinds() == ["initiation"]
    configured = world.now
    bob.knows(alice)
    world.run(2 * LATENCY)
    assert world.kinds() == ["initiation", "response", "data"]
    assert bob.delivered == [b"hello"]
    assert [flight.at for flight in world.sent if flight.kind == "response"] == [configured]


def test_an_early_initiation_expires_when_it_would_be_repeated(world: World) -> None:
    """After REKEY_TIMEOUT the initiator sends a newer initiation, and ignores a response to the first."""
    caller, bob = PrivateKey.generate(deterministic_random("caller")), world.node("bob")
    alice = world.node("alice")
    alice.key = caller
    world.put(call(caller, bob.key.public, 0), EVE, bob.address)
    world.run(5.0 + 2 * LATENCY)
    bob.knows(alice)
    world.run(0.0)
    assert world.kinds(sender=bob) == []


def test_a_replayed_initiation_does_not_replace_a_newer_one(world: World) -> None:
    caller, bob = PrivateKey.generate(deterministic_random("caller")), world.node("bob")
    alice = world.node("alice")
    alice.key = caller
    grain = 1 << 25
    world.put(call(caller, bob.key.public, grain), alice.address, bob.address)
    world.run(0.5)
    world.put(call(caller, bob.key.public, 0), EVE, bob.address)
    world.run(0.5)
    bob.knows(alice)
    world.run(0.0)
    assert [flight.to for flight in world.sent if flight.kind == "response"] == [alice.address]


def test_initiations_of_made_up_keys_are_bounded(world: World) -> None:
    """The oldest initiation is dropped first, so memory is bounded."""
    bob = world.node("bob")
    strangers = [PrivateKey.generate(deterministic_random(f"stranger {i}")) for i in range(MAX_UNKNOWN_KEYS + 1)]
    for stranger in strangers:
        world.put(call(stranger, bob.key.public, 0), EVE, bob.address)
        world.run(0.03)
    alice = world.node("alice")
    for stranger, answered in ((strangers[0], False), (strangers[1], True)):
        alice.key, alice.name = stranger, f"stranger {answered}"
        before = len(world.kinds(sender=bob))
        bob.knows(alice)
        world.run(0.0)
        assert (len(world.kinds(sender=bob)) > before) is answered


def test_early_initiations_to_a_replaced_key_are_dropped(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob")
    alice.knows(bob)
    alice.device.initiate("bob", world.now)
    world.run(1.0)
    bob.device.set_private_key(PrivateKey.generate(deterministic_random("another bob")), world.now)
    bob.knows(alice, endpoints=())
    world.run(0.5)
    assert world.kinds(sender=bob) == []
