"""`raven-vpn demo`: see the whole thing work on one machine, in network namespaces."""

from __future__ import annotations

import signal
import time
from types import FrameType

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave the mesh running at the end, and say what to try.")
@click.option("--remove", is_flag=True, help="Remove what --keep left, and do nothing else.")
def demo(keep: bool, remove: bool) -> None:
    """Bring up regions in network namespaces with real agents, and show real traffic through the mesh.

    Every line shown has been checked; exit 1 with the reason if one is not true. Everything is removed at the end,
    on Ctrl-C too, and by the next run after a kill. Needs root.
    """
    from ravenvpn.lab import Lab, kept, sweep
    from ravenvpn.lab.demo import REGIONS, Demo

    if remove:
        gone = sweep(also=kept())
        click.echo(f"removed {', '.join(gone)}" if gone else "no demo was kept")
        return
    # A SIGTERM ends the demo as Ctrl-C does: through the `with` block that removes everything.
    signal.signal(signal.SIGTERM, _interrupt)
    begin = time.monotonic()
    click.secho("Three regions, an internet between them; factory and ship are behind NAT.", bold=True)
    lab = Lab(*REGIONS)
    with lab:
        click.echo(f"✓ {len(lab.nodes)} nodes and {len(lab.pods)} pods in namespaces {lab.prefix}-*")
        show = Demo(lab, click.echo, _block)
        show.run()
        click.secho(f"All of it is true; {time.monotonic() - begin:.0f} s.", fg="green", bold=True)
        if keep:
            lab.keep()
            click.echo("\nIt keeps running. Try:")
            for line in show.suggestions():
                click.echo(f"  {line}")


def _block(text: str) -> None:
    click.echo("".join(f"    {line}\n" for line in text.splitlines()), nl=False)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
