"""Telling an accident from a fight: when another program keeps undoing what we restore. Pure.

An accident is mended at once. Whoever undoes the same thing again and again is met more and more slowly, so that two
programs don't spin against each other, and it is said what they fight over and how often. Each part of the host's
state has its own patience: a fight over a rule does not delay the mending of a route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ravenvpn.backoff import doubled
from ravenvpn.node.observe import HostPart

FIGHT = 4  # times the same thing was undone without CALM seconds between
CALM = 60.0
MIN_DELAY = 0.1  # seconds from the first notification to the repair: changes come in groups
MAX_DELAY = 60.0


@dataclass(frozen=True, slots=True)
class Flapping:
    """`what` was undone `times` times since `since` (seconds on the caller's clock). `by`: programs, where known."""

    part: HostPart
    what: str
    times: int
    since: float
    by: tuple[str, ...] = ()

    def __str__(self) -> str:
        # The kernel says who changes nft tables, and nobody else.
        who = f" by {', '.join(self.by)}" if self.by else " by another program"
        return f"{self.what}: undone {self.times} times{who}"


@dataclass(slots=True)
class _History:
    since: float
    last: float
    times: int = 0
    by: dict[str, None] = field(default_factory=dict)


class FlapDetector:
    """What was restored how often, and how long to wait before the next repair. `now` is in seconds."""

    def __init__(self) -> None:
        self._things: dict[tuple[HostPart, str], _History] = {}

    def restored(self, part: HostPart, things: Iterable[str], by: Iterable[str], now: float) -> None:
        """These had been undone and are restored now; `by` are programs that were seen changing ours."""
        self._forget(now)
        for thing in things:
            history = self._things.setdefault((part, thing), _History(now, now))
            history.times += 1
            history.last = now
            history.by.update(dict.fromkeys(by))

    def delay(self, part: HostPart, now: float) -> float:
        """Seconds to wait before the next repair of this part."""
        self._forget(now)
        return max(
            (_delay(history.times) for (of, _), history in self._things.items() if of is part), default=MIN_DELAY
        )

    def current(self, now: float) -> list[Flapping]:
        """Fights going on now, worst first."""
        self._forget(now)
        fights = [
            Flapping(part, what, history.times, history.since, tuple(history.by))
            for (part, what), history in self._things.items()
            if history.times >= FIGHT
        ]
        return sorted(fights, key=lambda fight: (-fight.times, fight.part, fight.what))

    def _forget(self, now: float) -> None:
        # Slower repairs are undone more rarely, so it takes longer to know that a fight is over.
        calm = {key: CALM + 2 * _delay(history.times) for key, history in self._things.items()}
        self._things = {key: history for key, history in self._things.items() if now - history.last < calm[key]}


def _delay(times: int) -> float:
    if times < FIGHT:
        return MIN_DELAY
    return doubled(1.0, times - FIGHT, MAX_DELAY)
