"""A long wire: what enters one device leaves the other some time later, both ways, in order.

    python -m ravenvpn.lab.delay INNER OUTER SECONDS      in a namespace that holds two veth ends and nothing else

Kernels without netem have nothing like it. Frames are taken whole from packet(7) sockets, superpackets too: with
PACKET_VNET_HDR each comes with its virtio-net header and goes on with it, so that no offload is lost on the way.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h; Python's socket module lacks them.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 0x0003
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32

BUFFER = 1 << 23  # bytes a socket may hold
ON_THE_WIRE = 1 << 26  # bytes; more is lost, as behind a router whose queue is full
BATCH = 64  # frames from one side before the other gets its turn
LARGEST = 1 << 17  # a superpacket, its virtio-net header and room to spare


class Direction:
    """From one device to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        self.source, self._sink, self._delay = source, sink, delay
        self._frames: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def take(self, now: float) -> None:
        for _ in range(BATCH):
            try:
                frame = self.source.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # one that has no virtio-net header: lost
            if self._bytes + len(frame) <= ON_THE_WIRE:
                self._bytes += len(frame)
                self._frames.append((now + self._delay, frame))

    def give(self, now: float) -> None:
        while self._frames and self._frames[0][0] <= now:
            _, frame = self._frames.popleft()
            self._bytes -= len(frame)
            # The device is down or full: lost, as on any wire.
            with contextlib.suppress(OSError):
                self._sink.send(frame)

    @property
    def due(self) -> float:
        return self._frames[0][0] if self._frames else float("inf")


def tap(device: str) -> socket.socket:
    """Everything that arrives at the device, and a way to send on it."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        made.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    made.bind((device, ETH_P_ALL))
    made.setblocking(False)
    return made


def main(inner: str, outer: str, seconds: str) -> None:
    near, far = tap(inner), tap(outer)
    directions = {near: Direction(near, far, float(seconds)), far: Direction(far, near, float(seconds))}
    print("ready", flush=True)
    while True:
        wait = min(direction.due for direction in directions.values()) - time.monotonic()
        # select(2) sleeps to the microsecond; epoll would round to milliseconds.
        readable, _, _ = select.select(directions, (), (), None if wait == float("inf") else max(0.0, wait))
        now = time.monotonic()
        for source in readable:
            directions[source].take(now)
        for direction in directions.values():
            direction.give(now)


if __name__ == "__main__":
    main(*sys.argv[1:])
