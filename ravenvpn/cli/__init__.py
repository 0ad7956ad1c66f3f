"""The `raven-vpn` command: one module a verb, imported only when the verb is used.

`raven-vpn --help` reads the table below alone, so it stays fast whatever the verbs import.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

import ravenvpn
from ravenvpn.errors import AgentUnreachableError, ConfigError, RavenError

# Exit codes (docs/architecture/README.md, "Fixed names"), an interface for scripts. 0: success. 1: failed, or not
# healthy.
EXIT_USAGE = 2  # wrong command line or configuration
EXIT_UNREACHABLE = 3  # no agent answers

# verb → (module, line of help). The module has a click command with the verb's name.
VERBS = {
    "agent": ("ravenvpn.cli.agent", "Join this node to the mesh (what ravenvpn.service runs)."),
    "controller": ("ravenvpn.cli.controller", "Elect the active gateways of a cluster's regions."),
    "install": ("ravenvpn.cli.install", "Put ravenvpn into a cluster, or print the manifests."),
    "status": ("ravenvpn.cli.status", "Show whether this node is healthy; exit 1 with the reason if not."),
    "peers": ("ravenvpn.cli.peers", "Show the tunnel's peers: path, handshakes, traffic."),
    "plan": ("ravenvpn.cli.plan", "Show everything planned for this host, and why."),
    "check": ("ravenvpn.cli.check", "Check whether this host can run the agent; remedies included."),
    "config": ("ravenvpn.cli.config", "Show or validate the configuration."),
    "cleanup": ("ravenvpn.cli.cleanup", "Remove everything the agent put on this host."),
    "manifest": ("ravenvpn.cli.manifest", "Print the manifests that other nodes need of this one."),
    "keygen": ("ravenvpn.cli.keys", "Create a private key, as wg genkey does."),
    "pubkey": ("ravenvpn.cli.keys", "Print the public key of a private key."),
    "tun": ("ravenvpn.cli.tun", "Run one tunnel configured by wg(8), like wireguard-go."),
    "demo": ("ravenvpn.cli.demo", "Run a mesh in network namespaces and test it."),
}


class VerbGroup(click.Group):
    """A click group that imports a verb's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help text."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command; None for an unknown verb."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs from the table: click's own version would import each of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RAVENVPN"},
    epilog="Exit codes: 0 success, 1 not healthy or failed, 2 wrong usage, 3 the agent cannot be reached.",
)
@click.version_option(ravenvpn.__version__, prog_name="raven-vpn")
def raven_vpn() -> None:
    """A userspace WireGuard mesh that joins the regions of one Kubernetes cluster."""


def main(arguments: list[str] | None = None) -> Any:
    """Run `raven-vpn` with these arguments (sys.argv). A RavenError becomes one line on stderr and an exit code."""
    try:
        return raven_vpn.main(args=arguments, prog_name="raven-vpn")
    # The order matters: the first two are RavenErrors as well.
    except AgentUnreachableError as error:
        code, text = EXIT_UNREACHABLE, str(error)
    except ConfigError as error:
        code, text = EXIT_USAGE, str(error)
    except RavenError as error:
        code, text = 1, str(error)
    except BrokenPipeError:
        # The reader closed the pipe (`raven-vpn peers | head`). Without this, Python reports a second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, text = 1, ""
    if text:
        click.echo(f"raven-vpn: {text}", err=True)
    sys.exit(code)
