"""`raven-vpn agent`: join this node to the mesh."""

from __future__ import annotations

import gc

import click

from ravenvpn.cli.settings import agent_settings, config_of, config_reader


@click.command()
@agent_settings
@click.pass_context
def agent(ctx: click.Context) -> None:
    """Run the agent of this node in the foreground, until SIGTERM or Ctrl-C. SIGHUP reloads the world.

    Routes stay on the host when it stops, so that nothing meant for the tunnel leaves in clear; `raven-vpn cleanup`
    (or --cleanup-on-exit) removes them.
    """
    config = config_of(ctx)
    gc.disable()  # what is imported stays; `daemon.run` looks after the rest
    from ravenvpn import daemon

    daemon.run(config, config_reader(ctx))
