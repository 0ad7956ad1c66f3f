"""`raven-vpn tun IFACE`, and `ravenvpn-tun IFACE` as wg-quick calls it: just a tunnel, in wireguard-go's manners.

It goes into the background once it is ready, is configured by wg(8), and ends at SIGTERM or SIGINT, or when its
device or its socket is deleted. wg-quick uses it with WG_QUICK_USERSPACE_IMPLEMENTATION=ravenvpn-tun.

Where it differs from wireguard-go, on purpose: a set is applied whole or not at all; the outer port is bound from the
start, so that one in use is refused at once and not when the device is set up; the parent waits until the background
process is ready, and says why if it failed.
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
from ravenvpn.overhead import ETHERNET_MTU, tunnel_mtu

if TYPE_CHECKING:
    from ravenvpn.crypto.aead import Suite
    from ravenvpn.dataplane.contract import Timing
    from ravenvpn.offloads import Offloads
    from ravenvpn.tunnel.driver import Listeners, Tunnel
    from ravenvpn.tunnel.linux.tun import Tun
    from ravenvpn.tunnel.linux.uapi_socket import UapiSocket

READY = "ready"
DEFAULT_MTU = tunnel_mtu(ETHERNET_MTU)
SUITES = ("chacha20poly1305", "aes256gcm")
OFFLOADS = ("tun_tso", "tun_uso", "tun_gro", "tun_gro_udp", "udp_gso", "udp_gro")
# The names of wireguard-go, and what they come to here.
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
    help="aes256gcm needs the same at the other end, so it is no WireGuard any more.",
)
@click.option(
    "--without",
    type=click.Choice(OFFLOADS),
    multiple=True,
    metavar="OFFLOAD",
    help=f"Do without this offload; may be given several times. One of {', '.join(OFFLOADS)}.",
)
@click.option(
    "--log-level",
    type=click.Choice(list(LOG_LEVELS)),
    help="Or the variable LOG_LEVEL. In the background nothing is logged without either.  [default: error]",
)
def tun(iface: str, foreground: bool, suite: str, without: tuple[str, ...], log_level: str | None) -> None:
    """Just a tunnel, configured by wg(8), as wireguard-go would be."""
    from ravenvpn.crypto.aead import Suite
    from ravenvpn.offloads import Offloads

    # A variable of that name may be meant for others and say what it likes.
    if log_level is None and (inherited := os.environ.get("LOG_LEVEL")):
        log_level = inherited if inherited in LOG_LEVELS else "error"
    logging.basicConfig(
        stream=sys.stderr, level=LOG_LEVELS[log_level or "error"], format=f"%(levelname)s: ({iface}) %(message)s"
    )
    chosen = next(one for one in Suite if one.value == suite)
    device, uapi = open_device(iface)
    outcome = _nobody_waits if foreground else _go_to_background(keep_output=log_level not in {None, "silent"})
    try:
        run(
            device,
            uapi,
            suites=frozenset({Suite.CHACHA20POLY1305, chosen}),
            offloads=Offloads(**dict.fromkeys(without, False)),
            on_ready=lambda: outcome(READY),
        )
    except RavenError as error:
        outcome(str(error))
        raise


def wg_quick_main() -> NoReturn:
    """The console script `ravenvpn-tun`."""
    try:
        tun.main(prog_name="ravenvpn-tun")
    except RavenError as error:
        click.echo(f"ravenvpn-tun: {error}", err=True)
    sys.exit(1)


def open_device(iface: str) -> tuple[Tun, UapiSocket]:
    """The TUN device and its configuration socket, down and idle. Raises HostError."""
    from ravenvpn.tunnel.linux.tun import Tun
    from ravenvpn.tunnel.linux.uapi_socket import listen

    device = Tun.open(iface)
    try:
        device.mtu = DEFAULT_MTU
        return device, listen(device.name)
    except RavenError:
        device.close()
        raise


def run(
    device: Tun,
    uapi: UapiSocket,
    *,
    timing: Timing | None = None,
    suites: frozenset[Suite] | None = None,
    offloads: Offloads | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the tunnel until it is told to end; closes both. `timing` is for tests. Raises HostError."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tunnel = functools.partial(_tunnel, device, timing=timing, suites=suites, offloads=offloads)
        runner.run(_serve(tunnel, uapi, suites, on_ready))


def _tunnel(
    device: Tun,
    listeners: Listeners,
    *,
    timing: Timing | None,
    suites: frozenset[Suite] | None,
    offloads: Offloads | None,
) -> Tunnel:
    from ravenvpn.tunnel.driver import Tunnel
    from ravenvpn.tunnel.peer import WIREGUARD_ONLY

    return Tunnel(device, timing=timing, suites=suites or WIREGUARD_ONLY, offloads=offloads, listeners=listeners)


async def _serve(
    make_tunnel: Callable[[Listeners], Tunnel],
    uapi: UapiSocket,
    suites: frozenset[Suite] | None,
    on_ready: Callable[[], None],
) -> None:
    from ravenvpn.tunnel.driver import Listeners
    from ravenvpn.tunnel.linux.uapi_socket import UapiServer
    from ravenvpn.tunnel.peer import WIREGUARD_ONLY
    from ravenvpn.tunnel.wg_view import apply, state_of

    suites = suites or WIREGUARD_ONLY
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    tunnel = make_tunnel(Listeners(on_gone=end.set))
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


def _nobody_waits(_: str) -> None:
    """In the foreground, what is said on stderr is all that is said."""


def _go_to_background(*, keep_output: bool) -> Callable[[str], None]:
    """Fork. The parent waits for the child's word, and exits 0 at READY, else says the word and exits 1.

    Returns in the child, with the function that gives the parent its word.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as words:
            word = words.read() or "the background process died"
        if word != READY:
            print(f"ravenvpn-tun: {word}", file=sys.stderr, flush=True)
        # Not sys.exit: what is open here is the child's, to be closed but not to be cleaned up.
        os._exit(0 if word == READY else 1)
    os.close(reader)
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0,) if keep_output else (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)

    def say(word: str) -> None:
        nonlocal writer
        if writer >= 0:
            os.write(writer, word.encode())
            os.close(writer)
            writer = -1

    return say


if __name__ == "__main__":
    wg_quick_main()
