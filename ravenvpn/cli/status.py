"""`raven-vpn status`: state of this node on one screen, faults first.

    not healthy: 1 of 3 regions cannot be reached (ship: ship-1 is down, it answers no probe)
    node:        edge-1, active gateway of region factory
    listening:   UDP 4500
    sessions:    2 up of 3 wanted
    world:       file:/etc/ravenvpn/world, read 9s ago, applied 9s ago

    REGION  GATEWAY  PATH    OK                                       PREFIXES
    cloud   cloud-1  direct  yes                                      10.244.1.0/24
    ship    ship-1   direct  no: ship-1 is down, it answers no probe  10.244.3.0/24

The text is for people and may change; programs take `-o json` (`agent.reports.StatusReport`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ravenvpn.agent.reports import ApiReport, StatusReport
from ravenvpn.cli.client import ask, socket_option
from ravenvpn.cli.output import age, emit, output_option, print_table


@click.command()
@output_option
@socket_option
def status(output: str, socket_path: Path) -> None:
    """Show the state of this node.

    Healthy means that no fault is known. The table has a line for each other region: PATH is direct, "via NAME"
    through a hub or the own gateway, or none; OK is yes, yes with what is not known, or no with the fault. Notes are
    facts that are no fault; below "to fix" each problem has its remedy.

    Exits 0 if the node is healthy, 1 with the reasons first if not, 3 if no agent answers.
    """
    report = ask(socket_path, "/v1/status", StatusReport)
    emit(report, output, lambda: _screen(report))
    sys.exit(0 if report.healthy else 1)


def _screen(report: StatusReport) -> None:
    """Print verdict and reasons, then facts, regions, notes and problems."""
    now = time.time()
    if report.healthy:
        click.secho("healthy", fg="green", bold=True)
    for number, reason in enumerate(report.reasons):
        click.secho(("not healthy: " if number == 0 else "         and: ") + reason, fg="red", bold=number == 0)
    plane = report.data_plane
    # Label and value of each line; lines that do not apply here are left out.
    lines = [
        ("node", f"{report.node}, {report.role}" + (f" of region {report.region}" if report.region else "")),
        ("public key", report.public_key),
        ("listening", f"UDP {report.listen_port}"),
        (
            "sessions",
            f"{report.sessions_up} up of {report.sessions_wanted} wanted"
            if report.sessions_wanted
            else "none wanted",
        ),
        ("world", _world(report, now)),
        *([("api server", _api(report.api, now))] if report.api else []),
        ("data plane", plane.body + (f"; the native one is not in use: {plane.why_pure}" if plane.why_pure else "")),
        ("offloads", " ".join(plane.offloads) or "none"),
        ("agent", f"{report.version}, up {age(now - report.started)}"),
    ]
    if plane.drops:
        lines.append(("drops", ", ".join(f"{count} {name}" for name, count in plane.drops.items())))
    for label, value in lines:
        click.echo(f"{label + ':':<12} {value}")
    if report.regions:
        click.echo()
        print_table(
            ("REGION", "GATEWAY", "PATH", "OK", "PREFIXES"),
            [
                (
                    region.name,
                    region.gateway or "-",
                    region.path,
                    (region.why or "yes") if region.ok else f"no: {region.why}",
                    ", ".join(region.prefixes) or "-",
                )
                for region in report.regions
            ],
        )
    if report.notes:
        click.echo()
        for note in report.notes:
            click.echo(f"note: {note}")
    if report.problems:
        click.echo()
        click.secho("to fix:", bold=True)
        for problem in report.problems:
            remedy = f" ({problem.remedy})" if problem.remedy else ""
            click.echo(f"  {problem.kind} {problem.where}: {problem.message}{remedy}")


def _world(report: StatusReport, now: float) -> str:
    """Return source and age of the world; a world that is not the source's present one is in capitals."""
    saved = report.api.saved_at if report.api else None
    read = f"read {_ago(report.world_at, now)}" if saved is None else f"SAVED ONE, read {_ago(saved, now)}"
    if report.api and report.api.is_another:
        read += ", OF ANOTHER CLUSTER"
    return f"{report.source}, {read}, applied {_ago(report.applied_at, now)}"


def _api(api: ApiReport, now: float) -> str:
    """Return the state of the connection to the API server; a lost one is in capitals."""
    if api.connected_since is not None:
        return f"connected for {age(now - api.connected_since)}, last answer {_ago(api.heard_at, now)}"
    return f"AWAY for {age(api.away or 0.0)}" + (f": {api.error}" if api.error else "")


def _ago(moment: float | None, now: float) -> str:
    """Return how long ago this was, from Unix seconds; "never" for None."""
    return "never" if moment is None else f"{age(now - moment)} ago"
