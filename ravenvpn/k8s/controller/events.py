"""Turn notices into core/v1 Events without flooding the API server.

The rules are those of client-go's EventCorrelator: a repeated event raises the count of the first one, and one object
gets a burst of events and then one every few minutes. Events that are left out are counted. No clock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ravenvpn import rfc3339
from ravenvpn.k8s.controller.options import CONTROLLER_NAME
from ravenvpn.token_bucket import TokenBucket

# client-go's EventSourceObjectSpamFilter: 25 events of one object at once, then one in five minutes.
BURST = 25
REFILL = 300.0  # seconds for one more
SERIES = (
    600.0  # seconds after its last occurrence for which an equal notice raises the count (client-go: ten minutes)
)
MAX_TRACKED = 4096  # series and rate limits in memory, the least recently used dropped first; client-go's cache size
MAX_MESSAGE = 1024  # bytes; the API server refuses longer messages (core/v1 Event validation)


@dataclass(frozen=True, slots=True)
class EventSubject:
    """The object that an event is about (core/v1 ObjectReference)."""

    kind: str
    name: str  # cluster-scoped objects only; their events are in namespace default
    uid: str
    api_version: str
    resource_version: str = ""  # empty: not of one version of the object


@dataclass(frozen=True, slots=True)
class EventNotice:
    """A fact about an object that an operator should see. Equal notices are one series of events."""

    subject: EventSubject
    reason: str  # one CamelCase word; ActiveEndpointElected and ActiveEndpointLost are OpenYurt's
    message: str
    warning: bool = False  # event type Warning instead of Normal


@dataclass(frozen=True, slots=True)
class EventWrite:
    """A create or a patch of a Kubernetes Event, for the caller to send."""

    name: str
    body: dict[str, Any]  # the whole Event, to create it
    repeated: bool  # it was created before: patching its count and lastTimestamp is enough while it still exists


@dataclass(slots=True)
class _Series:
    name: str  # of the Event
    first: float  # seconds since 1970
    last: float
    count: int


class EventCorrelator:
    """Decides which notices become events. Times are seconds since 1970."""

    def __init__(self, instance: str) -> None:
        """`instance` is the identity of this replica, for `reportingInstance`."""
        self.suppressed = 0  # notices that did not become events
        self._instance = instance
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, ...], TokenBucket] = OrderedDict()

    def correlate(self, notice: EventNotice, now: float) -> EventWrite | None:
        """Return the event to write for this notice; None if its object has had too many events lately."""
        subject = notice.subject
        about = (subject.kind, subject.name, subject.uid)
        if not self._admit(about, now):
            self.suppressed += 1
            return None
        key = (*about, notice.reason, notice.message)
        series = self._series.pop(key, None)
        repeated = series is not None and now - series.last < SERIES
        if series is None or not repeated:
            # As client-go names events: the object's name and a suffix. 200 characters leave room within the 253 of a
            # name; the time makes a later series of the same notice another event.
            hashed = hashlib.sha256("\0".join((*key, repr(now))).encode()).hexdigest()[:16]
            series = _Series(f"{subject.name[:200]}.{hashed}", now, now, 0)
        series.last, series.count = now, series.count + 1
        self._series[key] = series
        if len(self._series) > MAX_TRACKED:
            self._series.popitem(last=False)
        return EventWrite(series.name, self._body(notice, series), repeated)

    def _admit(self, about: tuple[str, ...], now: float) -> bool:
        """Spend one token of the object; False if it has none left. The least recently used bucket is dropped."""
        bucket = self._buckets.pop(about, None) or TokenBucket(1 / REFILL, BURST)
        self._buckets[about] = bucket
        if len(self._buckets) > MAX_TRACKED:
            self._buckets.popitem(last=False)
        return bucket.allow(now)

    def _body(self, notice: EventNotice, series: _Series) -> dict[str, Any]:
        """Return the Event of a series.

        It has the fields of the old API (count, lastTimestamp), which every supported API server and `kubectl
        describe` show.
        """
        subject = notice.subject
        involved = {
            "apiVersion": subject.api_version,
            "kind": subject.kind,
            "name": subject.name,
            "uid": subject.uid,
            "resourceVersion": subject.resource_version,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": "default"},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "reason": notice.reason,
            "message": _truncate(notice.message),
            "type": "Warning" if notice.warning else "Normal",
            "source": {"component": CONTROLLER_NAME},
            "reportingComponent": CONTROLLER_NAME,
            "reportingInstance": self._instance,
            "firstTimestamp": rfc3339.format_time(series.first),
            "lastTimestamp": rfc3339.format_time(series.last),
            "count": series.count,
        }


def _truncate(text: str) -> str:
    """Cut a message at `MAX_MESSAGE` bytes of UTF-8, between two characters."""
    encoded = text.encode()
    return text if len(encoded) <= MAX_MESSAGE else encoded[: MAX_MESSAGE - 3].decode(errors="ignore") + "…"
