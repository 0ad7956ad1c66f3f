"""`raven-vpn cleanup`: leave no trace on this host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ravenvpn.cli.settings import state_dir_option
from ravenvpn.errors import RavenError


@click.command()
@state_dir_option("Where the agent kept what sysctls were before it.")
def cleanup(state_dir: Path) -> None:
    """Remove every device, route, rule, nft table and sysctl the agent has put on this host.

    Keys, configuration and saved state stay. Stop the agent first, or it will put everything back.
    """
    from ravenvpn.node.apply import Host
    from ravenvpn.node.format import words

    with Host(state_dir / "host") as host:
        result = host.cleanup()
    for operation in result.changed:
        click.echo(f"{operation.verb} {words(operation.thing)}")
    if not result.changed and not result.failed:
        click.echo("nothing of ravenvpn's was here")
    for failure in result.failed:
        click.echo(f"raven-vpn: {failure}", err=True)
    if result.failed:
        raise RavenError(f"{len(result.failed)} things could not be removed")
    sys.exit(0)
