"""Bars: the figures that ravenvpn has to reach, as the median of its runs.

Most are ratios to another candidate in the same turn, some are absolute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.results import REFERENCE, Outcome

CPU = "core-s/GB"  # of both ends of a tunnel together
AGENTS = "ravenvpn agents"


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure of one candidate in one workload, and the limit it has to keep."""

    workload: str
    candidate: str
    figure: str
    relation: Literal["≥", "≤"]
    ratio: float  # to the same figure of `to`; an absolute limit if `to` is empty
    to: str = REFERENCE
    beyond: str = ""  # a candidate whose figure is subtracted from both sides first
    to_workload: str = ""  # workload of the reference if it is another one; then medians are compared, not turns

    def __str__(self) -> str:
        if not self.to:
            return f"{self.candidate}, {self.workload}: {self.figure} {self.relation} {self.ratio:g}"
        figure = f"{self.figure} beyond {self.beyond}" if self.beyond else self.figure
        to = f"{self.to}, {self.to_workload}" if self.to_workload else self.to
        return f"{self.candidate}, {self.workload}: {figure} {self.relation} {self.ratio}× {to}"


BARS = (
    Bar("tcp1", "ravenvpn pure ChaCha", "Gbit/s", "≥", 0.33),
    Bar("tcp1", "ravenvpn pure ChaCha", CPU, "≤", 3.2),
    Bar("tcp1", "ravenvpn native ChaCha", "Gbit/s", "≥", 2.0),
    Bar("tcp1", "ravenvpn native AES", "Gbit/s", "≥", 3.0),
    Bar("tcp1", "ravenvpn native ChaCha", CPU, "≤", 0.42),
    Bar("tcp1", "ravenvpn native AES", CPU, "≤", 0.25),
    Bar("tcp1", "ravenvpn native AES", "Gbit/s", "≥", 0.6, to="plain veth"),
    Bar("tcp16", "ravenvpn native ChaCha", "Gbit/s", "≥", 1.5),
    Bar("tcp16", "ravenvpn native AES", "Gbit/s", "≥", 2.5),
    Bar("tcp1-both", "ravenvpn native ChaCha", "Gbit/s", "≥", 1.5),
    Bar("tcp1-both", "ravenvpn native AES", "Gbit/s", "≥", 2.5),
    Bar("udp64-flood", "ravenvpn native ChaCha", "kpps", "≥", 2.5),
    *(Bar(f"udp64-{rate}k", "ravenvpn native ChaCha", "core-s/Mpkt", "≤", 0.25) for rate in (10, 20, 40)),
    Bar("ping-idle", "ravenvpn native ChaCha", "p50 µs", "≤", 0.6, beyond="plain veth"),
    Bar("ping-bulk", "ravenvpn native ChaCha", "p99 µs", "≤", 0.5, beyond="plain veth"),
    Bar("tcp1-1000-peers", "ravenvpn native ChaCha", CPU, "≤", 1.05, to="ravenvpn native ChaCha", to_workload="tcp1"),
    Bar("tcp1-1000-peers", "ravenvpn native ChaCha", "MB, both ends", "≤", 260, to=""),
    Bar("agent-flood", AGENTS, "Gbit/s, × closed port", "≥", 0.8, to=""),
    Bar("agent-flood", AGENTS, "lost %", "≤", 1, to=""),
    Bar("agent-flood", AGENTS, "health ms", "≤", 100, to=""),
    Bar("agent-storm", AGENTS, "lost %", "≤", 0, to=""),
    Bar("agent-storm", AGENTS, "p99, × calm", "≤", 3, to=""),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar with the median that was measured."""

    bar: Bar
    reached: float  # a ratio, or the figure itself for an absolute bar

    @property
    def met(self) -> bool:
        """Whether the limit is kept."""
        return self.reached >= self.bar.ratio if self.bar.relation == "≥" else self.reached <= self.bar.ratio


def judge(outcomes: Iterable[Outcome]) -> list[Verdict]:
    """Return the verdicts on the bars for which both sides were measured."""
    by_name = {outcome.workload.name: outcome for outcome in outcomes}
    reached = ((bar, _reached(bar, by_name)) for bar in BARS)
    return [Verdict(bar, ratio) for bar, ratio in reached if ratio is not None]


def _reached(bar: Bar, outcomes: Mapping[str, Outcome]) -> float | None:
    outcome, other = outcomes.get(bar.workload), outcomes.get(bar.to_workload or bar.workload)
    if outcome is not None and not bar.to:
        own = outcome.spread(bar.candidate, bar.figure)
        return own.median if own else None
    if outcome is None or other is None:
        return None
    if other is outcome:
        ratio = outcome.ratio(bar.candidate, bar.figure, bar.to, bar.beyond)
        return ratio.median if ratio else None
    ours, theirs = outcome.spread(bar.candidate, bar.figure), other.spread(bar.to, bar.figure)
    return ours.median / theirs.median if ours and theirs and theirs.median else None
