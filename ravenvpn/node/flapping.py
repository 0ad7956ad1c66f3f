"""Flap detection: distinguish a single change by another program from repeated reverts of our repairs. Pure.

A single change is repaired at once. An object that is reverted again and again is repaired with an exponential
back-off, so that two programs do not spin against each other, and the flapping is reported with its count. Each part
of the host has its own delay: a flapping rule does not delay the repair of a route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ravenvpn.backoff import doubled
from ravenvpn.node.parts import HostPart

FLAP_THRESHOLD = 4  # repairs of one object without a quiet period in between, from which on it flaps
QUIET_PERIOD = 60.0  # seconds without a repair, after which the count starts again
MIN_DELAY = 0.1  # seconds from the first notification to the repair: changes come in groups
FIRST_BACKOFF, MAX_DELAY = 1.0, 60.0  # seconds; the delay at the threshold, and its upper bound


@dataclass(frozen=True, slots=True)
class Flapping:
    """One object that another program keeps reverting."""

    part: HostPart
    description: str  # of the object, as `format_object` has it
    times: int  # repairs since `since`
    since: float  # seconds on the clock of FlapDetector's caller
    programs: tuple[str, ...] = ()  # that changed it, where the kernel names them: for the nft table only

    def __str__(self) -> str:
        who = f" by {', '.join(self.programs)}" if self.programs else " by another program"
        return f"{self.description}: undone {self.times} times{who}"


@dataclass(slots=True)
class _RepairHistory:
    """Repairs of one object since its last quiet period."""

    since: float  # of the first
    last: float
    times: int = 0
    programs: dict[str, None] = field(default_factory=dict)  # an ordered set


class FlapDetector:
    """Count repairs by object and compute the delay before the next one.

    `now` is seconds of one monotonic clock. Each call drops histories past their quiet period, so the size is bounded
    by the objects that were repaired within the last minutes.
    """

    def __init__(self) -> None:
        self._histories: dict[tuple[HostPart, str], _RepairHistory] = {}

    def record_repairs(
        self, part: HostPart, descriptions: Iterable[str], programs: Iterable[str], now: float
    ) -> None:
        """Count one repair of each object. `programs` were seen changing this part."""
        self._expire(now)
        for description in descriptions:
            history = self._histories.setdefault((part, description), _RepairHistory(now, now))
            history.times += 1
            history.last = now
            history.programs.update(dict.fromkeys(programs))

    def delay(self, part: HostPart, now: float) -> float:
        """Return the seconds to wait before the next repair of this part: those of its worst object."""
        self._expire(now)
        return max(
            (_delay(history.times) for (of, _), history in self._histories.items() if of is part), default=MIN_DELAY
        )

    def flapping(self, now: float) -> list[Flapping]:
        """Return the objects at or over the threshold, the most frequent first."""
        self._expire(now)
        found = [
            Flapping(part, description, history.times, history.since, tuple(history.programs))
            for (part, description), history in self._histories.items()
            if history.times >= FLAP_THRESHOLD
        ]
        return sorted(found, key=lambda one: (-one.times, one.part, one.description))

    def _expire(self, now: float) -> None:
        # The longer the delay, the longer no repair shows that the other program has stopped.
        quiet = {key: QUIET_PERIOD + 2 * _delay(history.times) for key, history in self._histories.items()}
        self._histories = {
            key: history for key, history in self._histories.items() if now - history.last < quiet[key]
        }


def _delay(times: int) -> float:
    """Return the delay after so many repairs of one object, in seconds."""
    if times < FLAP_THRESHOLD:
        return MIN_DELAY
    return doubled(FIRST_BACKOFF, times - FLAP_THRESHOLD, MAX_DELAY)
