"""Two ends under random schedules of network faults, restarts and time: invariants that hold in all of them.

Steps: packets in either direction, time, suspend, paths that lose, duplicate, delay and reorder, jumps of the wall
clock, and restarts of one end. A machine that has restarted has lost its last timestamp, so its wall clock is never
earlier than the latest one its peers have seen (docs/protocol.md describes the other case).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tunnel_world import LATENCY, Flight, Node, World

HEALED_WITHIN = 22.0  # KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, one retry of REKEY_TIMEOUT, jitter twice, and round trips

Step = tuple[str, int]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(1, 300)),  # tenths of a second
        st.tuples(st.just("idle"), st.integers(30, 700)),  # seconds
        st.tuples(st.just("sleep"), st.integers(1, 4000)),  # seconds of suspend
        st.tuples(st.just("path"), st.integers(0, 5)),
        st.tuples(st.just("wall"), st.integers(-4000, 4000)),  # seconds
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    max_size=25,
)


def path(kind: int, seed: int) -> Callable[[Flight], list[float]]:
    """Set how the network behaves: lossless, lost, half lost, duplicated, reordered, or all of these."""
    count = iter(range(10**9))

    def dice() -> float:
        digest = hashlib.blake2s(f"{seed} {next(count)}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32

    def behave(_: Flight) -> list[float]:
        match kind:
            case 0:
                return [LATENCY]
            case 1:
                return []
            case 2:
                return [LATENCY] if dice() < 0.5 else []
            case 3:
                return [LATENCY, LATENCY + dice() * 8]
            case 4:
                return [dice() * 3]
            case _:
                return [dice() * 6 for _ in range(int(dice() * 4))]

    return behave


class Schedule:
    def __init__(self, **settings: object) -> None:
        self.world = World()
        self.settings = settings
        self.ends = [self.world.node("alice"), self.world.node("bob")]
        self._introduce()
        self.sent: dict[str, list[bytes]] = {"alice": [], "bob": []}
        self.planes = [end.dataplane for end in self.ends]
        self.latest_wall = 0
        self.generation = 0

    def _introduce(self) -> None:
        alice, bob = self.ends
        alice.knows(bob, **self.settings)
        bob.knows(alice, **self.settings)

    def send(self, who: int) -> bytes:
        end, other = self.ends[who], self.ends[1 - who]
        packet = f"{end.name} {len(self.sent[end.name])}".encode()
        self.sent[end.name].append(packet)
        end.sends(packet, other)
        return packet

    def do(self, step: Step) -> None:
        what, amount = step
        world = self.world
        match what:
            case "send":
                self.send(amount)
            case "wait":
                world.run(amount / 10)
            case "idle":
                world.run(float(amount))
            case "sleep":
                world.now += amount
                world.run(0.0)
            case "path":
                world.path = path(amount, len(world.sent))
            case "wall":
                forgetful = self.generation > 0
                world.wall_offset_ns += (abs(amount) if forgetful else amount) * 10**9
                self.latest_wall = max(self.latest_wall, world.wall_offset_ns)
            case "restart":
                world.wall_offset_ns = self.latest_wall
                self.generation += 1
                # Two initiations must not fall into one grain of the timestamps; no machine restarts faster.
                world.run(0.1)
                self.ends[amount] = world.restart(self.ends[amount], self.generation)
                self._introduce()
                self.planes.append(self.ends[amount].dataplane)

    def heal(self, talking: tuple[int, ...]) -> None:
        """Make the path lossless and send a packet each second."""
        self.world.path = path(0, 0)
        fresh: dict[int, list[bytes]] = {who: [] for who in talking}
        for _ in range(int(HEALED_WITHIN)):
            for who in talking:
                fresh[who].append(self.send(who))
            self.world.run(1.0)
        for who in talking:
            arrived = set(self.ends[1 - who].delivered)
            assert arrived & set(fresh[who]), f"{self.ends[who].name} is not heard"

    def check(self) -> None:
        nonces = Counter(nonce for plane in self.planes for nonce in plane.nonces)
        assert all(count == 1 for count in nonces.values()), "a nonce was used twice under one key"
        for end, other in ((self.ends[0], self.ends[1]), (self.ends[1], self.ends[0])):
            delivered = Counter(end.delivered)
            assert all(count == 1 for count in delivered.values()), "a packet was delivered twice"
            assert set(delivered) <= set(self.sent[other.name]), "something was delivered that was not sent"
            self.check_indices(end)

    def check_indices(self, end: Node) -> None:
        """Assert that every index belongs to a session in its slot or to the one pending handshake."""
        held = set(end.dataplane.sessions)
        (status,) = end.device.peers(self.world.now)
        assert len(end.device._indices) - len(held) == (1 if status.state.pending else 0)
        assert all(end.device._indices.lookup(index) is not None for index in held)


def run(steps: list[Step], talking: tuple[int, ...], **settings: object) -> None:
    schedule = Schedule(**settings)
    for step in steps:
        schedule.do(step)
        schedule.check()
    schedule.heal(talking)
    schedule.check()


TALKING = st.sampled_from([(0,), (1,), (0, 1)])


@settings(max_examples=100, deadline=None)
# The cases of the rules of §6.5: one peer lost its sessions; one peer's session outlived the other's.
@example(steps=[("send", 0), ("wait", 20), ("restart", 1)], talking=(0,))
@example(steps=[("send", 0), ("wait", 20), ("restart", 0)], talking=(1,))
@example(steps=[("send", 0), ("wait", 20), ("path", 1), ("send", 0), ("idle", 89)], talking=(0,))
@example(steps=[("send", 0), ("wait", 20), ("sleep", 300)], talking=(1,))
@example(steps=[("send", 0), ("send", 1), ("wait", 20), ("wall", -4000), ("idle", 600)], talking=(0, 1))
@given(steps=STEPS, talking=TALKING)
def test_after_any_schedule_secrets_are_kept_and_the_pair_reconnects(
    steps: list[Step], talking: tuple[int, ...]
) -> None:
    run(steps, talking)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, talking=TALKING, warm=st.booleans())
def test_after_any_schedule_warm_pairs_reconnect(steps: list[Step], talking: tuple[int, ...], warm: bool) -> None:
    run(steps, talking, warm=warm, persistent_keepalive=25.0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None)
@given(steps=STEPS, talking=TALKING, warm=st.booleans(), keepalive=st.sampled_from([0.0, 25.0]))
def test_after_any_long_schedule_the_pair_reconnects(
    steps: list[Step], talking: tuple[int, ...], warm: bool, keepalive: float
) -> None:
    run(steps, talking, warm=warm, persistent_keepalive=keepalive)
