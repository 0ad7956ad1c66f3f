"""`raven-vpn agent`: join this node to the mesh."""

from __future__ import annotations

import gc

import click

from ravenvpn.cli.settings import agent_settings, config_of, config_reader


@click.command()
@agent_settings
@click.pass_context
def agent(ctx: click.Context) -> None:
    """Run the agent of this node in the foreground until SIGTERM or Ctrl-C.

    SIGHUP reads configuration and world again; `raven-vpn config show` tells which settings need a restart instead.

    Routes stay on the host when the agent stops, so that traffic for the tunnel does not leave unencrypted.
    `raven-vpn cleanup`, or --cleanup-on-exit, removes them.
    """
    config = config_of(ctx)
    gc.disable()  # while modules are imported, which stay anyway; `process.run` sets the collector up and enables it
    from ravenvpn import daemon

    daemon.run(config, config_reader(ctx))
