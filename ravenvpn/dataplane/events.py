"""What the body tells the tunnel: the queue of events, and the counts behind `counters()`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ravenvpn.dataplane.contract import (
    MAX_DATAGRAMS,
    MAX_WAITING_INITIATIONS,
    Datagram,
    Drop,
    Event,
    InnerPacket,
    Traffic,
)


class Reporter(Protocol):
    """Something that knows facts about one peer."""

    @property
    def arms_timer(self) -> bool: ...

    def report(self) -> Traffic: ...


class Tally:
    """Plain numbers, incremented where things happen. `drops` is indexed by Drop."""

    __slots__ = (
        "drops", "fallbacks", "tun_reads", "tun_rx_packets", "tun_tx_packets", "tun_writes", "udp_reads",
        "udp_rx_datagrams", "udp_tx_datagrams", "udp_writes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.drops = [0] * len(Drop)
        self.fallbacks: dict[str, int] = {}
        self.tun_rx_packets = self.tun_tx_packets = self.udp_rx_datagrams = self.udp_tx_datagrams = 0
        self.tun_reads = self.tun_writes = self.udp_reads = self.udp_writes = 0

    def drop(self, reason: Drop, count: int = 1) -> None:
        self.drops[reason] += count

    def gave_up(self, offload: str) -> None:
        self.fallbacks[offload] = self.fallbacks.get(offload, 0) + 1


class EventQueue:
    """Events in order, and the peers whose traffic changed since the last report.

    `wake` is called for the first event after the queue was taken, never again before the next `take`.
    """

    def __init__(self, tally: Tally) -> None:
        self.wake: Callable[[], None] = _nobody
        self._tally = tally
        self._events: list[Event] = []
        self._initiations: deque[Datagram] = deque()
        self._moved: dict[Reporter, None] = {}
        self._waiting: Final = {Datagram: 0, InnerPacket: 0}
        self._woken = False

    def post(self, event: Event) -> None:
        self._events.append(event)
        self.rouse()

    def post_bounded(self, event: Datagram | InnerPacket) -> None:
        """An event that strangers or peers can cause at will: at most MAX_DATAGRAMS of each kind wait."""
        if isinstance(event, Datagram) and is_initiation_without_mac2(event.data):
            if len(self._initiations) >= MAX_WAITING_INITIATIONS:
                self._tally.drop(Drop.HANDSHAKE_QUEUE_FULL)
                return
            self._initiations.append(event)
            if len(self._initiations) == 1:  # those behind it are no news
                self.rouse()
            return
        if self._waiting[type(event)] >= MAX_DATAGRAMS:
            self._tally.drop(Drop.HANDSHAKE_QUEUE_FULL)
            return
        self._waiting[type(event)] += 1
        self.post(event)

    def moved(self, peer: Reporter) -> None:
        """This peer's facts changed; the tunnel is woken if that can arm a timer it does not know of."""
        self._moved[peer] = None
        if peer.arms_timer:
            self.rouse()

    def forget(self, peer: Reporter) -> None:
        self._moved.pop(peer, None)

    @property
    def waiting_initiations(self) -> int:
        return len(self._initiations)

    def take(self, max_initiations: int) -> list[Event]:
        """See `DataPlane.drain_events`."""
        events = self._events
        events.extend(self._initiations.popleft() for _ in range(min(max_initiations, len(self._initiations))))
        events.extend(peer.report() for peer in self._moved)
        self._events, self._moved = [], {}
        self._waiting[Datagram] = self._waiting[InnerPacket] = 0
        self._woken = False
        return events

    def rouse(self) -> None:
        """Say that events wait, unless that was said already."""
        if not self._woken:
            self._woken = True
            self.wake()

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` from now on, at once if something waits."""
        self.wake = wake
        self._woken = False
        if self._events or self._initiations or self._moved:
            self.rouse()

    def ignore(self) -> None:
        self.wake = _nobody


def is_initiation_without_mac2(data: bytes) -> bool:
    """Whether it is a first initiation, or means to look like one: mac2, the last 16 bytes, is zero (§5.4.4)."""
    return len(data) == 148 and data[0] == 1 and not any(data[-16:])


def _nobody() -> None:
    """Before `start` and after `stop` nobody listens; events wait for `drain_events`."""


def by_drop(drops: Iterable[int]) -> dict[Drop, int]:
    return dict(zip(Drop, drops, strict=True))
