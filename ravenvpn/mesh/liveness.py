"""Liveness verdicts of peers: dead, alive, or unknown. Planning acts on them.

Facts come from sessions and from probes inside the tunnel; verdicts are pure functions of facts and time. Without
proof a verdict is UNKNOWN, and a plan treats unknown as usable: a mesh that has just started, or a plain WireGuard
peer that answers no probe, is not rerouted on a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

# Our choices. A hub must be replaced within 3 s of its death. Hubs that carry traffic are probed once a second, and
# the agent reads up to half a second late what the data plane last received; so two unanswered probes and this much
# silence leave half a second to plan and to move the routes.
DEAD_AFTER = 2.0  # seconds without an authenticated packet, while probes are unanswered
# Seconds between probes of a peer with traffic, and of an idle one, whose replacement is less urgent.
DEFAULT_PROBE_INTERVALS = (1.0, 2.5)
MIN_UNANSWERED = 2  # probes; one lost probe proves nothing
GRACE = 1.4  # seconds to wait for the first unanswered probe: above any round trip, below two probe intervals
# Answers in a row until a dead peer counts as alive again. With one, flows on a path with heavy loss would alternate
# between this path and another.
REVIVED_AFTER = 2


class LivenessVerdict(StrEnum):
    """The state of a peer as far as it is proven."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Facts about one peer. Instants are seconds of the caller's clock, 0.0 if it never happened."""

    last_received: float = 0.0  # last authenticated packet: data, keepalive, probe reply
    asked_since: float = 0.0  # first probe sent after `last_received`; 0.0: none
    unanswered: int = 0  # probes sent after `last_received`
    answered_in_row: int = 0  # replies since a probe was last lost
    handshake_given_up: float = 0.0  # last time REKEY_ATTEMPT_TIME passed without a response (whitepaper §6.4)


def judge(before: LivenessVerdict, facts: PeerFacts, now: float) -> LivenessVerdict:
    """Return the verdict at `now`, given the one before. `next_judgement` says when to call it again."""
    if facts.handshake_given_up > facts.last_received:
        return LivenessVerdict.DEAD
    silence = next_judgement(facts)
    if silence is not None and facts.unanswered >= MIN_UNANSWERED and now >= silence:
        return LivenessVerdict.DEAD
    if before is LivenessVerdict.DEAD and facts.answered_in_row < REVIVED_AFTER:
        return LivenessVerdict.DEAD
    return LivenessVerdict.ALIVE if facts.last_received else LivenessVerdict.UNKNOWN


def next_judgement(facts: PeerFacts) -> float | None:
    """Return the instant at which silence alone changes the verdict; None while no probe is unanswered."""
    return max(facts.last_received + DEAD_AFTER, facts.asked_since + GRACE) if facts.asked_since else None


_NO_NODES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Liveness:
    """Verdicts of this node on others, and the forwarding verdicts that hubs send in their probes."""

    verdicts: Mapping[str, LivenessVerdict] = field(default_factory=lambda: MappingProxyType({}))  # by node
    # Hub node → nodes with which it has no live session. Both ends of a relayed pair get this from the same hub, so
    # both leave it at the same time.
    unreachable_via: Mapping[str, Set[str]] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, node: str) -> LivenessVerdict:
        """Return the verdict on a node; UNKNOWN if there is none."""
        return self.verdicts.get(node, LivenessVerdict.UNKNOWN)

    def dead(self, node: str) -> bool:
        """Return whether a node is proven dead."""
        return self.of(node) is LivenessVerdict.DEAD

    def carries(self, hub: str, node: str) -> bool:
        """Return whether `node` may be reachable through the gateway `hub`: neither verdict nor hub denies it."""
        return not self.dead(hub) and node not in self.unreachable_via.get(hub, _NO_NODES)

    def changes(self, earlier: Liveness) -> set[str]:
        """Return the nodes whose verdict, or whose reachability through some hub, differs from `earlier`."""
        if self is earlier:
            return set()
        nodes = {n for n in self.verdicts.keys() | earlier.verdicts.keys() if self.of(n) is not earlier.of(n)}
        for hub in self.unreachable_via.keys() | earlier.unreachable_via.keys():
            nodes |= self.unreachable_via.get(hub, _NO_NODES) ^ earlier.unreachable_via.get(hub, _NO_NODES)
        return nodes


UNKNOWN = Liveness()  # no verdicts
