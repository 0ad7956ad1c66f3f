"""Sockets of former listen ports, read for a moment longer so that a change of the port loses no packet.

Peers send to the old port until they received an authenticated packet from the new one, and datagrams wait in the old
socket's buffer. So old sockets stay open and readable for LINGER seconds; replies leave from the new ones.
"""

from __future__ import annotations

import asyncio

from ravenvpn.dataplane.contract import DataPlane
from ravenvpn.tunnel.linux.udp import UdpSockets

# Seconds. Twice the longest round trip that a tunnel is of use with: a keepalive takes half of one to the peer, and a
# packet that the peer sent just before takes another half back.
LINGER = 2.0


class ReplacedSockets:
    """Owns the sockets added to it and closes them. Used on the event loop."""

    def __init__(self, dataplane: DataPlane) -> None:
        self._dataplane = dataplane
        self._loop: asyncio.AbstractEventLoop | None = None
        # Sockets with the timer that closes them.
        self._closers: dict[int, tuple[UdpSockets, asyncio.TimerHandle]] = {}  # by port

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the sockets that are added from now on with this loop."""
        self._loop = loop

    def add(self, sockets: UdpSockets) -> None:
        """Read these for LINGER seconds, then close them; close them at once before `start`."""
        if self._loop is None:
            sockets.close()
            return
        for fd, ipv6 in zip(sockets.descriptors, (False, True), strict=True):
            if fd is not None:
                self._loop.add_reader(fd, self._on_readable, fd, ipv6)
        self._closers[sockets.port] = (sockets, self._loop.call_later(LINGER, self._close, sockets.port))

    @property
    def ports(self) -> frozenset[int]:
        """The ports that are still read."""
        return frozenset(self._closers)

    def reclaim(self, port: int) -> UdpSockets | None:
        """Return the sockets of this port, which are the caller's again: the port was changed back. None if there are
        none."""
        return self._remove(port) if port in self._closers else None

    def stop(self) -> None:
        """Close all. Safe to call twice."""
        for port in list(self._closers):
            self._close(port)
        self._loop = None

    def _on_readable(self, fd: int, ipv6: bool) -> None:
        self._dataplane.pump_replaced_socket(fd, ipv6)

    def _close(self, port: int) -> None:
        self._remove(port).close()

    def _remove(self, port: int) -> UdpSockets:
        assert self._loop is not None
        sockets, closer = self._closers.pop(port)
        closer.cancel()
        for fd in sockets.descriptors:
            if fd is not None:
                self._loop.remove_reader(fd)
        return sockets
