"""`raven-vpn plan`: everything planned for this host, by the running agent or from manifests, with reasons.

    peer cloud-1 at 203.0.113.10:4500, warm, keepalive 25 s         # active gateway of region cloud
    device ravenvpn0 mtu 1420 up                                    # this node is active gateway of region factory
    route 10.244.1.0/24 table 9127 dev ravenvpn0 src 10.244.2.1     # pod prefix of node cloud-1, …

The text is for people and may change; programs take `-o json` (`agent.reports.PlanLine`).
"""

from __future__ import annotations

import socket
from pathlib import Path

import click

from ravenvpn.agent.reports import PlanLine
from ravenvpn.cli.client import ask, socket_option
from ravenvpn.cli.output import emit, output_option
from ravenvpn.errors import ConfigError


@click.command()
@click.option(
    "-f",
    "--from",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Plan from the manifests in this directory, without an agent and without root.",
)
@click.option(
    "--node", default=None, envvar="NODE_NAME", help="With -f: node to plan for.  [default: this host's name]"
)
@click.option("--mesh", default="ravenvpn", show_default=True, help="With -f: name of the mesh.")
@click.option("--forward-node-ip", is_flag=True, help="With -f: route node addresses of other regions, too.")
@click.option("--diff", is_flag=True, help="Show only what differs on this host now.")
@output_option
@socket_option
def plan(
    *,
    directory: Path | None,
    node: str | None,
    mesh: str,
    forward_node_ip: bool,
    diff: bool,
    output: str,
    socket_path: Path,
) -> None:
    """Show the plan for this host: peers, device, addresses, rules, routes, sysctls, packet filter.

    Each line ends with its reason. With --diff a line begins with + (missing), ~ (different) or - (to be removed).
    """
    # 30 s: a diff reads the kernel's whole state, after a change that is being applied.
    if directory is None:
        lines = ask(socket_path, "/v1/plan?diff=1" if diff else "/v1/plan", list[PlanLine], timeout=30.0)
    else:
        lines = _from_manifests(directory, node or socket.gethostname(), mesh, forward_node_ip, diff)
    # A diff without lines is an answer; an empty table would look like a failure.
    if diff and not lines and output == "table":
        click.echo("no differences")
    emit(lines, output, lambda: _print(lines))


def _from_manifests(directory: Path, node: str, mesh: str, forward_node_ip: bool, diff: bool) -> list[PlanLine]:
    """Plan for `node` from a directory; problems, conflicts, role and notes go to stderr, so that stdout is the plan.

    Without an agent there are no facts of the host: MTUs, addresses and sysctls are those of `LocalFacts`'
    defaults."""
    from ravenvpn.agent.plan_rows import plan_lines
    from ravenvpn.k8s.files import FileSource
    from ravenvpn.mesh import plan as planning
    from ravenvpn.mesh.reason import explain
    from ravenvpn.mesh.situation import Intent, Situation

    if diff:
        raise ConfigError(
            "cannot be combined with -f", field="--diff", remedy="use the running agent: raven-vpn plan --diff"
        )
    snapshot = FileSource(directory, mesh).load()
    for problem in snapshot.problems:
        click.echo(f"raven-vpn: {problem}", err=True)
    made = planning.plan(Situation(snapshot.world, intent=Intent(forward_node_ip=forward_node_ip)), node)
    for conflict in made.conflicts:
        click.echo(f"raven-vpn: {conflict}", err=True)
    click.echo(f"# {node}: {made.role}" + (f" of region {made.region}" if made.region else ""), err=True)
    for note in made.notes:
        click.echo(f"# {explain(note)}", err=True)
    return plan_lines(made)


def _print(lines: list[PlanLine]) -> None:
    """Print each thing with its reason as a comment, aligned up to 100 columns; longer things stay whole."""
    width = min(100, max((len(line.what) for line in lines), default=0))
    for line in lines:
        change = f"{line.change} " if line.change else ""
        click.echo(f"{change}{line.what:<{width}}  # {line.why}" if line.why else f"{change}{line.what}")
