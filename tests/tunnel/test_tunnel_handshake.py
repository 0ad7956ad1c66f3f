"""Scenes of the handshake: who answers whom, and what is ignored."""

from __future__ import annotations

from tunnel_world import World


def test_two_ends_shake_hands_when_one_has_something_to_say(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    assert bob.delivered == [b"hello"]
    assert world.kinds() == ["initiation", "response", "data"]
    bob.sends(b"and you", alice)
    world.run(1.0)
    assert alice.delivered == [b"and you"]
    assert world.kinds() == ["initiation", "response", "data", "data"]
