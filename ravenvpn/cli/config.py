"""`raven-vpn config show` and `raven-vpn config validate`: print or check the configuration without an agent.

    SETTING      VALUE  FROM                              APPLIES
    listen_port  4600   file /etc/ravenvpn/config.yaml    reload
    dataplane    auto   default                           restart

Both see the flags and variables of their own call, not those of an agent that runs.
"""

from __future__ import annotations

import dataclasses

import click

from ravenvpn.cli.output import emit, output_option, print_table
from ravenvpn.cli.settings import CONFIG_PATH_KEY, agent_settings, config_of, origins
from ravenvpn.config import SETTINGS


@click.group()
def config() -> None:
    """Show or validate the configuration: flags, then RAVENVPN_* variables, then the file."""


@config.command()
@agent_settings
@output_option
@click.pass_context
def show(ctx: click.Context, output: str) -> None:
    """Print every setting: its value, the origin of that value, and when a change takes effect.

    APPLIES is "reload" (SIGHUP, systemctl reload) or "restart".
    """
    values, sources = dataclasses.asdict(config_of(ctx)), origins(ctx)
    merged = {
        name: {"value": value, "from": sources[name], "applies": SETTINGS[name].metadata["applies"]}
        for name, value in values.items()
    }

    def table() -> None:
        """Print one row a setting, in the order of the table in `ravenvpn.config`."""
        rows = [(name, str(entry["value"]), entry["from"], entry["applies"]) for name, entry in merged.items()]
        print_table(("SETTING", "VALUE", "FROM", "APPLIES"), rows)

    emit(merged, output, table)


@config.command()
@agent_settings
@click.pass_context
def validate(ctx: click.Context) -> None:
    """Check the configuration as the agent does; exit 2 with the mistake and its remedy, or 0."""
    config_of(ctx)
    click.echo(f"{ctx.meta[CONFIG_PATH_KEY]}: valid")
