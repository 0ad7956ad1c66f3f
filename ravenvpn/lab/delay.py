"""Delay line: a frame that enters one device leaves the other one a fixed time later; both directions, in order.

    python -m ravenvpn.lab.delay INNER OUTER SECONDS      in a namespace with two veth ends and nothing else

The kernel's netem does the same, but not every kernel has it. Frames are read from packet(7) sockets. With
PACKET_VNET_HDR a superpacket is read in one piece with its virtio-net header and is written with that header, so
segmentation and checksum offload work across the line.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h; Python's socket module does not have them.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 0x0003
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32

SOCKET_BUFFER = 1 << 23  # bytes, in each direction of a socket
MAX_IN_FLIGHT = 1 << 26  # bytes in a direction; further frames are dropped, as by a router whose queue is full
BATCH = 64  # frames read from one device before the other one is served
LARGEST_FRAME = 1 << 17  # bytes: more than a superpacket of 64 KB with its virtio-net header


class Direction:
    """One direction of the line, with the frames that are in flight."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        """Prepare the direction from `source` to `sink`, `delay` in seconds."""
        self.source, self._sink, self._delay = source, sink, delay
        self._frames: deque[tuple[float, bytes]] = deque()  # time to send (CLOCK_MONOTONIC), frame
        self._bytes = 0  # sum of the lengths in `_frames`

    def receive(self, now: float) -> None:
        """Read the frames that have arrived, at most BATCH, and queue them for `now` plus the delay."""
        for _ in range(BATCH):
            try:
                frame = self.source.recv(LARGEST_FRAME)
            except BlockingIOError:
                return
            except OSError:
                continue  # the kernel cannot describe this frame in a virtio-net header (EINVAL): dropped
            if self._bytes + len(frame) <= MAX_IN_FLIGHT:
                self._bytes += len(frame)
                self._frames.append((now + self._delay, frame))

    def transmit(self, now: float) -> None:
        """Send the frames that are due."""
        while self._frames and self._frames[0][0] <= now:
            _, frame = self._frames.popleft()
            self._bytes -= len(frame)
            # The device is down or its queue is full: the frame is dropped, as on any link.
            with contextlib.suppress(OSError):
                self._sink.send(frame)

    @property
    def due(self) -> float:
        """Time at which the next frame is to be sent (CLOCK_MONOTONIC); infinity if none is in flight."""
        return self._frames[0][0] if self._frames else float("inf")


def open_packet_socket(device: str) -> socket.socket:
    """Return a non-blocking packet(7) socket that receives every frame from `device` and sends frames on it."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)  # without it, frames sent here would be received here
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        packets.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    packets.bind((device, ETH_P_ALL))
    packets.setblocking(False)
    return packets


def main(inner: str, outer: str, seconds: str) -> None:
    """Carry frames between two devices until killed. Prints "ready" once both sockets are open."""
    near, far = open_packet_socket(inner), open_packet_socket(outer)
    directions = {near: Direction(near, far, float(seconds)), far: Direction(far, near, float(seconds))}
    print("ready", flush=True)
    while True:
        wait = min(direction.due for direction in directions.values()) - time.monotonic()
        # select(2) has a timeout in microseconds; epoll_wait(2) rounds to milliseconds.
        readable, _, _ = select.select(directions, (), (), None if wait == float("inf") else max(0.0, wait))
        now = time.monotonic()
        for source in readable:
            directions[source].receive(now)
        for direction in directions.values():
            direction.transmit(now)


if __name__ == "__main__":
    main(*sys.argv[1:])
