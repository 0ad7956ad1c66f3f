"""Who is proven dead, who is proven alive: the verdicts planning may act on.

Facts come from sessions and from the probe inside the tunnel; verdicts are pure functions of facts and the instant.
A verdict says as little as it can: without proof it is UNKNOWN, and the plan treats unknown as usable, so that a
mesh that has just started, or a plain WireGuard peer that answers no probe, is not rerouted on a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

# Ours. A hub must be replaced within 3 s of its death: probes go out once a second to hubs that carry traffic, and
# the agent learns up to half a second late what the data plane last received, so two probes unanswered and this much
# silence leave half a second to plan and move the routes.
DEAD_AFTER = 2.0  # seconds without anything authenticated, while probes ask
MIN_UNANSWERED = 2  # one lost probe proves nothing
GRACE = 1.4  # seconds the first open question may wait: longer than any path's round trip, shorter than two intervals
# A peer that was dead has to answer this often in a row before it is trusted again, or a path with heavy loss
# would carry and drop flows in turns.
REVIVED_AFTER = 2


class LivenessVerdict(StrEnum):
    UNKNOWN = "unknown"
    ALIVE = "alive"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What is known of one peer. Instants in seconds of the caller's clock, 0.0 where it never happened."""

    last_received: float = 0.0  # anything authenticated: data, keepalive, probe answer
    asked_since: float = 0.0  # first probe sent since then; 0.0 if none is open
    unanswered: int = 0  # probes sent since then
    answered_in_row: int = 0  # since a probe was last lost
    handshake_given_up: float = 0.0  # last time rekey-attempt-time passed without an answer


def judge(before: LivenessVerdict, facts: PeerFacts, now: float) -> LivenessVerdict:
    """The verdict at `now`, given the one before. Total and free of side effects; see `next_judgement` for when."""
    if facts.handshake_given_up > facts.last_received:
        return LivenessVerdict.DEAD
    silence = next_judgement(facts)
    if silence is not None and facts.unanswered >= MIN_UNANSWERED and now >= silence:
        return LivenessVerdict.DEAD
    if before is LivenessVerdict.DEAD and facts.answered_in_row < REVIVED_AFTER:
        return LivenessVerdict.DEAD
    return LivenessVerdict.ALIVE if facts.last_received else LivenessVerdict.UNKNOWN


def next_judgement(facts: PeerFacts) -> float | None:
    """The instant at which silence alone would change the verdict, or None while nothing is asked."""
    return max(facts.last_received + DEAD_AFTER, facts.asked_since + GRACE) if facts.asked_since else None


_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Liveness:
    """Verdicts by node name, and what hubs say of others.

    `unreachable_via[hub]` are the nodes that gateway says it has no live session with (the forwarding verdicts of
    its probes). Both ends of a relayed pair learn from the same hub that the other end is missing, so both leave it.
    """

    verdicts: Mapping[str, LivenessVerdict] = field(default_factory=lambda: MappingProxyType({}))
    unreachable_via: Mapping[str, Set[str]] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, node: str) -> LivenessVerdict:
        return self.verdicts.get(node, LivenessVerdict.UNKNOWN)

    def dead(self, node: str) -> bool:
        return self.of(node) is LivenessVerdict.DEAD

    def carries(self, hub: str, node: str) -> bool:
        """Whether nothing speaks against reaching `node` through the gateway `hub`."""
        return not self.dead(hub) and node not in self.unreachable_via.get(hub, _NOBODY)

    def changes(self, earlier: Liveness) -> set[str]:
        """Nodes whose verdict, or whose reachability through some hub, differs from `earlier`."""
        if self is earlier:
            return set()
        nodes = {n for n in self.verdicts.keys() | earlier.verdicts.keys() if self.of(n) is not earlier.of(n)}
        for hub in self.unreachable_via.keys() | earlier.unreachable_via.keys():
            nodes |= self.unreachable_via.get(hub, _NOBODY) ^ earlier.unreachable_via.get(hub, _NOBODY)
        return nodes


UNKNOWN = Liveness()  # nothing is proven of anybody
