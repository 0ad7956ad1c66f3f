"""`python -m bench` (make bench): measure, show, write down. `--list` names workloads and candidates."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console

from bench import cpu, machine, page, report
from bench.bars import BARS, judge
from bench.candidates import Candidate, all_of
from bench.mesh import Mesh
from bench.results import Outcome, Run, figures_of
from bench.room import Room
from bench.scenes import SCENES, Scene
from bench.workloads import EVERY, FIRST, Workload
from ravenvpn.errors import HostError, RavenError

RESULTS = Path(__file__).parent / "results"
SETTLE = 0.3  # seconds between two runs, so that one's last packets are not the other's


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    candidates = [c for c in all_of(options.wireguard_go) if _chosen(c.name, options.candidates)]
    workloads, scenes = _workloads(options), _scenes(options)
    if options.list:
        for one in (*EVERY, *SCENES):
            print(f"{one.name:28}{one.title}")
        print("\n".join(["", *(candidate.name for candidate in candidates)]))
        return 0
    if os.geteuid() != 0:
        print("bench builds network namespaces, and only root can", file=sys.stderr)
        return 1
    # A SIGTERM ends it as Ctrl-C does: through the `with` blocks that remove everything.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it with & has it ignored
    console = Console(width=None if sys.stdout.isatty() else 180)
    facts = machine.describe(options.wireguard_go)
    settings = {"runs": options.runs, "seconds": options.seconds}
    console.print("  ".join(f"{name}: {value}" for name, value in facts.items()), highlight=False)
    console.print(
        f"{len(workloads) + len(scenes)} workloads, {options.runs} turns of {options.seconds:g} s each\n",
        highlight=False,
    )
    began = time.strftime("%Y%m%d-%H%M%S")
    outcomes: list[Outcome] = []
    try:
        for mtu, group in groupby(workloads, key=lambda workload: workload.underlay_mtu):
            with Room(mtu) as room:
                started, unavailable = _start(console, room, candidates)
                for workload in group:
                    outcome = Outcome(workload, failures=dict(unavailable))
                    outcomes.append(outcome)
                    for turn in range(options.runs):
                        # Every other turn in reverse: a machine that slows down or speeds up favours nobody.
                        order = started if turn % 2 == 0 else reversed(started)
                        for candidate in order:
                            with console.status(f"{workload.title}: turn {turn + 1}, {candidate.name}"):
                                _measure(room, candidate, outcome, turn, options.seconds)
                    report.print_outcome(console, outcome, known=unavailable)
        for scene in scenes:
            outcomes.append(outcome := Outcome(scene))
            _play(console, outcome, scene, options)
            report.print_outcome(console, outcome)
    except KeyboardInterrupt:
        console.print("interrupted; what was measured so far is written down")
    except RavenError as error:
        console.print(f"bench: {error}", style="red", markup=False)
        return 1
    verdicts = judge(outcomes)
    report.print_verdicts(console, verdicts)
    written = report.as_json(facts, settings, outcomes, verdicts)
    for file in (report.write_json(RESULTS, began, written), page.write(RESULTS, began, written)):
        console.print(f"written: {file}", highlight=False)
    return 0 if any(outcome.runs for outcome in outcomes) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--wireguard-go", type=Path, help="the program; without it, it is left out")
    parser.add_argument("--runs", type=int, default=5, help="turns of each candidate (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run (default 5)")
    parser.add_argument("--quick", action="store_true", help="2 turns of 2 seconds of the first workload")
    parser.add_argument("--all", action="store_true", help="every workload, not only the first")
    parser.add_argument("--bars", action="store_true", help="the workloads that bars are about")
    parser.add_argument("--workloads", default="", help="names, comma-separated")
    parser.add_argument("--candidates", default="", help="names or parts of them, comma-separated")
    parser.add_argument("--list", action="store_true", help="name workloads and candidates, measure nothing")
    options = parser.parse_args(argv)
    if options.quick:
        options.runs, options.seconds = 2, 2.0
    if options.bars:
        wanted = {name for bar in BARS for name in (bar.workload, bar.to_workload) if name}
        options.workloads = ",".join(sorted(wanted))
    if unknown := set(filter(None, options.workloads.split(","))) - {one.name for one in (*EVERY, *SCENES)}:
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; --list names them")
    return options


def _workloads(options: argparse.Namespace) -> list[Workload]:
    """In the order of their underlay's MTU: each needs a room of its own."""
    if options.workloads:  # maybe scenes alone
        wanted = options.workloads.split(",")
        chosen = [workload for workload in EVERY if workload.name in wanted]
    else:
        chosen = list(EVERY if options.all else FIRST)
    return sorted(chosen, key=lambda workload: workload.underlay_mtu)


def _scenes(options: argparse.Namespace) -> list[Scene]:
    return [scene for scene in SCENES if options.all or scene.name in options.workloads.split(",")]


def _chosen(name: str, wanted: str) -> bool:
    return not wanted or any(part in name for part in wanted.split(","))


def _start(console: Console, room: Room, candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
    started, unavailable = [], {}
    for candidate in candidates:
        try:
            candidate.start(room)
            started.append(candidate)
        except HostError as error:
            unavailable[candidate.name] = str(error)
            console.print(f"left out: {error}", style="yellow", markup=False, highlight=False)
    return started, unavailable


def _measure(room: Room, candidate: Candidate, outcome: Outcome, turn: int, seconds: float) -> None:
    if candidate.name in outcome.failures:
        return
    time.sleep(SETTLE)
    try:
        with outcome.workload.condition(room, candidate):
            before = cpu.now(candidate.pids())
            moved = outcome.workload.run(room, candidate, seconds)
            usage = cpu.now(candidate.pids()) - before
    except HostError as error:
        outcome.failures[candidate.name] = str(error)
    else:
        outcome.runs.append(Run(candidate.name, turn, figures_of(moved, usage, cpu.resident(candidate.pids()))))


def _play(console: Console, outcome: Outcome, scene: Scene, options: argparse.Namespace) -> None:
    """All turns of a scene, in a mesh of its own."""
    try:
        with Mesh() as mesh:
            for turn in range(options.runs):
                with console.status(f"{scene.title}: turn {turn + 1}"):
                    before = cpu.now(mesh.pids())
                    figures = scene.run(mesh, options.seconds)
                    usage = cpu.now(mesh.pids()) - before
                outcome.runs.append(Run(mesh.name, turn, figures_of(figures, usage, cpu.resident(mesh.pids()))))
    except HostError as error:
        outcome.failures[Mesh.name] = str(error)


if __name__ == "__main__":
    sys.exit(main())
