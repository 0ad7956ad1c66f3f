"""Two ends that probe each other in memory, on a clock that is moved: verdicts, pace, what a hub says of others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, cast

import pytest

from ravenvpn.agent.probing import Probing, subject
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.mesh.liveness import Verdict
from ravenvpn.mesh.nodeplan import Candidate, PeerKind, PeerPlan
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.peer import PeerSettings, PeerStatus
from ravenvpn.tunnel.phases import Phase

ADDRESSES = {name: IPv6Address(f"fd00::1:{number}") for number, name in enumerate(("hub", "edge", "island"), 1)}
BUSY, IDLE = 1.0, 2.0


def plan(name: str, *, warm: bool = True) -> PeerPlan:
    return PeerPlan(
        name=name,
        region=name,
        kind=PeerKind.ACTIVE,
        public_keys=(bytes(32),),
        candidates=(Candidate("192.0.2.1", 4500),),
        keepalive=None,
        warm=warm,
        suites=(Suite.CHACHA20POLY1305,),
        tunnel_address=ADDRESSES[name],
    )


@dataclass
class End:
    """One node: its Probing, and a tunnel that is a list of packets sent."""

    name: str
    probing: Probing
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def id_of(self, name: str) -> int:
        return list(ADDRESSES).index(name)

    def send_inner(self, name: str, packet: bytes) -> None:
        self.sent.append((name, packet))

    def status(self, name: str, *, session: bool = True, packets: int = 0, octets: int = 0) -> PeerStatus:
        return PeerStatus(
            id=self.id_of(name),  # type: ignore[arg-type]
            settings=PeerSettings(name, (PublicKey(bytes(31) + b"\1"),)),
            phase=Phase.IDLE,
            endpoint=Endpoint("192.0.2.1", 4500),
            suite=None,
            session_age=1.0 if session else None,
            last_handshake_ns=0,
            attempts=0,
            failure=None,
            rx_bytes=octets,
            tx_bytes=0,
            rx_packets=packets,
            tx_packets=0,
            staged=0,
        )


def end(name: str, *peers: str, warm: bool = True) -> End:
    made: list[End] = []
    numbers = itertools.count(1)

    def random(count: int) -> bytes:
        return next(numbers).to_bytes(count, "big")

    def changed() -> None:
        if made:
            made[0].changes += 1

    hashes = {subject(address): node for node, address in ADDRESSES.items()}
    one = End(name, Probing(BUSY, IDLE, random=random, on_change=changed, node_of=hashes.get))
    made.append(one)
    one.probing.adopt(cast(Tunnel, cast(Any, one)), ADDRESSES[name])
    one.probing.watch({peer: plan(peer, warm=warm) for peer in peers}, 100.0)
    return one


def carry(ends: dict[str, End], now: float, arrives: Callable[[str, str], bool] = lambda *_: True) -> int:
    """Deliver what was sent, answers included; returns how many packets that were."""
    count = 0
    while any(one.sent for one in ends.values()):
        for one in ends.values():
            packets, one.sent = one.sent, []
            for name, packet in packets:
                count += 1
                if arrives(one.name, name):
                    ends[name].probing.receive(one.name, packet, now)
    return count


def run(
    ends: dict[str, End], begin: float, until: float, arrives: Callable[[str, str], bool] = lambda *_: True
) -> list[float]:
    """Tenths of a second pass; returns when the first end of `ends` asked or answered."""
    asked = []
    first = next(iter(ends.values()))
    now = begin
    while now < until:
        for one in ends.values():
            one.probing.look([one.status(peer) for peer in ends if peer != one.name], now)
            one.probing.tick(now)
        if first.sent:
            asked.append(round(now, 1))
        carry(ends, now, arrives)
        now += 0.1
    return asked


@pytest.fixture
def pair() -> dict[str, End]:
    return {"edge": end("edge", "hub"), "hub": end("hub", "edge")}


def test_who_answers_is_alive_and_its_round_trip_is_known(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    assert pair["edge"].probing.liveness.of("hub") is Verdict.ALIVE
    assert pair["edge"].probing.quality()["hub"].loss == 0.0


def test_who_falls_silent_is_dead_within_3_s_and_planning_is_told_once(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    before = pair["edge"].changes
    edge = {"edge": pair["edge"], "hub": pair["hub"]}
    run(edge, 105.0, 107.0, arrives=lambda *_: False)
    assert pair["edge"].probing.liveness.of("hub") is Verdict.ALIVE, "two seconds of silence are no proof yet"
    # With traffic there is a probe every second; without, two have to go unanswered first.
    run(edge, 107.0, 110.0, arrives=lambda *_: False)
    assert pair["edge"].probing.liveness.of("hub") is Verdict.DEAD
    assert pair["edge"].changes == before + 1


def test_one_answer_does_not_raise_the_dead_several_do(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    run(pair, 105.0, 111.0, arrives=lambda *_: False)
    edge = pair["edge"].probing
    assert edge.liveness.of("hub") is Verdict.DEAD
    now = 111.0
    verdicts = []
    while now < 117.0:
        edge.look([pair["edge"].status("hub")], now)
        edge.tick(now)
        if pair["edge"].sent:
            carry(pair, now)
            verdicts.append(edge.liveness.of("hub"))
        now += 0.1
    # Probes that were lost before may still be counted in between, so it can take more than two.
    answers_needed = verdicts.index(Verdict.ALIVE) + 1
    assert 2 <= answers_needed <= 4
    assert verdicts[answers_needed:] == [Verdict.ALIVE] * (len(verdicts) - answers_needed)


def test_an_idle_peer_is_asked_every_two_seconds_one_with_traffic_every_second(pair: dict[str, End]) -> None:
    edge, hub = pair["edge"], pair["hub"]
    hub.probing.watch({}, 100.0)

    def asked(packets: Callable[[float], int]) -> int:
        count, now = 0, 100.0
        while now < 120.0:
            edge.probing.look([edge.status("hub", packets=packets(now))], now)
            edge.probing.tick(now)
            count += len(edge.sent)
            for _, packet in edge.sent:
                # Answered, or open questions would hurry it.
                replies = end("hub", "edge")
                replies.probing.receive("edge", packet, now)
                edge.probing.receive("hub", replies.sent[0][1], now)
            edge.sent.clear()
            now += 0.1
        return count

    assert asked(lambda _: 0) in (10, 11)
    edge.probing.watch({}, 120.0)
    edge.probing.watch({"hub": plan("hub")}, 100.0)
    assert asked(lambda now: int(now * 1000)) in (19, 20, 21)


def test_a_cold_peer_without_session_is_left_in_peace() -> None:
    edge = end("edge", "hub", warm=False)
    for tenth in range(100):
        edge.probing.look([edge.status("hub", session=False)], 100.0 + tenth / 10)
        edge.probing.tick(100.0 + tenth / 10)
    assert edge.sent == []
    assert edge.probing.liveness.of("hub") is Verdict.UNKNOWN


def test_both_ends_learn_from_a_hub_whom_it_does_not_reach() -> None:
    ends = {"edge": end("edge", "hub"), "hub": end("hub", "edge", "island"), "island": end("island", "hub")}
    run(ends, 100.0, 105.0)
    assert ends["edge"].probing.liveness.carries("hub", "island")
    run(ends, 105.0, 113.0, arrives=lambda one, other: "island" not in (one, other))
    assert ends["hub"].probing.liveness.of("island") is Verdict.DEAD
    assert not ends["edge"].probing.liveness.carries("hub", "island")
    run(ends, 113.0, 120.0)
    assert ends["edge"].probing.liveness.carries("hub", "island")


def test_a_handshake_given_up_is_proof_enough(pair: dict[str, End]) -> None:
    pair["edge"].probing.given_up("hub", 101.0)
    assert pair["edge"].probing.liveness.of("hub") is Verdict.DEAD


def test_another_tunnel_begins_with_no_verdicts(pair: dict[str, End]) -> None:
    run(pair, 100.0, 105.0)
    pair["edge"].probing.adopt(None, None)
    assert pair["edge"].probing.liveness.of("hub") is Verdict.UNKNOWN
    assert pair["edge"].probing.tick(106.0) is None


def test_a_tick_costs_nothing_for_peers_with_nothing_due() -> None:
    """A thousand peers are looked at only when something of theirs is due."""
    edge = end("edge", "hub")
    run({"edge": edge, "hub": end("hub", "edge")}, 100.0, 103.0)
    due = edge.probing.tick(103.0)
    assert due is not None
    assert due > 103.0
