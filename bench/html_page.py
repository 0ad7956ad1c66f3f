"""Report as one self-contained HTML file: every run is a dot and every median a bar, in inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import floor, log10
from pathlib import Path
from typing import Any

from bench.results import REFERENCE

_LABEL, _PLOT, _RATIO, _ROW = 190, 460, 200, 26  # widths and height, in pixels
_AXIS = 24  # height of the axis, in pixels
# Figures that have a plot beside a workload's headline; JSON has every figure.
_SHOWN = ("p99 µs", "core-s/GB", "core-s/Mpkt", "core-s/1000", "cores, whole machine", "MB, both ends")

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2127, #e6e8eb); --soft: light-dark(#68707b, #98a1ac);
  --line: light-dark(#dde1e6, #363c44); --ours: light-dark(#1769aa, #6db3ee); --theirs: light-dark(#9aa3ad, #7d8791);
  --bad: light-dark(#b3261e, #f2857d); --good: light-dark(#1b7f3b, #6fcf8b); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: light-dark(#fff, #16191d);
  max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .2rem; }
table { border-collapse: collapse; font-size: .9rem; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
td:first-child, .soft { color: var(--soft); } .met { color: var(--good); } .missed { color: var(--bad); }
svg { display: block; width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } .grid { stroke: var(--line); }
.bar { fill: var(--theirs); opacity: .35; } .ours .bar { fill: var(--ours); }
.dot { fill: var(--theirs); } .ours .dot { fill: var(--ours); }
"""


def write(folder: Path, stem: str, report: Mapping[str, Any]) -> Path:
    """Write `STEM.html` and return its path. `report` is the value of `bench.report.as_json`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.html"
    file.write_text("\n".join(_page(report)) + "\n")
    return file


def _page(report: Mapping[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width"><title>ravenvpn, measured</title>'
    yield f"<style>{_STYLE}</style><h1>ravenvpn, measured</h1>"
    settings = report["settings"]
    yield (
        f"<p>Two namespaces joined by a veth pair; candidates took turns, {settings['runs']} of"
        f" {settings['seconds']:g} s each. A dot is a run, a bar the median. Ratios are medians of those within a"
        " turn, with the lowest and the highest.</p>"
    )
    yield _facts(report["machine"])
    for workload in report["workloads"]:
        yield from _workload(workload)
    if report["bars"]:
        yield "<h2>Bars</h2><table>"
        for bar in report["bars"]:
            word = "met" if bar["met"] else "missed"
            yield f'<tr><td class="{word}">{word}<td>{escape(bar["bar"])}<td>{bar["reached"]:.3g}×'
        yield "</table>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in facts.items())
    return (
        f"<details><summary>{escape(facts['cpu'])}, {facts['cores']} cores</summary><table>{rows}</table></details>"
    )


def _workload(workload: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(workload['title'])}</h2>"
    for figure in dict.fromkeys([workload["headline"], *_SHOWN]):
        if any(figure in candidate["figures"] for candidate in workload["candidates"].values()):
            yield _plot(figure, workload["candidates"])
    for name, reason in workload["not measured"].items():
        yield f'<p class="soft">{escape(name)}: not measured: {escape(reason)}</p>'


def _plot(figure: str, candidates: Mapping[str, Any]) -> str:
    rows = {name: candidate for name, candidate in candidates.items() if figure in candidate["figures"]}
    top = max(candidate["figures"][figure]["high"] for candidate in rows.values()) or 1.0
    ticks = _ticks(top)
    scale = _PLOT / max(top, ticks[-1])
    height = _AXIS + _ROW * len(rows)
    parts = [f'<svg viewBox="0 0 {_LABEL + _PLOT + _RATIO} {height}" role="img" aria-label="{escape(figure)}">']
    parts.append(f'<text class="soft" x="0" y="14">{escape(figure)}</text>')
    parts.append(f'<text class="soft" x="{_LABEL + _PLOT + 12}" y="14">vs {REFERENCE}</text>')
    for tick in ticks:
        x = _LABEL + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_AXIS - 4}" y2="{height}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="14" text-anchor="middle">{tick:g}</text>')
    for index, (name, candidate) in enumerate(rows.items()):
        parts.append(_row(name, candidate, figure, scale, _AXIS + index * _ROW))
    return "".join([*parts, "</svg>"])


def _row(name: str, candidate: Mapping[str, Any], figure: str, scale: float, y: float) -> str:
    middle = y + _ROW / 2
    spread = candidate["figures"][figure]
    ratio = candidate[f"vs {REFERENCE}"].get(figure)
    parts = [f'<g class="{"ours" if name.startswith("ravenvpn") else "theirs"}">']
    parts.append(f'<text x="0" y="{middle + 4}">{escape(name)}</text>')
    parts.append(
        f'<rect class="bar" x="{_LABEL}" y="{y + 5}" width="{spread["median"] * scale:.1f}" height="{_ROW - 10}">'
        f"<title>{spread['median']:.4g} ({spread['low']:.4g} to {spread['high']:.4g})</title></rect>"
    )
    parts += [
        f'<circle class="dot" cx="{_LABEL + run[figure] * scale:.1f}" cy="{middle}" r="3"/>'
        for run in candidate["runs"]
        if figure in run
    ]
    if ratio and name != REFERENCE:
        text = f"{ratio['median']:.3g}× ({ratio['low']:.2g}-{ratio['high']:.2g})"
        parts.append(f'<text x="{_LABEL + _PLOT + 12}" y="{middle + 4}">{text}</text>')
    return "".join([*parts, "</g>"])


def _ticks(top: float) -> Sequence[float]:
    """Return ticks from zero to at least `top`: five to eight steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** floor(log10(top))
    step = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if top / (factor * power) <= 8)
    return [round(number * step, 10) for number in range(int(-(-top // step)) + 1)]
