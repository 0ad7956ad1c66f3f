"""Work that is due for the peers of a device: deadlines, initiations to send, and session events to report."""

from __future__ import annotations

from collections import deque

from ravenvpn.dataplane.contract import InnerPacket, PeerId
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.peer import Peer
from ravenvpn.tunnel.session_events import MAX_DEVICE_EVENTS, DeviceEvent, SessionLost, SessionUp


class PeerSchedule:
    """The work that the peers leave for later.

    `PeerTable.change` calls `commit` after every change of a peer. Invariants: while `up` is False nothing is
    scheduled and no initiation is queued; while it is True no peer is scheduled later than its timers say.
    """

    def __init__(self) -> None:
        self._up = False
        self._deadlines = Deadlines()
        self._initiations: dict[PeerId, None] = {}  # peers to initiate to, in order: a dict as an ordered set
        self._events: deque[DeviceEvent] = deque(maxlen=MAX_DEVICE_EVENTS)

    @property
    def up(self) -> bool:
        """Whether the interface is up."""
        return self._up

    def set_up(self, up: bool) -> None:
        """Set whether the interface is up. Down cancels every deadline and initiation; up schedules none by
        itself."""
        self._up = up
        if not up:
            self._deadlines.clear()
            self._initiations.clear()

    def commit(self, peer: Peer) -> None:
        """Record a SessionUp or SessionLost if the peer's session came or went, and schedule its next deadline."""
        if peer.has_session != peer.session_reported:
            peer.session_reported = peer.has_session
            name = peer.settings.name
            self._events.append(
                SessionUp(name, peer.endpoints.confirmed) if peer.has_session else SessionLost(name, peer.failure)
            )
        # A deadline that moved later stays where it is: the peer is then looked at once too early (`deadlines`).
        due = peer.timers.next_deadline()
        if due is not None and self._up:
            self._deadlines.schedule(peer.id, due)

    def cancel(self, peer: PeerId) -> None:
        """Remove the deadline and the queued initiation of a peer that is removed."""
        self._deadlines.cancel(peer)
        self._initiations.pop(peer, None)

    def queue_initiation(self, peer: PeerId) -> None:
        """Have an initiation sent to this peer with the next work; once, however often it is queued."""
        if self._up:
            self._initiations[peer] = None

    def pop_initiation(self) -> PeerId:
        """Remove and return the peer whose initiation has waited longest. StopIteration if none waits."""
        peer = next(iter(self._initiations))
        del self._initiations[peer]
        return peer

    @property
    def waiting_initiations(self) -> int:
        """Number of peers that an initiation is to be sent to."""
        return len(self._initiations)

    def next_due(self) -> float | None:
        """Return the earliest deadline of any peer in seconds, None if there is none."""
        return self._deadlines.next_due()

    def pop_due(self, now: float) -> list[PeerId]:
        """Remove and return the peers whose deadline is not after `now`. Change each: that schedules it again."""
        return self._deadlines.pop_due(now)

    def add_inner_packet(self, packet: InnerPacket) -> None:
        """Queue an inner packet to the probe port for `drain_events`."""
        self._events.append(packet)

    def drain_events(self) -> list[DeviceEvent]:
        """Return and remove the events since the last call, in order; the oldest of too many were dropped."""
        events = list(self._events)
        self._events.clear()
        return events
