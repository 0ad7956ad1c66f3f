"""`python -m bench` (make bench): measure, print, write reports. `--list` prints workloads and candidates."""

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

from bench import cpu, html_page, machine, report
from bench.agent_workloads import AGENT_WORKLOADS, AgentWorkload
from bench.bars import BARS, judge
from bench.candidates import Candidate, all_of
from bench.machine_pair import MachinePair
from bench.mesh import Mesh
from bench.results import Outcome, Run, figures_of
from bench.workloads import EVERY, FIRST, Workload
from ravenvpn.errors import HostError, RavenError

RESULTS = Path(__file__).parent / "results"
PAUSE = 0.3  # seconds between two runs, so that the last packets of one are not counted in the next


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line names. Returns the exit status: 0 if anything was measured."""
    options = _options(argv)
    candidates = [c for c in all_of(options.wireguard_go) if _chosen(c.name, options.candidates)]
    workloads, agent_workloads = _workloads(options), _agent_workloads(options)
    if options.list:
        for one in (*EVERY, *AGENT_WORKLOADS):
            print(f"{one.name:28}{one.title}")
        print("\n".join(["", *(candidate.name for candidate in candidates)]))
        return 0
    if os.geteuid() != 0:
        print("bench makes network namespaces, and only root can do that; run it as root", file=sys.stderr)
        return 1
    # SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that the `with` blocks remove all namespaces.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process that a shell starts with &
    console = Console(width=None if sys.stdout.isatty() else 180)
    facts = machine.describe(options.wireguard_go)
    settings = {"runs": options.runs, "seconds": options.seconds}
    console.print("  ".join(f"{name}: {value}" for name, value in facts.items()), highlight=False)
    console.print(
        f"{len(workloads) + len(agent_workloads)} workloads, {options.runs} turns of {options.seconds:g} s each\n",
        highlight=False,
    )
    began = time.strftime("%Y%m%d-%H%M%S")
    outcomes: list[Outcome] = []
    try:
        for mtu, group in groupby(workloads, key=lambda workload: workload.underlay_mtu):
            with MachinePair(mtu) as machines:
                started, unavailable = _start(console, machines, candidates)
                for workload in group:
                    outcome = Outcome(workload, failures=dict(unavailable))
                    outcomes.append(outcome)
                    for turn in range(options.runs):
                        # Every other turn is in reverse order, so that a machine that slows down favours none.
                        order = started if turn % 2 == 0 else reversed(started)
                        for candidate in order:
                            with console.status(f"{workload.title}: turn {turn + 1}, {candidate.name}"):
                                _measure(machines, candidate, outcome, turn, options.seconds)
                    report.print_outcome(console, outcome, known=unavailable)
        for agent_workload in agent_workloads:
            outcomes.append(outcome := Outcome(agent_workload))
            _measure_mesh(console, outcome, agent_workload, options)
            report.print_outcome(console, outcome)
    except KeyboardInterrupt:
        console.print("interrupted; the figures measured so far are written to the reports")
    except RavenError as error:
        console.print(f"bench: {error}", style="red", markup=False)
        return 1
    verdicts = judge(outcomes)
    report.print_verdicts(console, verdicts)
    written = report.as_json(facts, settings, outcomes, verdicts)
    for file in (report.write_json(RESULTS, began, written), html_page.write(RESULTS, began, written)):
        console.print(f"written: {file}", highlight=False)
    return 0 if any(outcome.runs for outcome in outcomes) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--wireguard-go", type=Path, help="path of the program; without it, wireguard-go is left out")
    parser.add_argument("--runs", type=int, default=5, help="turns of each candidate (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each run (default 5)")
    parser.add_argument("--quick", action="store_true", help="2 turns of 2 seconds of the first workload")
    parser.add_argument("--all", action="store_true", help="every workload, not only the first")
    parser.add_argument("--bars", action="store_true", help="the workloads that have bars")
    parser.add_argument("--workloads", default="", help="names, comma-separated")
    parser.add_argument("--candidates", default="", help="names or parts of names, comma-separated")
    parser.add_argument("--list", action="store_true", help="print workloads and candidates, measure nothing")
    options = parser.parse_args(argv)
    if options.quick:
        options.runs, options.seconds = 2, 2.0
    if options.bars:
        wanted = {name for bar in BARS for name in (bar.workload, bar.to_workload) if name}
        options.workloads = ",".join(sorted(wanted))
    if unknown := set(filter(None, options.workloads.split(","))) - {one.name for one in (*EVERY, *AGENT_WORKLOADS)}:
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; --list names them")
    return options


def _workloads(options: argparse.Namespace) -> list[Workload]:
    """Return the chosen workloads, sorted by the MTU of the underlay: each MTU needs its own pair of machines."""
    if options.workloads:  # these may all be workloads of agents
        names = options.workloads.split(",")
        chosen = [workload for workload in EVERY if workload.name in names]
    else:
        chosen = list(EVERY if options.all else FIRST)
    return sorted(chosen, key=lambda workload: workload.underlay_mtu)


def _agent_workloads(options: argparse.Namespace) -> list[AgentWorkload]:
    return [
        agent_workload
        for agent_workload in AGENT_WORKLOADS
        if options.all or agent_workload.name in options.workloads.split(",")
    ]


def _chosen(name: str, parts: str) -> bool:
    return not parts or any(part in name for part in parts.split(","))


def _start(
    console: Console, machines: MachinePair, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], dict[str, str]]:
    started, unavailable = [], {}
    for candidate in candidates:
        try:
            candidate.start(machines)
            started.append(candidate)
        except HostError as error:
            unavailable[candidate.name] = str(error)
            console.print(f"left out: {error}", style="yellow", markup=False, highlight=False)
    return started, unavailable


def _measure(machines: MachinePair, candidate: Candidate, outcome: Outcome, turn: int, seconds: float) -> None:
    if candidate.name in outcome.failures:
        return
    time.sleep(PAUSE)
    try:
        with outcome.workload.condition(machines, candidate):
            before = cpu.now(candidate.pids())
            moved = outcome.workload.run(machines, candidate, seconds)
            usage = cpu.now(candidate.pids()) - before
    except HostError as error:
        outcome.failures[candidate.name] = str(error)
    else:
        outcome.runs.append(Run(candidate.name, turn, figures_of(moved, usage, cpu.resident(candidate.pids()))))


def _measure_mesh(
    console: Console, outcome: Outcome, agent_workload: AgentWorkload, options: argparse.Namespace
) -> None:
    """Measure all turns of an agent workload, in a mesh of its own."""
    try:
        with Mesh() as mesh:
            for turn in range(options.runs):
                with console.status(f"{agent_workload.title}: turn {turn + 1}"):
                    before = cpu.now(mesh.pids())
                    figures = agent_workload.run(mesh, options.seconds)
                    usage = cpu.now(mesh.pids()) - before
                outcome.runs.append(Run(mesh.name, turn, figures_of(figures, usage, cpu.resident(mesh.pids()))))
    except HostError as error:
        outcome.failures[Mesh.name] = str(error)


if __name__ == "__main__":
    sys.exit(main())
