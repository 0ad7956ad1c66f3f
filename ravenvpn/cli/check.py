"""`raven-vpn check`: test whether this host can run the agent.

    VERDICT  CHECK         FOUND
    OK       tun           /dev/net/tun opens
    WARN     sysctls       …

Each WARN and FAIL is repeated below the table with its remedy. `node.preflight` decides, from facts that
`node.preflight_facts` reads; `cluster_check` adds those about the API server.
"""

from __future__ import annotations

import sys

import click

from ravenvpn.cli.output import emit, output_option, print_table
from ravenvpn.cli.settings import agent_settings, config_of
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT

# Colour of a finding by its level (node.preflight.FindingLevel).
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@agent_settings
@output_option
@click.pass_context
def check(ctx: click.Context, output: str) -> None:
    """Check this host without changing it.

    Covers TUN, capabilities, offloads, clock, sysctls, packet filters of other programs, MTU, free ports, and the
    cluster where the world comes from one. Exits 1 if a check fails; a warning does not count as a failure.
    """
    from ravenvpn.node import preflight as checks
    from ravenvpn.node.preflight_facts import gather_facts

    config = config_of(ctx)
    http = config.http_endpoint
    findings = checks.evaluate(
        gather_facts(listen_port=config.listen_port or DEFAULT_TUNNEL_PORT, health_port=http[1] if http else 10275)
    )
    if config.world_directory is None:
        from ravenvpn.cli import cluster_check

        findings += cluster_check.check(config)

    def table() -> None:
        """Print all findings as a table, then each remedy below its finding."""
        rows = [(finding.verdict.upper(), finding.name, finding.what) for finding in findings]
        print_table(("VERDICT", "CHECK", "FOUND"), rows)
        for finding in findings:
            if finding.remedy:
                click.secho(f"\n{finding.name}: {finding.what}", fg=_COLOURS[finding.verdict])
                click.echo(f"  remedy: {finding.remedy}")

    emit(findings, output, table)
    sys.exit(1 if checks.worst(findings) is checks.FindingLevel.FAIL else 0)
