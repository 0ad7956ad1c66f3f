"""Writes to the TUN: superpackets while the kernel accepts them, their packets one by one when it does not.

Some kernels refuse valid superpackets with EINVAL (Linux 6.6.44 and other stable releases of summer 2024 refused
those with a short last segment). The packets in hand are then written one by one, and after a few refusals in a row
coalescing is given up, for TCP and UDP separately.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from ravenvpn.dataplane.coalesce import Coalescer, Item
from ravenvpn.dataplane.contract import Drop
from ravenvpn.dataplane.events import CounterSet

REFUSALS: Final = 3  # refused superpackets in a row after which coalescing is given up

Parts = list[bytes | memoryview]  # of one frame, for writev


class TunWriter:
    """Writes frames to the TUN descriptor `fd`, which belongs to the caller.

    `writev` is os.writev except in tests, which refuse superpackets on their own: no present kernel does.
    """

    def __init__(self, fd: int, counters: CounterSet, writev: Callable[[int, Parts], int] = os.writev) -> None:
        self._fd = fd
        self._counters = counters
        self._writev = writev
        self._refused = 0  # superpackets in a row

    def write(self, coalescer: Coalescer) -> None:
        """Write everything that `coalescer` holds, in order. What the kernel refuses is counted and dropped."""
        for item in coalescer.items:
            parts, count = coalescer.frame(item), len(item.starts)
            error = self._write_frame(parts, count)
            if count > 1:
                if error == errno.EINVAL:
                    for single in coalescer.plain(item):
                        self._count_lost(self._write_frame(single, 1), 1)
                    self._count_refusal(coalescer, item)
                    continue
                self._refused = 0
            self._count_lost(error, count)

    def _write_frame(self, parts: Parts, count: int) -> int:
        """Write one frame of `count` packets; return 0 or the errno."""
        self._counters.tun_writes += 1
        try:
            self._writev(self._fd, parts)
        except OSError as error:
            return error.errno or errno.EIO
        self._counters.tun_tx_packets += count
        return 0

    def _count_lost(self, error: int, count: int) -> None:
        if error:
            self._counters.drops[Drop.TUN_WRITE_FAILED] += count

    def _count_refusal(self, coalescer: Coalescer, item: Item) -> None:
        self._refused += 1
        if self._refused < REFUSALS:
            return
        self._refused = 0
        if coalescer.is_udp(item):
            coalescer.udp = False
            self._counters.count_fallback("tun_gro_udp")
        else:
            coalescer.tcp = False
            self._counters.count_fallback("tun_gro")
