"""What a node learns about one peer by probing it: round trip, loss, role, epoch, and how large a packet may be.

Sans-IO: `due()` says when to ask, `request(now)` gives the packet to send, `receive(packet, now)` takes in what came
and gives the answer, if one is due. A peer that never answers costs its requests and is judged by others' facts.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from ravenvpn.errors import MalformedMessage
from ravenvpn.overhead import outer_size
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
WINDOW: Final = 32  # requests that loss is measured over
LOST_AFTER: Final = 3.0  # seconds without a reply
REPLIES_PER_SECOND: Final = 50  # to one peer, whatever it asks

# RFC 6298 §2: how fast the smoothed round trip follows.
_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4


class Unheard(enum.Enum):
    """What `receive` made of a packet that told it nothing."""

    MALFORMED = "not a probe of ours"
    NOT_THEIRS = "not between this peer's tunnel address and ours"
    STALE = "a reply to no request that waits"
    TOO_MANY = "more requests than are answered"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What is known of the way to a peer and of the peer. Times in seconds, None while unknown."""

    rtt: float | None = None  # smoothed, RFC 6298
    last_rtt: float | None = None
    rtt_variation: float | None = None
    loss: float | None = None  # 0 to 1, over the last requests that were answered or are lost
    answered_at: float | None = None  # when the last reply came
    heard_at: float | None = None  # when the last request or reply came
    asked_since: float | None = None  # when the first request without a reply since then was sent
    unanswered: int = 0  # requests sent since then
    answered_in_row: int = 0  # replies since a request was last lost
    role: int | None = None
    epoch: int | None = None
    verdicts: tuple[ForwardingVerdict, ...] = ()
    largest: int = 0  # bytes of the largest MTU probe that was answered, 0 if none was
    too_large: int = 0  # bytes of the smallest one that was not, 0 if all were


class Prober:
    """One peer. `session` is 32 random bits, `start` the instant of the first request."""

    def __init__(
        self,
        ours: IPv6Address,
        theirs: IPv6Address,
        *,
        session: int,
        start: float,
        interval: float | None = DEFAULT_INTERVAL,
    ) -> None:
        self._ours, self._theirs = ours, theirs
        self._session = session
        self._sequence = 0
        self._interval = interval
        self._next = start
        self._last_asked: float | None = None
        self._waiting: dict[int, tuple[float, int]] = {}  # sequence → when asked, bytes of the packet
        self._results: deque[bool] = deque(maxlen=WINDOW)  # answered or lost
        self._role, self._epoch = 0, 0
        self._verdicts: tuple[ForwardingVerdict, ...] = ()
        self._second, self._replies = 0, 0
        self.facts = PathFacts()
        self.drops = dict.fromkeys(Unheard, 0)

    def announce(self, role: int, epoch: int, verdicts: Sequence[ForwardingVerdict] = ()) -> None:
        """What our requests and replies say about us from now on: u32, u64, at most MAX_VERDICTS."""
        self._role, self._epoch, self._verdicts = role, epoch, tuple(verdicts)

    def set_interval(self, interval: float | None, now: float) -> None:
        """Seconds between requests; None only answers."""
        self._interval = interval
        if interval is not None:
            self._next = now if self._last_asked is None else max(now, self._last_asked + interval)

    def begin_size_search(self) -> None:
        """Forget which sizes passed: the path may have changed."""
        self.facts = replace(self.facts, largest=0, too_large=0)

    def due(self) -> float | None:
        """When to call `request`, or `expire` while a request waits; None if never."""
        losses = min((asked + LOST_AFTER for asked, _ in self._waiting.values()), default=None)
        if self._interval is None:
            return losses
        return self._next if losses is None else min(self._next, losses)

    def asks(self, now: float) -> bool:
        return self._interval is not None and now >= self._next

    def request(self, now: float, size: int = 0) -> bytes:
        """The whole inner packet that asks. With `size` it is an MTU probe of that many bytes, to be sent so that
        the outer packet may not be fragmented; such a probe does not count as loss, moves no schedule and
        carries no verdicts."""
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
            self._last_asked = now
            if self._interval is not None:
                self._next = now + self._interval
            since = self.facts.asked_since if self.facts.asked_since is not None else now
            self.facts = replace(self.facts, asked_since=since, unanswered=self.facts.unanswered + 1)
        self._waiting[self._sequence] = (now, size)
        return wrap(ProbePacket(self._ours, self._theirs, probe.pack(pad_to=size - OVERHEAD_BYTES if size else 0)))

    def expire(self, now: float) -> None:
        """Count as lost what was not answered in time."""
        for sequence, (asked, size) in list(self._waiting.items()):
            if now - asked < LOST_AFTER:
                continue
            del self._waiting[sequence]
            if not size:
                self._settle(answered=False)
            else:
                self.facts = replace(self.facts, too_large=min(size, self.facts.too_large or size))

    def receive(self, packet: bytes, now: float) -> bytes | None:
        """Take in an inner packet that came from this peer; what to send back, if anything. Never raises."""
        self.expire(now)
        try:
            source, destination, payload = unwrap(packet)
            probe = Probe.parse(payload)
        except MalformedMessage:
            self.drops[Unheard.MALFORMED] += 1
            return None
        # The data plane knows which peer sealed it; the addresses must be that peer's and ours.
        if source != self._theirs or destination != self._ours:
            self.drops[Unheard.NOT_THEIRS] += 1
            return None
        if probe.kind is ProbeKind.REQUEST:
            return self._on_request(probe, len(packet), now)
        self._on_reply(probe, now)
        return None

    def _on_request(self, probe: Probe, size: int, now: float) -> bytes | None:
        if int(now) != self._second:
            self._second, self._replies = int(now), 0
        if self._replies >= REPLIES_PER_SECOND:
            self.drops[Unheard.TOO_MANY] += 1
            return None
        self._replies += 1
        padded = size > OVERHEAD_BYTES + len(probe.pack())
        self._heard(probe, now, probe.verdicts if not padded else self.facts.verdicts)
        reply = replace(
            probe,
            kind=ProbeKind.REPLY,
            held_ns=0,
            epoch=self._epoch,
            role=self._role,
            verdicts=self._verdicts,
            size=size if padded else 0,
        )
        return wrap(ProbePacket(self._ours, self._theirs, reply.pack()))

    def _on_reply(self, probe: Probe, now: float) -> None:
        waiting = self._waiting.get(probe.sequence)
        if waiting is None or probe.session != self._session or probe.sent_ns != int(waiting[0] * 1e9):
            self.drops[Unheard.STALE] += 1
            return
        asked, size = self._waiting.pop(probe.sequence)
        self._heard(probe, now, probe.verdicts)
        if size:
            # The size it had on arrival, so that a relay that splits and joins would not fool us.
            self.facts = replace(self.facts, answered_at=now, largest=max(self.facts.largest, min(size, probe.size)))
            return
        self._settle(answered=True)
        rtt = max(0.0, now - asked - min(probe.held_ns / 1e9, now - asked))
        smoothed, variation = self.facts.rtt, self.facts.rtt_variation
        if smoothed is None or variation is None:
            smoothed, variation = rtt, rtt / 2
        else:
            variation += _BETA * (abs(smoothed - rtt) - variation)
            smoothed += _ALPHA * (rtt - smoothed)
        self.facts = replace(self.facts, rtt=smoothed, last_rtt=rtt, rtt_variation=variation, answered_at=now)

    def _heard(self, probe: Probe, now: float, verdicts: tuple[ForwardingVerdict, ...]) -> None:
        self.facts = replace(self.facts, heard_at=now, role=probe.role, epoch=probe.epoch, verdicts=verdicts)

    def _settle(self, *, answered: bool) -> None:
        self._results.append(answered)
        facts = replace(self.facts, loss=self._results.count(False) / len(self._results))
        if answered:
            self.facts = replace(facts, asked_since=None, unanswered=0, answered_in_row=facts.answered_in_row + 1)
        else:
            self.facts = replace(facts, answered_in_row=0)


def idle_bytes_per_day(interval: float, outer_family: int = 4) -> int:
    """What one probing end costs on the outer network: its requests and their replies, all headers included."""
    return round(86400 / interval * 2 * outer_size(OVERHEAD_BYTES + HEADER_BYTES, outer_family))
