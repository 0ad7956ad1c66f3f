"""Which part of this node's own Peer to write next, and when. Pure: `now` is seconds of a clock that goes forward.

The Peer without its status is written when its content changes, and again when the API shows it changed or deleted.
The status is for people: it is written at once when a condition changes, and at most every five minutes otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, auto

from ravenvpn.k8s import crd
from ravenvpn.k8s.resource import Object
from ravenvpn.mesh.model import PeerObject

# Seconds. A thousand agents that write every five minutes are three writes a second for the API server.
STATUS_INTERVAL = 300.0  # between writes of a status in which only numbers or messages differ
FLAP_INTERVAL = 10.0  # between any two writes of the status
UNSEEN = 30.0  # after which a Peer that was written, and that no watch has shown since, is written again


@dataclass(frozen=True, slots=True)
class PeerContent:
    """Labels and spec of our Peer."""

    peer: PeerObject
    region: str  # "" if the node is in none
    role: str  # plain, gateway or none: "none" in no region

    def document(self) -> Object:
        """Return the Peer as an object of the API, without status."""
        return crd.write_peer(self.peer, self.region, self.role)


@dataclass(frozen=True, slots=True)
class PeerStatusCondition:
    """A condition in the status (Kubernetes API conventions, "Typical status properties")."""

    type: str  # in CamelCase
    holds: bool
    reason: str  # one word in CamelCase
    message: str = ""  # for people


@dataclass(frozen=True, slots=True)
class PeerStatusReport:
    """The status of our Peer."""

    version: str  # of ravenvpn
    dataplane: str  # native or pure
    sessions_wanted: int  # tunnel sessions that the plan asks for
    sessions_up: int  # those that are established
    conditions: tuple[PeerStatusCondition, ...] = ()

    @property
    def verdicts(self) -> tuple[tuple[str, bool], ...]:
        """Type and value of each condition: a change here is urgent."""
        return tuple((condition.type, condition.holds) for condition in self.conditions)


class PeerPart(Enum):
    """Part of the Peer that is written next."""

    NOTHING = auto()
    PEER = auto()  # labels and spec
    STATUS = auto()


class PeerOutbox:
    """Outbox of one node: set the content, ask `next_write`, write it, report the result."""

    def __init__(self) -> None:
        self._content: PeerContent | None = None  # None: there is nothing to write yet
        self._written: PeerContent | None = None  # None: there is no such Peer, as far as known
        self._written_at = 0.0
        self._confirmed = False  # the API has shown the Peer as it was written
        self._status: PeerStatusReport | None = None
        self._written_status: PeerStatusReport | None = None
        self._status_written_at: float | None = None  # None: never

    @property
    def content(self) -> PeerContent | None:
        """The content to write, or that was written; None for a node that was never in a region."""
        return self._content

    @property
    def status(self) -> PeerStatusReport | None:
        """The status to write, or that was written."""
        return self._status

    @property
    def is_published(self) -> bool:
        """Whether the content was written and not changed or deleted since."""
        return self._content is not None and self._written == self._content

    def set_content(self, content: PeerContent) -> None:
        """Replace labels and spec. A node in no region gets a Peer only if it was in a region before."""
        if content.role == "none" and self._content is None and self._written is None:
            return
        self._content = content

    def set_status(self, status: PeerStatusReport) -> None:
        """Replace the status."""
        self._status = status

    def observe(self, peer: PeerObject | None) -> None:
        """Compare with our Peer in the API, None if there is none, as the last watch event shows it.

        A Peer that differs before the watch has confirmed our write is an older version, and is ignored.
        """
        if self._written is None:
            return
        if peer is not None and dataclasses.replace(peer, created=None) == self._written.peer:
            self._confirmed = True
        elif self._confirmed and self._written.role != "none":
            self.peer_deleted()

    def next_write(self, now: float) -> tuple[PeerPart, float]:
        """Return what to write next, and in how many seconds (infinity: not until something changes)."""
        if self._content is None:
            return PeerPart.NOTHING, float("inf")
        if self._written != self._content:
            return PeerPart.PEER, 0.0
        waits = []
        if not self._confirmed and self._content.role != "none":  # no selector of ours shows a Peer of role none
            waits.append((self._written_at + UNSEEN - now, PeerPart.PEER))
        if self._status is not None and self._status != self._written_status:
            since = -float("inf") if self._status_written_at is None else self._status_written_at
            urgent = self._written_status is None or self._status.verdicts != self._written_status.verdicts
            waits.append((since + (FLAP_INTERVAL if urgent else STATUS_INTERVAL) - now, PeerPart.STATUS))
        if not waits:
            return PeerPart.NOTHING, float("inf")
        wait, part = min(waits, key=lambda due: due[0])
        return part, max(0.0, wait)

    def peer_written(self, content: PeerContent, now: float) -> None:
        """The API server accepted labels and spec."""
        if self._written is None:
            self._written_status = None  # a new object has no status
        self._written, self._written_at, self._confirmed = content, now, False

    def status_written(self, status: PeerStatusReport, now: float) -> None:
        """The API server accepted the status."""
        self._written_status, self._status_written_at = status, now

    def peer_deleted(self) -> None:
        """The API server has no such Peer, or not with our content: write it again."""
        self._written, self._confirmed = None, False
