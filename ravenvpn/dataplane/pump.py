"""The registration of descriptors with the event loop: which are read, and the wait for a full socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ravenvpn.dataplane.inbound import Inbound
from ravenvpn.dataplane.outbound import Outbound
from ravenvpn.dataplane.transmitter import Transmitter


class Pump:
    """Calls both directions while it is started. Readers are level-triggered: packets over the budget wait a turn.

    Backpressure: while a socket is full the TUN is not read, so packets wait in the kernel's queue of the TUN device
    and the senders there slow down.
    """

    def __init__(
        self,
        tun: int | None,
        transmitter: Transmitter,
        outbound: Outbound,
        inbound: Inbound,
        clock: Callable[[], float],
    ) -> None:
        self._tun = tun
        self._transmitter = transmitter
        self._outbound = outbound
        self._inbound = inbound
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None  # None while stopped
        self._reading_tun = False
        self._tun_ended = False  # the device is gone, and reading it again would spin
        transmitter.on_full = self._wait_until_writable

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Pump on `loop` from now on."""
        self._loop = loop
        self.register()

    def stop(self) -> None:
        """Stop pumping; safe to call twice."""
        self.unregister()
        self._loop = None

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Schedule `callback` on the loop; no effect while stopped."""
        if self._loop is not None:
            self._loop.call_soon(callback)

    def unregister(self) -> None:
        """Remove all descriptors from the loop, before they are replaced; no effect while stopped."""
        if self._loop is None:
            return
        for one in self._transmitter.sockets.values():
            self._loop.remove_reader(one.fileno())
            self._loop.remove_writer(one.fileno())
        self._stop_reading_tun()

    def register(self) -> None:
        """Add the present descriptors to the loop, and send what waits; no effect while stopped."""
        if self._loop is None:
            return
        for one in self._transmitter.sockets.values():
            self._loop.add_reader(one.fileno(), self._on_udp, one)
        if self._transmitter.is_blocked:
            self._transmitter.resume()
        if not self._transmitter.is_blocked:
            self._read_tun()

    def _on_tun(self) -> None:
        if not self._outbound.pump(self._clock()):
            self._tun_ended = True
            self._stop_reading_tun()

    def _on_udp(self, one: socket.socket) -> None:
        self._inbound.pump(one, self._clock())

    def _wait_until_writable(self, fd: int) -> bool:
        """Resume sending when the full socket `fd` is writable. Return False while stopped: nothing would resume."""
        if self._loop is None:
            return False
        self._stop_reading_tun()
        self._loop.add_writer(fd, self._resume, fd)
        return True

    def _resume(self, fd: int) -> None:
        assert self._loop is not None
        self._loop.remove_writer(fd)
        self._transmitter.resume()
        if not self._transmitter.is_blocked:
            self._read_tun()

    def _read_tun(self) -> None:
        if self._loop is not None and self._tun is not None and not self._reading_tun and not self._tun_ended:
            self._loop.add_reader(self._tun, self._on_tun)
            self._reading_tun = True

    def _stop_reading_tun(self) -> None:
        if self._loop is not None and self._tun is not None and self._reading_tun:
            self._loop.remove_reader(self._tun)
            self._reading_tun = False
