"""Notification of changes of network devices, by an rtnetlink socket that is subscribed to link messages
(rtnetlink(7)).

The content of the messages is not read: the current state is asked of each device of interest. The kernel may drop
messages when many come at once (ENOBUFS), which is a notification too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

RTMGRP_LINK = 0x1  # include/uapi/linux/rtnetlink.h
SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
IFF_UP = 0x1  # include/uapi/linux/if.h
_IFREQ = struct.Struct("16sH22x")
READ_SIZE = 64 << 10  # bytes
# Reads per call, so that a host whose devices change all the time does not hold up the loop. The rest is read by the
# next call: the socket stays readable.
MAX_READS = 64


class LinkWatch:
    """Watches the devices of the network namespace in which it was opened. Owns its socket."""

    def __init__(self, watching: socket.socket) -> None:
        self._socket = watching
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_change: Callable[[], None] = lambda: None

    @classmethod
    def open(cls) -> LinkWatch:
        """Subscribe in the network namespace of the calling thread. Changes from here on are noticed."""
        watching = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        watching.bind((0, RTMGRP_LINK))
        return cls(watching)

    def start(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        """Call `on_change` on the loop after any device was added, changed or deleted."""
        self._loop, self._on_change = loop, on_change
        loop.add_reader(self._socket, self._readable)

    def stop(self) -> None:
        """Stop calling `on_change`. Safe to call twice, and from `on_change`."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    def close(self) -> None:
        """Stop, and close the socket. Safe to call twice."""
        self.stop()
        self._socket.close()

    def is_up(self, index: int) -> bool:
        """Return whether a device of this interface index exists and is administratively up."""
        try:
            name = os.fsencode(socket.if_indextoname(index))
            return bool(_IFREQ.unpack(fcntl.ioctl(self._socket, SIOCGIFFLAGS, _IFREQ.pack(name, 0)))[1] & IFF_UP)
        except OSError:
            return False

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_READS):
                try:
                    self._socket.recv(READ_SIZE)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
        self._on_change()
