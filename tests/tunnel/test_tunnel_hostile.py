"""Hostile datagrams: no exception leaves the device, no peer changes, and memory is bounded.

A third of the datagrams have a valid mac1 and so reach the handshake. Others are genuine messages of real peers,
altered and with a new mac1, which anyone who knows the public key can compute.
"""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import pytest
from tunnel_world import Node, World, drops

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.dataplane.contract import Datagram, Endpoint
from ravenvpn.token_bucket import TokenBucket
from ravenvpn.tunnel.admission.handshake_filter import HandshakeDrop
from ravenvpn.tunnel.peer import PeerStatus

BOTH = frozenset(Suite)


class Attacker:
    """An attacker with Bob's public key and a record of every message sent."""

    def __init__(self, bob: Node, recorded: list[bytes], seed: int) -> None:
        self._dice = random.Random(seed)
        self._stamper = CookieStamper(bob.key.public)
        self._recorded = recorded

    def datagram(self) -> bytes:
        dice = self._dice
        match dice.randrange(6):
            case 0:  # random bytes
                return dice.randbytes(dice.choice((0, 1, 4, 31, 32, 64, 92, 148, 149, 1500)))
            case 1:  # right type and length, random contents
                kind, length = dice.choice(((1, 148), (2, 92), (3, 64)))
                return bytes([kind, 0, 0, 0]) + dice.randbytes(length - 4)
            case 2 | 3:  # with a valid mac1
                kind, length = dice.choice(((1, 116), (2, 60)))
                marker = dice.choice((0, 0, 1)) if kind == 1 else 0
                return self._stamper.stamp(bytes([kind, marker, 0, 0]) + dice.randbytes(length - 4), 0.0)
            case 4:  # recorded, altered, with a new mac1
                message = bytearray(dice.choice(self._recorded))
                for _ in range(dice.randint(1, 3)):
                    message[dice.randrange(4, len(message))] ^= 1 << dice.randrange(8)
                return bytes(message) if len(message) == 64 else self._stamper.stamp(bytes(message[:-32]), 0.0)
            case _:  # replayed unchanged
                return dice.choice(self._recorded)


def facts(status: PeerStatus) -> PeerStatus:
    return replace(status, session_age=None)


def attack(world: World, alice: Node, bob: Node, attacker: Attacker, count: int) -> None:
    """Receive `count` datagrams in batches of 100, and process all of them or a part after each."""
    for batch in range(count // 100):
        source = Endpoint(f"198.51.100.{batch % 250 + 1}", 1024 + batch)
        bob.device.receive(
            [Datagram(attacker.datagram(), source, None) for _ in range(100)], world.now, world.unix_ns
        )
        while bob.device.worker.work(world.now, world.unix_ns):
            pass


def besieged(world: World) -> tuple[Node, Node, Attacker]:
    world.handshake_budget = lambda: TokenBucket(rate=1e6, burst=1e6)  # a budget for all datagrams at one instant
    alice, bob = world.node("alice", suites=BOTH), world.node("bob", suites=BOTH)
    alice.knows(bob, suites=BOTH)
    bob.knows(alice, suites=BOTH)
    alice.sends(b"before", bob)
    world.run(1.0)
    bob.device.initiate("alice", world.now)
    world.run(12.0)
    recorded = [flight.data for flight in world.sent if flight.data[0] in (1, 2)]
    recorded.append(b"\x03\0\0\0" + recorded[-1][4:8] + bytes(56))
    return alice, bob, Attacker(bob, recorded, seed=20)


def assert_untouched(world: World, count: int) -> None:
    alice, bob, attacker = besieged(world)
    before, sent, indices = bob.status(alice), len(world.sent), len(bob.device._indices)
    deadline, counted = bob.device.deadline(), sum(bob.device.drops().values())
    attack(world, alice, bob, attacker, count)
    assert facts(bob.status(alice)) == facts(before)
    assert bob.device.deadline() == deadline
    assert len(bob.device._indices) == indices
    assert sum(bob.device.drops().values()) == counted + count  # every datagram is counted
    assert len(world.sent) == sent  # and none was answered
    past_mac1 = sum(drops(bob).get(name, 0) for name in ("NOT_AUTHENTIC", "STALE_RESPONSE", "REPLAYED_TIMESTAMP"))
    assert past_mac1 > count / 3
    alice.sends(b"after", bob)
    world.run(1.0)
    assert bob.delivered == [b"before", b"after"]


def test_unauthentic_messages_change_no_peer(world: World) -> None:
    assert_untouched(world, 20_000)


def test_a_pending_initiation_survives_unauthentic_messages(world: World) -> None:
    alice, bob, attacker = besieged(world)
    world.path = lambda _: []
    bob.device.initiate("alice", world.now)
    world.run(0.0)
    attack(world, alice, bob, attacker, 3_000)
    world.path = lambda _: [0.0]
    answer = [flight.data for flight in world.sent if flight.kind == "initiation"][-1]
    alice.dataplane.receive(answer, bob.address, None)
    world.run(1.0)
    assert bob.status(alice).attempts == 0
    assert bob.status(alice).last_handshake_ns == world.unix_ns - 10**9


def test_memory_is_bounded_under_a_flood(world: World) -> None:
    alice, bob, attacker = besieged(world)
    attack(world, alice, bob, attacker, 2_000)
    tracemalloc.start()
    attack(world, alice, bob, attacker, 1_000)
    first, _ = tracemalloc.get_traced_memory()
    attack(world, alice, bob, attacker, 4_000)
    second, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert second - first < 50_000


def test_events_of_removed_peers_are_ignored(world: World) -> None:
    alice, bob = world.pair()
    alice.sends(b"hello", bob)
    world.run(1.0)
    bob.dataplane.moved = True
    late = bob.dataplane.drain_events()
    bob.sends(b"x", alice)
    identity = bob.status(alice).id
    bob.device.remove_peer("alice")
    late += bob.dataplane.drain_events()
    bob.device.receive(late, world.now, world.unix_ns)
    assert identity not in {status.id for status in bob.device.peers(world.now)}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_hostile_messages(world: World) -> None:
    assert_untouched(world, 1_000_000)
    assert set(drops(world.nodes[1])) <= {reason.name for reason in HandshakeDrop}
