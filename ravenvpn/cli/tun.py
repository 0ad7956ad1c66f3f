"""`raven-vpn tun IFACE`, and `ravenvpn-tun IFACE` as wg-quick calls it: one WireGuard device without a mesh.

It is used like wireguard-go: it goes into the background once it is ready, is configured by wg(8), and ends at
SIGTERM or SIGINT, or when its device or its socket is deleted. wg-quick runs it with
WG_QUICK_USERSPACE_IMPLEMENTATION=ravenvpn-tun.

Intended differences from wireguard-go: a set is applied as a whole or not at all; the outer port is bound from the
start, so that one in use is refused at once and not when the device is set up; the parent waits until the background
process is ready, and prints the reason if it failed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import click

from ravenvpn.errors import RavenError
from ravenvpn.offloads import OFFLOAD_NAMES, Offloads
from ravenvpn.overhead import ETHERNET_MTU, tunnel_mtu

if TYPE_CHECKING:
    from ravenvpn.crypto.aead import Suite
    from ravenvpn.dataplane.contract import Timing
    from ravenvpn.tunnel.linux.opener import TunnelResources
    from ravenvpn.tunnel.linux.uapi_socket import UapiSocket

READY = "ready"  # what the background process writes to its parent; everything else is an error message
DEFAULT_MTU = tunnel_mtu(ETHERNET_MTU)
SUITES = ("chacha20poly1305", "aes256gcm")  # Suite.value; the help text must not load the ciphers
# The level names of wireguard-go, and the levels of the logging module they stand for.
LOG_LEVELS = {
    "silent": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "verbose": logging.DEBUG,
    "debug": logging.DEBUG,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("iface")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "--suite",
    type=click.Choice(SUITES),
    default=SUITES[0],
    show_default=True,
    help="Cipher suite. aes256gcm is not part of WireGuard: the other end must be ravenvpn with the same option.",
)
@click.option(
    "--without",
    type=click.Choice(OFFLOAD_NAMES),
    multiple=True,
    metavar="OFFLOAD",
    help=f"Switch this offload off; may be given several times. One of {', '.join(OFFLOAD_NAMES)}.",
)
@click.option(
    "--log-level",
    type=click.Choice(list(LOG_LEVELS)),
    help="Log level; the variable LOG_LEVEL sets it too. Without either a background process logs nothing."
    "  [default: error]",
)
def tun(iface: str, foreground: bool, suite: str, without: tuple[str, ...], log_level: str | None) -> None:
    """Run one WireGuard device IFACE, configured by wg(8), in place of wireguard-go."""
    from ravenvpn.crypto.aead import Suite

    # The variable may be meant for other programs and have any value.
    if log_level is None and (inherited := os.environ.get("LOG_LEVEL")):
        log_level = inherited if inherited in LOG_LEVELS else "error"
    logging.basicConfig(
        stream=sys.stderr, level=LOG_LEVELS[log_level or "error"], format=f"%(levelname)s: ({iface}) %(message)s"
    )
    # Both ends always accept WireGuard's suite; the chosen one comes in addition.
    chosen = next(one for one in Suite if one.value == suite)
    resources, uapi = open_device(iface)
    report = _report_nothing if foreground else _go_to_background(keep_output=log_level not in {None, "silent"})
    try:
        run(
            resources,
            uapi,
            suites=frozenset({Suite.CHACHA20POLY1305, chosen}),
            offloads=Offloads.without(without),
            on_ready=lambda: report(READY),
        )
    except RavenError as error:
        report(str(error))
        raise


def wg_quick_main() -> NoReturn:
    """Run `tun` as the console script `ravenvpn-tun`, with errors in one line."""
    try:
        tun.main(prog_name="ravenvpn-tun")
    except RavenError as error:
        click.echo(f"ravenvpn-tun: {error}", err=True)
    sys.exit(1)


def open_device(iface: str) -> tuple[TunnelResources, UapiSocket]:
    """Return the resources of the tunnel, with a random outer port, and its configuration socket; the TUN device is
    down. Raises HostError, and leaves nothing open then."""
    from ravenvpn.tunnel.linux.opener import open_resources
    from ravenvpn.tunnel.linux.uapi_socket import listen

    resources = open_resources(iface, mtu=DEFAULT_MTU)
    assert resources.tun is not None
    try:
        return resources, listen(resources.tun.name)
    except RavenError:
        resources.close()
        raise


def run(
    resources: TunnelResources,
    uapi: UapiSocket,
    *,
    timing: Timing | None = None,
    suites: frozenset[Suite] | None = None,
    offloads: Offloads | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the tunnel until a signal or the deletion of its device or socket; closes both. `timing` is for tests.

    `suites` (None: WireGuard's) is what we and, as assumed, every peer announce. Raises HostError.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(resources, uapi, timing, suites, offloads, on_ready))


async def _serve(  # noqa: PLR0917
    resources: TunnelResources,
    uapi: UapiSocket,
    timing: Timing | None,
    suites: frozenset[Suite] | None,
    offloads: Offloads | None,
    on_ready: Callable[[], None],
) -> None:
    """Serve wg(8) and run the tunnel on the running loop, until one of the reasons to end in the module's
    docstring."""
    # Imported here, so that help texts and errors of the command line do not load ciphers and the event loop.
    from ravenvpn.tunnel.driver import Listeners, Tunnel
    from ravenvpn.tunnel.linux.uapi_socket import UapiServer
    from ravenvpn.tunnel.peer import WIREGUARD_ONLY
    from ravenvpn.tunnel.wg_view import apply, state_of

    suites = suites or WIREGUARD_ONLY
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    listeners = Listeners(on_device_deleted=end.set)
    tunnel = Tunnel(resources, timing=timing, suites=suites, offloads=offloads, listeners=listeners)
    server = UapiServer(uapi, functools.partial(state_of, tunnel), lambda change: apply(tunnel, change, suites))
    try:
        tunnel.start()
        await server.start(on_removed=end.set)
        on_ready()
        await end.wait()
    finally:
        try:
            await server.stop()
        finally:
            tunnel.stop()


def _report_nothing(_: str) -> None:
    """In the foreground there is no parent that waits; errors go to stderr."""


def _go_to_background(*, keep_output: bool) -> Callable[[str], None]:
    """Fork, and detach the child from the terminal.

    Returns in the child only, with the function that sends a message to the parent. The parent waits for it, and
    exits with 0 if it is READY; otherwise it prints the message and exits with 1. `keep_output` leaves stdout and
    stderr open in the child.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            message = pipe.read() or "the background process died"
        if message != READY:
            print(f"ravenvpn-tun: {message}", file=sys.stderr, flush=True)
        # Not sys.exit: the descriptors open here are the child's, to be closed but not to be cleaned up.
        os._exit(0 if message == READY else 1)
    os.close(reader)
    os.setsid()  # no controlling terminal: its hang-up must not end the tunnel
    os.chdir("/")  # hold no mount
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0,) if keep_output else (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)

    def report(message: str) -> None:
        """Send the message to the parent, which then exits; later messages have no receiver and are dropped."""
        nonlocal writer
        if writer >= 0:
            os.write(writer, message.encode())
            os.close(writer)
            writer = -1

    return report


if __name__ == "__main__":
    wg_quick_main()
