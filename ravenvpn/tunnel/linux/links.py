"""Word that some network device changed, so that whoever cares looks again at its own.

An rtnetlink socket subscribed to link messages (rtnetlink(7)), of which not one is read for its content: what is true
now is asked of the device itself. Messages may be lost when many come at once; that is word enough.
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
READ_SIZE = 64 << 10
MAX_READS = 64


class LinkWatch:
    """Calls `on_change` on the loop after any device of this namespace was added, changed or deleted."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        watching = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        watching.bind((0, RTMGRP_LINK))
        self._loop, self._socket = loop, watching
        loop.add_reader(watching, self._readable)

    def stop(self) -> None:
        """Safe to call twice, and from `on_change`."""
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._loop = self._socket = None

    def is_up(self, index: int) -> bool:
        """Whether the device of this index is there and set up; asked only while started."""
        assert self._socket is not None
        try:
            name = os.fsencode(socket.if_indextoname(index))
            return bool(_IFREQ.unpack(fcntl.ioctl(self._socket, SIOCGIFFLAGS, _IFREQ.pack(name, 0)))[1] & IFF_UP)
        except OSError:
            return False

    def _readable(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            # Bounded, so that a host that changes all the time does not keep us here; what is left calls again.
            for _ in range(MAX_READS):
                try:
                    self._socket.recv(READ_SIZE)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
        self._on_change()
