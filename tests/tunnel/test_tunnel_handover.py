"""Session hand-over: the state a device passes to its successor, and the blobs it refuses."""

from __future__ import annotations

import msgspec
import pytest
from fake_dataplane import deterministic_random
from tunnel_world import EVE, Node, World, drops, the

from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.tunnel.device import Device
from ravenvpn.tunnel.handshake.states import HandshakeState


def hand_over(node: Node, world: World, key: PrivateKey | None = None) -> None:
    """Replace the process: its successor thaws the data plane's blob and the device's blob."""
    blob = node.device.freeze(world.now)
    node.device = Device(node.dataplane, random=deterministic_random("successor"), timing=world.timing)
    node.device.thaw(blob, world.now)
    node.device.set_private_key(key or node.key, world.now)
    node.device.set_up(world.now)


def test_a_successor_uses_the_sessions_without_a_handshake(world: World) -> None:
    alice, bob = world.pair(preshared_key=PresharedKey(bytes(range(32))), persistent_keepalive=25.0)
    alice.sends(b"one", bob)
    world.run(10.0)
    before = alice.status(bob)
    hand_over(alice, world)
    assert alice.status(bob) == before
    alice.sends(b"two", bob)
    bob.sends(b"three", alice)
    world.run(1.0)
    assert (bob.delivered, alice.delivered) == ([b"one", b"two"], [b"three"])
    # one from each end at the start, for its first persistent keepalive
    assert world.kinds().count("initiation") == 2


def test_ids_and_settings_survive_a_hand_over(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    identity = alice.status(bob).id
    hand_over(alice, world)
    assert alice.device.set_peer(bob.settings(), world.now) == identity
    carol = world.node("carol")
    assert alice.device.set_peer(carol.settings(), world.now) == identity + 1


def test_a_replay_is_detected_after_a_hand_over(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    hand_over(bob, world)
    world.put(the("initiation", world).data, EVE, bob.address)
    world.run(1.0)
    assert drops(bob) == {"REPLAYED_TIMESTAMP": 1}


def test_own_timestamps_grow_across_a_hand_over_with_a_clock_that_went_back(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(150.0)
    world.wall_offset_ns = -3600 * 10**9
    hand_over(alice, world)
    alice.sends(b"two", bob)
    world.run(1.0)
    assert world.kinds().count("initiation") == 2
    assert drops(bob) == {}


def test_deadlines_survive_a_hand_over(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(300.0)
    hand_over(alice, world)
    world.run(239.0)
    assert len(alice.dataplane.sessions) == 1
    world.run(2.0)
    assert alice.dataplane.sessions == {}


def test_an_index_in_use_is_not_allocated_after_a_hand_over(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    (index,) = alice.dataplane.sessions
    hand_over(alice, world)
    assert alice.device._indices.lookup(index) is not None
    for _ in range(3):
        alice.device.initiate("bob", world.now)
        world.run(6.0)
    world.run(600.0)
    assert len(alice.device._indices) == 0


def test_a_pending_handshake_starts_again_after_a_hand_over(world: World) -> None:
    alice, bob = world.node("alice"), world.node("bob", up=False)
    alice.knows(bob, warm=True)
    bob.knows(alice)
    world.run(2.0)
    hand_over(alice, world)
    bob.device.set_up(world.now)
    alice.device.set_peer(bob.settings(warm=True), world.now)
    world.run(6.0)
    assert bob.status(alice).state is HandshakeState.ESTABLISHED


def test_a_successor_with_another_key_ends_the_sessions(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    hand_over(alice, world, PrivateKey.generate(deterministic_random("another")))
    alice.sends(b"two", bob)
    world.run(0.5)
    assert bob.delivered == [b"one"]


def test_a_device_with_peers_cannot_take_over(world: World) -> None:
    alice, _ = world.pair()
    with pytest.raises(ValueError, match="without peers"):
        alice.device.thaw(alice.device.freeze(world.now), world.now)


@pytest.mark.parametrize("damage", ["not one", "cut", "version", "format", "future", "twice", "key", "suite"])
def test_a_damaged_blob_is_refused_and_changes_nothing(world: World, damage: str) -> None:
    alice, bob = world.pair()
    alice.sends(b"one", bob)
    world.run(1.0)
    blob = alice.device.freeze(world.now)
    image = msgspec.msgpack.decode(blob)
    (peer,) = image["frozen_peers"]
    now = world.now
    match damage:
        case "not one":
            blob = b"hello"
        case "cut":
            blob = blob[:-1]
        case "future":
            now -= 1.0
        case _:
            match damage:
                case "version":
                    image["version"] = 99
                case "format":
                    image["format"] = "something else"
                case "twice":
                    image["frozen_peers"] = [peer, peer]
                case "key":
                    peer[2] = [b"short"]
                case "suite":
                    peer[6] = ["rot13"]
            blob = msgspec.msgpack.encode(image)
    fresh = Device(alice.dataplane, random=deterministic_random("successor"))
    with pytest.raises(ValueError, match="frozen tunnel"):
        fresh.thaw(blob, now)
    assert fresh.peers(world.now) == []
