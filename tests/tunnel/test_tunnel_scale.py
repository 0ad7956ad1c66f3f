"""A thousand peers: the cost of adding them, of their memory and of their deadlines."""

from __future__ import annotations

import time
import tracemalloc

from fake_dataplane import deterministic_random
from tunnel_world import Node, World

from ravenvpn.crypto.keys import PublicKey
from ravenvpn.dataplane.contract import Endpoint, PeerId
from ravenvpn.tunnel.device import PeerSettings

PEERS = 1000
draw = deterministic_random("scale")


def crowd() -> list[PeerSettings]:
    return [
        PeerSettings(
            f"node {number}",
            (PublicKey(draw(32)),),
            endpoints=(Endpoint("203.0.113.1", number + 1),),
            persistent_keepalive=25.0,
        )
        for number in range(PEERS)
    ]


def introduce(alice: Node, world: World, peers: list[PeerSettings]) -> None:
    for settings in peers:
        alice.device.set_peer(settings, world.now)


def drain(alice: Node) -> None:
    alice.turn()
    while alice.device.deadline() == 0.0:
        alice.turn()


def test_a_thousand_peers_are_added_in_half_a_second_and_ten_megabytes(world: World) -> None:
    """Measured: 30 ms and 7 MB, including the fake data plane. The limits leave room for a busy machine."""
    alice, peers = world.node("alice"), crowd()
    began = time.process_time()
    introduce(alice, world, peers)
    assert time.process_time() - began < 0.5
    world.path = lambda _: []
    drain(alice)
    assert world.kinds().count("initiation") == PEERS
    tracemalloc.start()
    second = world.node("second")
    introduce(second, world, crowd())
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 10_000_000


def test_a_thousand_busy_peers_share_one_bounded_heap(world: World) -> None:
    alice, peers = world.node("alice"), crowd()
    introduce(alice, world, peers)
    world.path = lambda _: []
    world.run(6.0)
    deadlines = alice.device._schedule._deadlines
    assert len(deadlines) == PEERS
    assert len(deadlines._heap) <= 2 * PEERS + 64


def test_the_cost_of_a_traffic_report_does_not_depend_on_the_number_of_peers(world: World) -> None:
    """`deadline` and a traffic report cost the same with ten peers and with a thousand, within a factor."""
    costs = []
    for count in (10, PEERS):
        alice = world.node(f"alice {count}")
        introduce(alice, world, crowd()[:count])
        drain(alice)
        peer = alice.dataplane.known[PeerId(1)]
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            for step in range(200):
                peer.data_sent = peer.any_sent = world.now + step / 1000
                report = type(alice.dataplane).report(peer)
                alice.device.receive([report], world.now, world.unix_ns)
                alice.device.deadline()
            best = min(best, time.process_time() - began)
        costs.append(best)
    assert costs[1] < 3 * costs[0]
