"""`raven-vpn demo`: a mesh of real agents on one machine, in network namespaces."""

from __future__ import annotations

import signal
import time
from types import FrameType

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave the mesh running at the end, and print commands to try.")
@click.option("--remove", is_flag=True, help="Remove the mesh that --keep left running, and do nothing else.")
def demo(keep: bool, remove: bool) -> None:
    """Start regions in network namespaces with real agents, and show traffic through the mesh.

    Every printed line is checked first; if a check fails the demo prints the reason and exits with 1. All namespaces
    are removed at the end, also on Ctrl-C; after a kill the next run removes them. Needs root.
    """
    from ravenvpn.lab import Lab, kept_labs, sweep
    from ravenvpn.lab.demo import REGIONS, Demo

    if remove:
        removed = sweep(also=kept_labs())
        click.echo(f"removed {', '.join(removed)}" if removed else "no demo was kept")
        return
    # SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that the `with` block removes the lab.
    signal.signal(signal.SIGTERM, _interrupt)
    begin = time.monotonic()
    click.secho("Three regions, an internet between them; factory and ship are behind NAT.", bold=True)
    lab = Lab(*REGIONS)
    with lab:
        click.echo(f"✓ {len(lab.nodes)} nodes and {len(lab.pods)} pods in namespaces {lab.prefix}-*")
        run = Demo(lab, click.echo, _print_block)
        run.run()
        click.secho(f"All checks passed in {time.monotonic() - begin:.0f} s.", fg="green", bold=True)
        if keep:
            lab.keep()
            click.echo("\nThe mesh keeps running. Try:")
            for line in run.suggestions():
                click.echo(f"  {line}")


def _print_block(text: str) -> None:
    """Print the output of a program, indented and followed by an empty line."""
    click.echo("".join(f"    {line}\n" for line in text.splitlines()), nl=False)


def _interrupt(_: int, __: FrameType | None) -> None:
    """Handle SIGTERM."""
    raise KeyboardInterrupt
