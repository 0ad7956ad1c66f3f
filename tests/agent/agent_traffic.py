"""UDP traffic between pods: for each packet the time sent, the time received, and its source address.

The sockets of the pods belong to the test's process, so both ends share one clock. One thread sends and receives for
all flows.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ravenvpn.lab.host import Pod

PORT = 9000
_SEQUENCE = struct.Struct("!IQ")
LATE = 1.0  # seconds after which a packet counts as lost


@dataclass(slots=True)
class Flow:
    """UDP from one pod to another. Times are of time.monotonic()."""

    sender: Pod
    receiver: Pod
    version: int
    target: tuple[str, int]
    out: socket.socket
    sent: list[float] = field(default_factory=list)
    arrived: dict[int, float] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.sender.name} → {self.receiver.name} (IPv{self.version})"

    def lost(self, begin: float = 0.0, end: float | None = None) -> list[float]:
        """Return the send times of the packets that were lost, of those sent between `begin` and `end`."""
        return [
            at
            for number, at in enumerate(self.sent)
            if at >= begin and (end is None or at < end) and number not in self.arrived
        ]

    def outage(self, begin: float = 0.0, end: float | None = None) -> float:
        """Return the seconds from the first lost packet to the first one after the last lost one."""
        lost = self.lost(begin, end)
        if not lost:
            return 0.0
        return next((at for at in self.sent if at > lost[-1]), lost[-1]) - lost[0]

    @property
    def own_address(self) -> str:
        return str(self.sender.v4 if self.version == 4 else self.sender.v6)


class Traffic:
    """Run all flows between `begin` and `end` of a `with` block, at `rate` packets a second each."""

    def __init__(
        self, pairs: Iterable[tuple[Pod, Pod]], *, rate: float = 100.0, versions: Iterable[int] = (4,)
    ) -> None:
        self._interval = 1.0 / rate
        self._receivers: dict[tuple[str, int], socket.socket] = {}
        self._stop = threading.Event()
        self.flows: list[Flow] = []
        self._paused: set[int] = set()
        for sender, receiver in pairs:
            for version in versions:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                address = str(receiver.v4 if version == 4 else receiver.v6)
                port = PORT + len(self.flows)
                into = receiver.socket(family)
                into.bind((address, port))
                into.setblocking(False)
                self._receivers[address, port] = into
                out = sender.socket(family)
                out.setblocking(False)
                self.flows.append(Flow(sender, receiver, version, (address, port), out))
        self._thread = threading.Thread(target=self._run, name="traffic")

    def flow(self, sender: str, receiver: str) -> Flow:
        return next(f for f in self.flows if f.sender.name == sender and f.receiver.name == receiver)

    def pause(self, flow: Flow) -> None:
        self._paused.add(id(flow))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for sock in (*self._receivers.values(), *(flow.out for flow in self.flows)):
            sock.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for flow in self.flows:
                selector.register(self._receivers[flow.target], selectors.EVENT_READ, flow)
            due = time.monotonic()
            while not self._stop.is_set():
                for flow in self.flows:
                    if id(flow) not in self._paused:
                        self._send(flow)
                due += self._interval
                self._take_in(selector, due)
            self._take_in(selector, time.monotonic() + LATE)

    def _send(self, flow: Flow) -> None:
        now = time.monotonic()
        with contextlib.suppress(OSError):  # no route yet: the packet counts as lost
            flow.out.sendto(_SEQUENCE.pack(len(flow.sent), int(now * 1e9)), flow.target)
        flow.sent.append(now)

    @staticmethod
    def _take_in(selector: selectors.BaseSelector, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                flow: Flow = key.data
                try:
                    data, source = key.fileobj.recvfrom(2048)  # type: ignore[union-attr]
                except OSError:
                    continue
                flow.arrived[_SEQUENCE.unpack_from(data)[0]] = time.monotonic()
                flow.sources.add(source[0])
