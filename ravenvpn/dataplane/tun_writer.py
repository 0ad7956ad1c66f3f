"""Writing to the TUN: superpackets while the kernel takes them, their packets one by one when it does not.

Some kernels refuse superpackets that are right (EINVAL; Linux 6.6.44 and other stable releases of that summer refused
those with a short tail). The packets in hand are then written singly, and after a few refusals in a row joining is
given up, for TCP and UDP apart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from ravenvpn.dataplane.coalesce import Coalescer, Item
from ravenvpn.dataplane.contract import Drop
from ravenvpn.dataplane.events import Tally

REFUSALS: Final = 3  # in a row

Parts = list[bytes | memoryview]


class TunWriter:
    """Writes frames to `fd`, which is not ours to close; `writev` is os.writev unless a test refuses on its own."""

    def __init__(self, fd: int, tally: Tally, writev: Callable[[int, Parts], int] = os.writev) -> None:
        self._fd = fd
        self._tally = tally
        self._writev = writev
        self._refused = 0

    def write(self, coalescer: Coalescer) -> None:
        """Everything it holds, in order. What can't be written is counted and dropped."""
        for item in coalescer.items:
            parts, count = coalescer.frame(item), len(item.starts)
            error = self._attempt(parts, count)
            if count > 1:
                if error == errno.EINVAL:
                    for single in coalescer.plain(item):
                        self._count_lost(self._attempt(single, 1), 1)
                    self._count_refusal(coalescer, item)
                    continue
                self._refused = 0
            self._count_lost(error, count)

    def _attempt(self, parts: Parts, count: int) -> int:
        """One write: 0, or the errno."""
        self._tally.tun_writes += 1
        try:
            self._writev(self._fd, parts)
        except OSError as error:
            return error.errno or errno.EIO
        self._tally.tun_tx_packets += count
        return 0

    def _count_lost(self, error: int, count: int) -> None:
        if error:
            self._tally.drops[Drop.TUN_WRITE_FAILED] += count

    def _count_refusal(self, coalescer: Coalescer, item: Item) -> None:
        self._refused += 1
        if self._refused < REFUSALS:
            return
        self._refused = 0
        if coalescer.is_udp(item):
            coalescer.udp = False
            self._tally.gave_up("tun_gro_udp")
        else:
            coalescer.tcp = False
            self._tally.gave_up("tun_gro")
