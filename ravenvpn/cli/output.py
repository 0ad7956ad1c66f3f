"""Output of the verbs: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

FORMATS = ("table", "json", "yaml")

output_option = click.option(
    "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="Output format."
)


def emit(value: Any, output: str, table: Callable[[], None]) -> None:
    """Print `value` in the format `output`, one of `FORMATS`.

    `value` is anything that msgspec encodes; JSON and YAML have the same content, the one of the control API. `table`
    prints it for people and is called for "table" alone."""
    if output == "table":
        table()
    elif output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    else:
        click.echo(msgspec.yaml.encode(value).decode(), nl=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without borders, so that cells can be taken with awk(1).

    No cell is cut. On a terminal long cells are folded; elsewhere lines are as long as they need to be. Markup is
    off: a name with brackets is printed as it is."""
    # Imported here: rich takes tens of milliseconds to import, which JSON output and help need not wait for.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not sys.stdout.isatty():
        console.width = 10_000
    console.print(table)


def age(seconds: float | None) -> str:
    """Format a duration in its two largest units: 9s, 2m10s, 3h05m, 4d06h; "never" for None."""
    if seconds is None:
        return "never"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def size(amount: float) -> str:
    """Format a number of bytes (or bytes per second) in binary units, as `wg show` prints it: 512 B, 1.50 KiB."""
    if amount < 1024:
        return f"{int(amount)} B"
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.2f} {unit}"
    return f"{amount / 1024:.2f} TiB"
