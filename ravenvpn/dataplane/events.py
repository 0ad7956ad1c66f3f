"""The event queue from a body to the tunnel, and the running counters behind `DataPlane.counters()`."""

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


class TrafficSource(Protocol):
    """A peer, as far as the event queue needs it."""

    @property
    def arms_timer(self) -> bool:
        """Return True if the next report can arm a timer that the last report did not arm."""

    def report(self) -> Traffic:
        """Return the peer's times, which count as reported from now on."""


class CounterSet:
    """The counters of one body: plain integers, incremented where packets are handled.

    Names and meaning are those of `contract.Counters`; `drops` is indexed by the value of Drop.
    """

    __slots__ = (
        "drops", "fallbacks", "tun_reads", "tun_rx_packets", "tun_tx_packets", "tun_writes", "udp_reads",
        "udp_rx_datagrams", "udp_tx_datagrams", "udp_writes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.drops = [0] * len(Drop)
        self.fallbacks: dict[str, int] = {}
        self.tun_rx_packets = self.tun_tx_packets = self.udp_rx_datagrams = self.udp_tx_datagrams = 0
        self.tun_reads = self.tun_writes = self.udp_reads = self.udp_writes = 0

    def count_drop(self, reason: Drop, count: int = 1) -> None:
        """Count `count` packets dropped for this reason."""
        self.drops[reason] += count

    def count_fallback(self, offload: str) -> None:
        """Record that the kernel refused an offload, which stays off from now on.

        `offload` is its name in Offloads.
        """
        self.fallbacks[offload] = self.fallbacks.get(offload, 0) + 1


class EventQueue:
    """Events in order, initiations without mac2 apart, and the peers whose times changed since the last report.

    Invariant: the listener is called once for the first event after `drain` or `set_listener`, and not again before
    the next of them. It runs inside the pump, so it must only schedule work.
    """

    def __init__(self, counters: CounterSet) -> None:
        self._listener: Callable[[], None] = _no_listener
        self._counters = counters
        self._events: list[Event] = []
        self._initiations: deque[Datagram] = deque()
        self._changed: dict[TrafficSource, None] = {}  # an ordered set
        self._waiting: Final = {Datagram: 0, InnerPacket: 0}  # of those in `_events`
        self._woken = False  # the listener was called and nothing was drained since

    def post(self, event: Event) -> None:
        """Append an event that happens rarely: no limit applies."""
        self._events.append(event)
        self.wake_once()

    def post_bounded(self, event: Datagram | InnerPacket) -> None:
        """Append an event that strangers or peers can cause at will; count it as dropped if its queue is full.

        At most MAX_DATAGRAMS of each kind wait, and MAX_WAITING_INITIATIONS initiations without mac2.
        """
        if isinstance(event, Datagram) and is_initiation_without_mac2(event.data):
            if len(self._initiations) >= MAX_WAITING_INITIATIONS:
                self._counters.count_drop(Drop.HANDSHAKE_QUEUE_FULL)
                return
            self._initiations.append(event)
            if len(self._initiations) == 1:  # the tunnel polls for the rest as it has room
                self.wake_once()
            return
        if self._waiting[type(event)] >= MAX_DATAGRAMS:
            self._counters.count_drop(Drop.HANDSHAKE_QUEUE_FULL)
            return
        self._waiting[type(event)] += 1
        self.post(event)

    def mark_changed(self, peer: TrafficSource) -> None:
        """Report this peer's times with the next `drain`; wake the listener if they can arm a timer."""
        self._changed[peer] = None
        if peer.arms_timer:
            self.wake_once()

    def discard(self, peer: TrafficSource) -> None:
        """Report nothing of this peer any more, which is being removed."""
        self._changed.pop(peer, None)

    @property
    def waiting_initiations(self) -> int:
        """The number of initiations without mac2 in their queue."""
        return len(self._initiations)

    def drain(self, max_initiations: int) -> list[Event]:
        """Return and remove the events; see `DataPlane.drain_events`."""
        events = self._events
        events.extend(self._initiations.popleft() for _ in range(min(max_initiations, len(self._initiations))))
        events.extend(peer.report() for peer in self._changed)
        self._events, self._changed = [], {}
        self._waiting[Datagram] = self._waiting[InnerPacket] = 0
        self._woken = False
        return events

    def wake_once(self) -> None:
        """Call the listener, unless it was called since the last `drain`."""
        if not self._woken:
            self._woken = True
            self._listener()

    def set_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` when events wait, at once if some do already."""
        self._listener = listener
        self._woken = False
        if self._events or self._initiations or self._changed:
            self.wake_once()

    def clear_listener(self) -> None:
        """Keep events in the queue from now on without calling anybody."""
        self._listener = _no_listener


def is_initiation_without_mac2(data: bytes) -> bool:
    """Return True for 148 bytes of type 1 whose mac2, the last 16 bytes, is zero (whitepaper §5.4.4).

    A first initiation has none; neither has anything that a flood from spoofed sources can send, because mac2 needs a
    cookie, and cookies are sent to the source address.
    """
    return len(data) == 148 and data[0] == 1 and not any(data[-16:])


def _no_listener() -> None:
    """Before `start` and after `stop` events wait for `drain_events`."""


def by_drop(drops: Iterable[int]) -> dict[Drop, int]:
    """Return drop counts by reason, given one count for each member of Drop in order."""
    return dict(zip(Drop, drops, strict=True))
