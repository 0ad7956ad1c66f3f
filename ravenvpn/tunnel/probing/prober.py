"""Prober of one peer: measures round trip and loss, learns its role, epoch and verdicts, and which packet sizes pass.

Sans-I/O: `next_deadline` returns when to send, `request` returns the packet to send, `receive` processes a packet and
returns the reply, if there is one. The frame is in docs/protocol.md §2.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.probing.frame import (
    HEADER_BYTES,
    MAX_PACKET_BYTES,
    OVERHEAD_BYTES,
    ForwardingVerdict,
    Probe,
    ProbeKind,
    ProbePacket,
    unwrap,
    wrap,
)

DEFAULT_INTERVAL: Final = 5.0  # seconds
LOSS_WINDOW: Final = 32  # requests that loss is measured over
LOST_AFTER: Final = 3.0  # seconds without a reply
REPLIES_PER_SECOND: Final = 50  # to one peer; bounds what its requests can make us send

# RFC 6298 §2: weights of a new sample in the smoothed round trip and in its variation.
_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4


class ProbeDrop(enum.Enum):
    """Why a packet to the probe port was dropped. One counter each."""

    MALFORMED = "not a probe frame"
    WRONG_ADDRESS = "not between this peer's tunnel address and ours"
    STALE = "a reply to no request that waits"
    RATE_LIMITED = "more requests than are answered"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """Facts about a peer and the path to it. Times and instants in seconds, None while unknown."""

    rtt: float | None = None  # smoothed (RFC 6298)
    rtt_variation: float | None = None
    loss: float | None = None  # 0 to 1, of the last LOSS_WINDOW requests that were answered or lost
    answered_at: float | None = None  # when the last reply arrived
    asked_since: float | None = None  # when the first request without a reply since then was sent
    unanswered: int = 0  # requests sent since then
    answered_in_row: int = 0  # replies since a request was last lost
    role: int | None = None  # announced by the peer, as all below
    epoch: int | None = None
    verdicts: tuple[ForwardingVerdict, ...] = ()
    # For path-MTU search; no reader yet.
    largest: int = 0  # bytes of the largest MTU probe that was answered, 0 if none was
    too_large: int = 0  # bytes of the smallest one that was lost, 0 if none was


class Prober:
    """Probes one peer and answers its probes. Instants are seconds on one clock."""

    def __init__(
        self,
        own_address: IPv6Address,
        peer_address: IPv6Address,
        *,
        session: int,
        start: float,
        interval: float | None = DEFAULT_INTERVAL,
    ) -> None:
        """`session` is 32 random bits, `start` the instant of the first request, `interval` the seconds between
        requests (None: only answer)."""
        self._own_address, self._peer_address = own_address, peer_address
        self._session = session
        self._sequence = 0
        self._interval = interval
        self._next_request = start
        self._last_request: float | None = None
        self._waiting: dict[int, tuple[float, int]] = {}  # sequence → when sent, size of an MTU probe or 0
        self._results: deque[bool] = deque(maxlen=LOSS_WINDOW)  # answered (True) or lost
        self._role, self._epoch = 0, 0
        self._verdicts: tuple[ForwardingVerdict, ...] = ()
        self._reply_second, self._replies = 0, 0  # replies sent within this second of the clock
        self.facts = PathFacts()
        self.drops = dict.fromkeys(ProbeDrop, 0)

    def announce(self, role: int, epoch: int, verdicts: Sequence[ForwardingVerdict] = ()) -> None:
        """Set what our requests and replies carry about this node: role (u32), epoch (u64; a counter of the active
        endpoint, no reader yet), at most MAX_VERDICTS verdicts."""
        self._role, self._epoch, self._verdicts = role, epoch, tuple(verdicts)

    def set_interval(self, interval: float | None, now: float) -> None:
        """Set the seconds between requests, counted from the last one; None stops sending and only answers."""
        self._interval = interval
        if interval is not None:
            self._next_request = now if self._last_request is None else max(now, self._last_request + interval)

    def begin_size_search(self) -> None:
        """Reset which sizes passed: the path may have changed. For path-MTU search; no caller yet."""
        self.facts = replace(self.facts, largest=0, too_large=0)

    def next_deadline(self) -> float | None:
        """Return when to call `request`, or `expire` while a request waits for its reply; None if neither is due."""
        loss_at = min((sent + LOST_AFTER for sent, _ in self._waiting.values()), default=None)
        if self._interval is None:
            return loss_at
        return self._next_request if loss_at is None else min(self._next_request, loss_at)

    def request_is_due(self, now: float) -> bool:
        """Return whether it is time for the next request."""
        return self._interval is not None and now >= self._next_request

    def request(self, now: float, size: int = 0) -> bytes:
        """Return the whole inner packet of a new request.

        With `size` it is an MTU probe of that many bytes, to be sent with DF set outside. An MTU probe does not count
        as loss, does not move the schedule and carries no verdicts. ValueError if no probe can have that size.
        """
        self.expire(now)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        probe = Probe(
            ProbeKind.REQUEST,
            self._sequence,
            self._session,
            int(now * 1e9),
            epoch=self._epoch,
            role=self._role,
            verdicts=self._verdicts,
        )
        if size:
            if not OVERHEAD_BYTES + HEADER_BYTES <= size <= MAX_PACKET_BYTES:
                raise ValueError(f"no probe has {size} bytes")
            probe = replace(probe, verdicts=())
        else:
            self._last_request = now
            if self._interval is not None:
                self._next_request = now + self._interval
            since = self.facts.asked_since if self.facts.asked_since is not None else now
            self.facts = replace(self.facts, asked_since=since, unanswered=self.facts.unanswered + 1)
        self._waiting[self._sequence] = (now, size)
        payload = probe.pack(pad_to=size - OVERHEAD_BYTES if size else 0)
        return wrap(ProbePacket(self._own_address, self._peer_address, payload))

    def expire(self, now: float) -> None:
        """Count requests without a reply for LOST_AFTER seconds as lost."""
        for sequence, (sent, size) in list(self._waiting.items()):
            if now - sent < LOST_AFTER:
                continue
            del self._waiting[sequence]
            if not size:
                self._record_result(answered=False)
            else:
                self.facts = replace(self.facts, too_large=min(size, self.facts.too_large or size))

    def receive(self, packet: bytes, now: float) -> bytes | None:
        """Process an inner packet that came from this peer; return the reply to send, if there is one. Never
        raises."""
        self.expire(now)
        try:
            source, destination, payload = unwrap(packet)
            probe = Probe.parse(payload)
        except MalformedMessage:
            self.drops[ProbeDrop.MALFORMED] += 1
            return None
        # The session proves which peer sent it; the inner addresses must be that peer's and ours.
        if source != self._peer_address or destination != self._own_address:
            self.drops[ProbeDrop.WRONG_ADDRESS] += 1
            return None
        if probe.kind is ProbeKind.REQUEST:
            return self._on_request(probe, len(packet), now)
        self._on_reply(probe, now)
        return None

    def _on_request(self, probe: Probe, size: int, now: float) -> bytes | None:
        if int(now) != self._reply_second:
            self._reply_second, self._replies = int(now), 0
        if self._replies >= REPLIES_PER_SECOND:
            self.drops[ProbeDrop.RATE_LIMITED] += 1
            return None
        self._replies += 1
        padded = size > OVERHEAD_BYTES + len(probe.pack())  # an MTU probe, which carries no verdicts
        self._apply_announcement(probe, probe.verdicts if not padded else self.facts.verdicts)
        reply = replace(
            probe,
            kind=ProbeKind.REPLY,
            held_ns=0,
            epoch=self._epoch,
            role=self._role,
            verdicts=self._verdicts,
            size=size if padded else 0,
        )
        return wrap(ProbePacket(self._own_address, self._peer_address, reply.pack()))

    def _on_reply(self, probe: Probe, now: float) -> None:
        waiting = self._waiting.get(probe.sequence)
        if waiting is None or probe.session != self._session or probe.sent_ns != int(waiting[0] * 1e9):
            self.drops[ProbeDrop.STALE] += 1
            return
        sent, size = self._waiting.pop(probe.sequence)
        self._apply_announcement(probe, probe.verdicts)
        if size:
            # The size on arrival counts: a relay that splits and joins packets would make the size sent look
            # possible.
            self.facts = replace(self.facts, answered_at=now, largest=max(self.facts.largest, min(size, probe.size)))
            return
        self._record_result(answered=True)
        rtt = max(0.0, now - sent - min(probe.held_ns / 1e9, now - sent))
        smoothed, variation = self.facts.rtt, self.facts.rtt_variation
        if smoothed is None or variation is None:
            smoothed, variation = rtt, rtt / 2
        else:
            variation += _BETA * (abs(smoothed - rtt) - variation)
            smoothed += _ALPHA * (rtt - smoothed)
        self.facts = replace(self.facts, rtt=smoothed, rtt_variation=variation, answered_at=now)

    def _apply_announcement(self, probe: Probe, verdicts: tuple[ForwardingVerdict, ...]) -> None:
        self.facts = replace(self.facts, role=probe.role, epoch=probe.epoch, verdicts=verdicts)

    def _record_result(self, *, answered: bool) -> None:
        self._results.append(answered)
        facts = replace(self.facts, loss=self._results.count(False) / len(self._results))
        if answered:
            self.facts = replace(facts, asked_since=None, unanswered=0, answered_in_row=facts.answered_in_row + 1)
        else:
            self.facts = replace(facts, answered_in_row=0)
