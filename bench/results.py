"""Figures of all runs, and statistics on them: medians, spread, ratios turn by turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from bench.cpu import Usage
from bench.workloads import Figures, Measured

REFERENCE = "wireguard-go"  # candidate to which ratios are formed


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest value of some runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one candidate. Runs with the same `turn` were made one after another and may be compared."""

    candidate: str
    turn: int
    figures: Figures


def figures_of(moved: Figures, usage: Usage, resident: float) -> Figures:
    """Return a workload's figures with its cost, of the candidate's processes and of the machine.

    `resident` is the memory of the candidate's processes in bytes, 0 if it has no process.
    """
    costs = {"cores, whole machine": usage.machine / usage.elapsed, "cores stolen": usage.stolen / usage.elapsed}
    if resident:
        costs["MB, both ends"] = resident / 1e6
    for moved_unit, count, unit in (("bytes", 1e9, "GB"), ("packets", 1e6, "Mpkt"), ("handshakes", 1e3, "1000")):
        if moved.get(moved_unit):
            if resident:
                costs[f"core-s/{unit}"] = usage.processes / (moved[moved_unit] / count)
            costs[f"core-s/{unit}, whole machine"] = usage.machine / (moved[moved_unit] / count)
    return {**moved, **costs}


@dataclass(slots=True)
class Outcome:
    """All runs of one workload."""

    workload: Measured
    runs: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # why a candidate was not measured, by its name

    def candidates(self) -> list[str]:
        """Return the names of the candidates that have runs, in the order of their first run."""
        return list(dict.fromkeys(run.candidate for run in self.runs))

    def names(self) -> list[str]:
        """Return the names of all figures in a stable order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.figures))

    def spread(self, candidate: str, figure: str) -> Spread | None:
        """Return the spread of a figure over a candidate's runs; None if no run has it."""
        values = [run.figures[figure] for run in self.runs if run.candidate == candidate and figure in run.figures]
        return Spread.of(values) if values else None

    def ratio(self, candidate: str, figure: str, reference: str = REFERENCE, beyond: str = "") -> Spread | None:
        """Return the spread of the ratios to the reference in the same turn.

        With `beyond`, the figure of that candidate in the same turn is subtracted from both first: the share that a
        tunnel adds. None if the candidates have no turn in common, or if the reference's figure is 0.
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
