"""When the descriptors are served: readers on the loop, a budget of packets per call, patience with a full socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ravenvpn.dataplane.inbound import Inbound
from ravenvpn.dataplane.outbound import Outbound
from ravenvpn.dataplane.transmitter import Transmitter


class Pump:
    """Calls both directions as long as it is started. Level-triggered: what a budget left over comes next turn."""

    def __init__(
        self,
        tun: int | None,
        outer: Transmitter,
        egress: Outbound,
        ingress: Inbound,
        clock: Callable[[], float],
    ) -> None:
        self._tun = tun
        self._outer = outer
        self._egress = egress
        self._ingress = ingress
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading_tun = False
        self._tun_ended = False
        outer.on_full = self._hold

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.go_on()

    def stop(self) -> None:
        self.pause()
        self._loop = None

    def call_soon(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon(callback)

    def pause(self) -> None:
        """Forget the descriptors, which may be about to change."""
        if self._loop is None:
            return
        for one in self._outer.sockets.values():
            self._loop.remove_reader(one.fileno())
            self._loop.remove_writer(one.fileno())
        self._leave_tun()

    def go_on(self) -> None:
        """Watch the descriptors there are."""
        if self._loop is None:
            return
        for one in self._outer.sockets.values():
            self._loop.add_reader(one.fileno(), self._on_udp, one)
        if self._outer.full:
            self._outer.resume()
        if not self._outer.full:
            self._read_tun()

    def _on_tun(self) -> None:
        if not self._egress.pump(self._clock()):
            self._tun_ended = True
            self._leave_tun()

    def _on_udp(self, one: socket.socket) -> None:
        self._ingress.pump(one, self._clock())

    def _hold(self, fd: int) -> bool:
        """An outer socket is full: leave packets in the TUN until it is not. False if nobody could come back."""
        if self._loop is None:
            return False
        self._leave_tun()
        self._loop.add_writer(fd, self._resume, fd)
        return True

    def _resume(self, fd: int) -> None:
        assert self._loop is not None
        self._loop.remove_writer(fd)
        self._outer.resume()
        if not self._outer.full:
            self._read_tun()

    def _read_tun(self) -> None:
        if self._loop is not None and self._tun is not None and not self._reading_tun and not self._tun_ended:
            self._loop.add_reader(self._tun, self._on_tun)
            self._reading_tun = True

    def _leave_tun(self) -> None:
        if self._loop is not None and self._tun is not None and self._reading_tun:
            self._loop.remove_reader(self._tun)
            self._reading_tun = False
