"""`raven-vpn cleanup`: remove everything of ours from this host, and print it line by line.

Works without an agent and without its configuration: our things are known by routing protocol number, table numbers,
device names and the name of the nft table. Only the former values of sysctls come from the state directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ravenvpn.cli.settings import state_dir_option
from ravenvpn.errors import RavenError


@click.command()
@state_dir_option("Directory in which the agent saved the former values of sysctls.")
def cleanup(state_dir: Path) -> None:
    """Remove every device, route, rule and nft table the agent put on this host, and restore sysctls.

    Keys, configuration and saved state stay. Stop the agent first: a running one restores everything.
    """
    from ravenvpn.node.apply import Host
    from ravenvpn.node.format import format_object

    with Host(state_dir / "host") as host:
        result = host.cleanup()
    for operation in result.changed:
        click.echo(f"{operation.verb} {format_object(operation.target)}")
    if not result.changed and not result.failed:
        click.echo("nothing of ravenvpn is on this host")
    for failure in result.failed:
        click.echo(f"raven-vpn: {failure}", err=True)
    # Everything that could be removed is gone; the exit code tells that something is left.
    if result.failed:
        raise RavenError(f"{len(result.failed)} things could not be removed")
    sys.exit(0)
