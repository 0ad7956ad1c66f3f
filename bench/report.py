"""Report as a table on the terminal and as JSON. The page with plots is in `bench.html_page`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.bars import Verdict
from bench.results import REFERENCE, Outcome, Spread

# Figures in the table, in this order; JSON has every figure.
SHOWN = (
    "Gbit/s, × closed port",
    "p99, × calm",
    "Gbit/s",
    "kpps",
    "handshakes/s",
    "refused %",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "lost %",
    "health ms",
    "flood kpps",
    "core-s/GB",
    "core-s/Mpkt",
    "core-s/1000",
    "cores, whole machine",
    "MB, both ends",
)


def number(value: float) -> str:
    """Format a value with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def with_spread(spread: Spread) -> str:
    """Format a spread as `MEDIAN (LOW-HIGH)`."""
    return f"{number(spread.median)} ({number(spread.low)}-{number(spread.high)})"


def print_outcome(console: Console, outcome: Outcome, known: Collection[str] = ()) -> None:
    """Print the table of one workload. Failures of candidates in `known` were printed before and are left out."""
    figures = [name for name in SHOWN if name in outcome.names()]
    cost = next((name for name in ("core-s/GB", "core-s/Mpkt", "core-s/1000") if name in figures), None)
    table = Table(title=outcome.workload.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    table.add_column(f"{outcome.workload.headline}\nvs {REFERENCE}", justify="right")
    if cost:
        table.add_column(f"{cost}\nvs {REFERENCE}", justify="right")
    for candidate in outcome.candidates():
        spreads = [outcome.spread(candidate, name) for name in figures]
        ratios = [outcome.ratio(candidate, name) for name in (outcome.workload.headline, cost) if name]
        table.add_row(
            candidate,
            *(with_spread(spread) if spread else "" for spread in spreads),
            *(f"{with_spread(ratio)}×" if ratio and candidate != REFERENCE else "" for ratio in ratios),
        )
    console.print(table)
    for candidate, reason in outcome.failures.items():
        if candidate in known:
            continue
        console.print(f"{candidate}: not measured: {reason}", highlight=False, markup=False)
    console.print()


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print a line for each bar that was measured."""
    for verdict in verdicts:
        colour, word = ("green", "met") if verdict.met else ("red", "missed")
        console.print(
            f"[{colour}]{word:>6}[/]  {verdict.bar}: {number(verdict.reached)}{'×' if verdict.bar.to else ''}",
            highlight=False,
        )


def as_json(
    facts: Mapping[str, str], settings: Mapping[str, Any], outcomes: Sequence[Outcome], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Return the whole report as a value for JSON."""
    return {
        "machine": dict(facts),
        "settings": dict(settings),
        "workloads": [_workload(outcome) for outcome in outcomes],
        "bars": [{"bar": str(v.bar), "reached": v.reached, "met": v.met} for v in verdicts],
    }


def _workload(outcome: Outcome) -> dict[str, Any]:
    def spreads(candidate: str) -> dict[str, Any]:
        found = {name: outcome.spread(candidate, name) for name in outcome.names()}
        return {name: _spread(spread) for name, spread in found.items() if spread}

    def ratios(candidate: str) -> dict[str, Any]:
        found = {name: outcome.ratio(candidate, name) for name in outcome.names()}
        return {name: _spread(ratio) for name, ratio in found.items() if ratio}

    return {
        "name": outcome.workload.name,
        "title": outcome.workload.title,
        "headline": outcome.workload.headline,
        "underlay mtu": outcome.workload.underlay_mtu,
        "candidates": {
            candidate: {
                "figures": spreads(candidate),
                f"vs {REFERENCE}": ratios(candidate),
                "runs": [run.figures | {"turn": run.turn} for run in outcome.runs if run.candidate == candidate],
            }
            for candidate in outcome.candidates()
        },
        "not measured": outcome.failures,
    }


def _spread(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def write_json(folder: Path, stem: str, report: Mapping[str, Any]) -> Path:
    """Write `STEM.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.json"
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return file
