"""Figures of all runs, and what follows from them: medians, spread, ratios pair by pair."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from bench.cpu import Usage
from bench.workloads import Figures, Measured

REFERENCE = "wireguard-go"


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one candidate. `turn` tells which ones belong together: they ran one after another."""

    candidate: str
    turn: int
    figures: Figures


def figures_of(moved: Figures, usage: Usage, resident: float) -> Figures:
    """A workload's figures with what they cost: of the candidate's processes and of the machine. `resident` is
    the memory of the processes in bytes, 0 if the candidate has none."""
    costs = {"cores, whole machine": usage.machine / usage.elapsed, "cores stolen": usage.stolen / usage.elapsed}
    if resident:
        costs["MB, both ends"] = resident / 1e6
    for what, count, unit in (("bytes", 1e9, "GB"), ("packets", 1e6, "Mpkt"), ("handshakes", 1e3, "1000")):
        if moved.get(what):
            if resident:
                costs[f"core-s/{unit}"] = usage.processes / (moved[what] / count)
            costs[f"core-s/{unit}, whole machine"] = usage.machine / (moved[what] / count)
    return {**moved, **costs}


@dataclass(slots=True)
class Outcome:
    """All runs of one workload, and what could not be measured, by candidate."""

    workload: Measured
    runs: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def candidates(self) -> list[str]:
        return list(dict.fromkeys(run.candidate for run in self.runs))

    def names(self) -> list[str]:
        """Of all figures, in a stable order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.figures))

    def spread(self, candidate: str, figure: str) -> Spread | None:
        values = [run.figures[figure] for run in self.runs if run.candidate == candidate and figure in run.figures]
        return Spread.of(values) if values else None

    def ratio(self, candidate: str, figure: str, reference: str = REFERENCE, beyond: str = "") -> Spread | None:
        """To the reference in the same turn; None if they never ran in one, or the reference did nothing.

        With `beyond`, what that candidate had in the same turn is taken off both first: how much a tunnel adds.
        """
        ours, theirs, base = (self._by_turn(name, figure) for name in (candidate, reference, beyond))
        if not beyond:
            base = dict.fromkeys(ours, 0.0)
        ratios = [
            (value - base[turn]) / (theirs[turn] - base[turn])
            for turn, value in ours.items()
            if turn in theirs and turn in base and theirs[turn] != base[turn]
        ]
        return Spread.of(ratios) if ratios else None

    def _by_turn(self, candidate: str, figure: str) -> dict[int, float]:
        return {
            run.turn: run.figures[figure] for run in self.runs if run.candidate == candidate and figure in run.figures
        }
