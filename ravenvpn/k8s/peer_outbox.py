"""When an agent writes its own Peer, and what. Pure: `now` is seconds of a clock that only goes forward.

What a Peer says is written when it differs from what was written, and again when it is seen to be another or gone.
Its status is for people: it is written at once when the node becomes ready or ceases to be, and else now and then.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, auto

from ravenvpn.k8s import crd
from ravenvpn.k8s.resource import Object
from ravenvpn.mesh.model import PeerObject

# Seconds.
STATUS_INTERVAL = 300.0  # between writes of a status that differs in numbers alone
FLAP_INTERVAL = 10.0  # between any two writes of the status
UNSEEN = 30.0  # after which what was written, and nobody has shown us, is written again


@dataclass(frozen=True, slots=True)
class PeerContent:
    """What is to stand in our Peer, its two labels included. Role "none": in no region."""

    peer: PeerObject
    region: str
    role: str

    def document(self) -> Object:
        return crd.write_peer(self.peer, self.region, self.role)


@dataclass(frozen=True, slots=True)
class PeerStatusCondition:
    type: str
    holds: bool
    reason: str  # one word
    message: str = ""


@dataclass(frozen=True, slots=True)
class PeerStatusReport:
    """The status of our Peer."""

    version: str
    dataplane: str
    wanted: int  # sessions
    up: int
    conditions: tuple[PeerStatusCondition, ...] = ()

    @property
    def verdicts(self) -> tuple[tuple[str, bool], ...]:
        return tuple((condition.type, condition.holds) for condition in self.conditions)


class PeerPart(Enum):
    NOTHING = auto()
    PEER = auto()
    STATUS = auto()


class PeerOutbox:
    """Of one node. Ask `next`, write, and tell what came of it."""

    def __init__(self) -> None:
        self._wanted: PeerContent | None = None
        self._written: PeerContent | None = None
        self._written_at = 0.0
        self._shown = False  # whether the API has shown us what was written
        self._report: PeerStatusReport | None = None
        self._reported: PeerStatusReport | None = None
        self._reported_at: float | None = None

    @property
    def wanted(self) -> PeerContent | None:
        return self._wanted

    @property
    def report(self) -> PeerStatusReport | None:
        return self._report

    @property
    def is_written(self) -> bool:
        return self._wanted is not None and self._written == self._wanted

    def want(self, announcement: PeerContent) -> None:
        # A node that is in no region needs no Peer; one that was in a region says so.
        if announcement.role == "none" and self._wanted is None and self._written is None:
            return
        self._wanted = announcement

    def describe(self, report: PeerStatusReport) -> None:
        self._report = report

    def saw(self, peer: PeerObject | None) -> None:
        """Our Peer as the API has it; None: there is none."""
        if self._written is None:
            return
        if peer is not None and dataclasses.replace(peer, created=None) == self._written.peer:
            self._shown = True
        elif self._shown and self._written.role != "none":
            self._forget()

    def next(self, now: float) -> tuple[PeerPart, float]:
        """What to write, in how many seconds."""
        if self._wanted is None:
            return PeerPart.NOTHING, float("inf")
        if self._written != self._wanted:
            return PeerPart.PEER, 0.0
        waits = []
        if not self._shown and self._wanted.role != "none":
            waits.append((self._written_at + UNSEEN - now, PeerPart.PEER))
        if self._report is not None and self._report != self._reported:
            since = -float("inf") if self._reported_at is None else self._reported_at
            urgent = self._reported is None or self._report.verdicts != self._reported.verdicts
            waits.append((since + (FLAP_INTERVAL if urgent else STATUS_INTERVAL) - now, PeerPart.STATUS))
        if not waits:
            return PeerPart.NOTHING, float("inf")
        wait, part = min(waits, key=lambda due: due[0])
        return part, max(0.0, wait)

    def wrote_peer(self, announcement: PeerContent, now: float) -> None:
        if self._written is None:
            self._reported = None  # a new object has no status
        self._written, self._written_at, self._shown = announcement, now, False

    def wrote_status(self, report: PeerStatusReport, now: float) -> None:
        self._reported, self._reported_at = report, now

    def is_gone(self) -> None:
        """The API server knows no such Peer."""
        self._forget()

    def _forget(self) -> None:
        self._written, self._shown = None, False
