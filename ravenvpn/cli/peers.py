"""`raven-vpn peers`: the peers of this node's tunnel, their paths, handshakes and traffic.

    PEER     REGION  STATE  PATH    ENDPOINT        HANDSHAKE  RTT     LOSS  RX          TX          SUITE        MTU
    cloud-1  cloud   up     direct  192.0.2.1:4500  12s ago    12.3ms  0%    120.56 KiB  638.99 KiB  AES-256-GCM  1420

The text is for people and may change; programs take `-o json` (`agent.reports.PeerReport`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from ravenvpn.agent.reports import PeerReport
from ravenvpn.cli.client import ask, socket_option
from ravenvpn.cli.output import age, emit, output_option, print_table, size


@click.command()
@click.argument("name", required=False)
@click.option("-w", "--watch", is_flag=True, help="Show again every second until interrupted.")
@output_option
@socket_option
def peers(name: str | None, watch: bool, output: str, socket_path: Path) -> None:
    """Show the tunnel's peers, or the details of peer NAME.

    STATE is up, cold (no session, and none is needed until there is traffic), connecting, or down with the cause.
    PATH is direct, or "via NAME" through the hub in region NAME. RTT and LOSS are measured by probes inside the
    tunnel; RX and TX count bytes as `wg show` does; RX/s and TX/s are means over the last seconds.
    """
    while True:
        if name:
            one = ask(socket_path, f"/v1/peers/{name}", PeerReport)
            emit(one, output, lambda one=one: _details(one))  # type: ignore[misc]
        else:
            several = ask(socket_path, "/v1/peers", list[PeerReport])
            if watch and output == "table":
                click.clear()
            emit(several, output, lambda several=several: _table(several))  # type: ignore[misc]
        if not watch:
            return
        time.sleep(1.0)  # as often as the agent reads the counters


def _table(reports: Sequence[PeerReport]) -> None:
    """Print one row a peer; RX/s and TX/s are means over the last seconds."""
    if not reports:
        click.echo("no peers: no other region has an active gateway that this node can reach")
        return
    now = time.time()
    columns = (
        "PEER", "REGION", "STATE", "PATH", "ENDPOINT", "HANDSHAKE", "RTT", "LOSS", "RX", "TX", "RX/s", "TX/s",
        "SUITE", "MTU",
    )  # fmt: skip
    print_table(columns, [_row(report, now) for report in reports])


def _row(report: PeerReport, now: float) -> tuple[str, ...]:
    """Return the cells of a peer, in the order of the columns; `-` stands for a value that is not known."""
    return (
        report.name,
        report.region or "-",
        report.state + (f" ({report.why})" if report.why else ""),
        _path(report),
        report.endpoint or "-",
        _handshake(report, now),
        f"{report.rtt * 1e3:.1f}ms" if report.rtt is not None else "-",
        f"{report.loss:.0%}" if report.loss is not None else "-",
        size(report.rx_bytes),
        size(report.tx_bytes),
        size(report.rx_rate),
        size(report.tx_rate),
        report.suite or "-",
        str(report.mtu) if report.mtu else "-",
    )


def _path(report: PeerReport) -> str:
    """Return the path, and for a hub the regions that are reached through it."""
    return report.path + (f", hub for {', '.join(report.relays)}" if report.relays else "")


def _handshake(report: PeerReport, now: float) -> str:
    """Return the age of the last handshake; `now` is in Unix seconds."""
    return f"{age(now - report.last_handshake)} ago" if report.last_handshake else "never"


def _details(report: PeerReport) -> None:
    """Print everything known of one peer, a line a fact, as `wg show` does."""
    rows = [
        ("region", report.region or "-"),
        ("state", report.state + (f" ({report.why})" if report.why else "")),
        ("path", _path(report)),
        ("endpoint", report.endpoint or "-"),
        ("public key", report.public_key),
        ("suite", report.suite or "-"),
        ("latest handshake", _handshake(report, time.time())),
        ("round trip", f"{report.rtt * 1e3:.2f} ms" if report.rtt is not None else "-"),
        ("loss", f"{report.loss:.0%}" if report.loss is not None else "-"),
        ("transfer", f"{size(report.rx_bytes)} received, {size(report.tx_bytes)} sent"),
        ("rate", f"{size(report.rx_rate)}/s received, {size(report.tx_rate)}/s sent"),
        ("MTU", str(report.mtu or "-")),
        ("prefixes", ", ".join(report.prefixes) or "-"),
    ]
    click.secho(f"peer {report.name}", bold=True)
    for label, value in rows:
        click.echo(f"  {label}: {value}")
