"""The `raven-vpn` command: one file per verb, loaded only when the verb is used.

The table below is all that `raven-vpn --help` reads, so help stays quick however much a verb imports.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

import ravenvpn
from ravenvpn.errors import AgentUnreachableError, ConfigError, RavenError

# Exit codes (docs/architecture/README.md, "Fixed names"): 0 fine, 1 failed or not healthy, then these two.
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

# verb → (module, one line). A module holds a click command named as its verb.
VERBS = {
    "agent": ("ravenvpn.cli.agent", "Join this node to the mesh (what ravenvpn.service runs)."),
    "controller": ("ravenvpn.cli.controller", "Elect the active gateways of a cluster's regions."),
    "install": ("ravenvpn.cli.install", "Put ravenvpn into a cluster, or print the manifests."),
    "status": ("ravenvpn.cli.status", "Is this node well? Exit 1 and the reason first if not."),
    "peers": ("ravenvpn.cli.peers", "Show the tunnel's peers: path, handshakes, traffic."),
    "plan": ("ravenvpn.cli.plan", "Show what the agent wants on this host, and why."),
    "check": ("ravenvpn.cli.check", "Is this host fit to run the agent? Each finding with its remedy."),
    "config": ("ravenvpn.cli.config", "Show or validate the configuration."),
    "cleanup": ("ravenvpn.cli.cleanup", "Remove everything the agent has put on this host."),
    "manifest": ("ravenvpn.cli.manifest", "Print what the other nodes have to know of this one."),
    "keygen": ("ravenvpn.cli.keys", "Make a private key, as wg genkey does."),
    "pubkey": ("ravenvpn.cli.keys", "Print the public key of a private key."),
    "tun": ("ravenvpn.cli.tun", "Just a tunnel, configured by wg(8), as wireguard-go would be."),
    "demo": ("ravenvpn.cli.demo", "Bring up a mesh in network namespaces and show that it works."),
}


class VerbGroup(click.Group):
    """A group that knows its verbs by name and loads one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RAVENVPN"},
    epilog="Exit codes: 0 fine, 1 not healthy or failed, 2 wrong usage, 3 the agent cannot be reached.",
)
@click.version_option(ravenvpn.__version__, prog_name="raven-vpn")
def raven_vpn() -> None:
    """A userspace WireGuard mesh that joins the regions of one Kubernetes cluster."""


def main(arguments: list[str] | None = None) -> Any:
    """Run `raven-vpn`; errors of ours become one line on stderr and an exit code."""
    try:
        return raven_vpn.main(args=arguments, prog_name="raven-vpn")
    except AgentUnreachableError as error:
        code, text = EXIT_UNREACHABLE, str(error)
    except ConfigError as error:
        code, text = EXIT_USAGE, str(error)
    except RavenError as error:
        code, text = 1, str(error)
    except BrokenPipeError:
        # The reader went away (`raven-vpn peers | head`); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, text = 1, ""
    if text:
        click.echo(f"raven-vpn: {text}", err=True)
    sys.exit(code)
