"""What is worth telling of an object, and how it becomes an Event without becoming a storm.

As client-go does it: what was said already is counted on, not said again, and about one object at most a burst of
events and then one every few minutes. What is left out is counted, and said with the next.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ravenvpn import rfc3339

COMPONENT = "raven-vpn-controller"
# client-go's EventSourceObjectSpamFilter: 25 at once, then one in five minutes.
BURST = 25
REFILL = 300.0  # seconds
SERIES = 600.0  # seconds for which the same words are one event
MAX_SERIES = 4096  # remembered at once; client-go's cache has as many
MAX_MESSAGE = 1024  # bytes; the API refuses longer notes


@dataclass(frozen=True, slots=True)
class EventSubject:
    """The object an event is about. Cluster-wide ones have their events in namespace default."""

    kind: str
    name: str
    uid: str
    api_version: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class EventNotice:
    """`reason` is one word in camel case; upstream's are ActiveEndpointElected and ActiveEndpointLost."""

    subject: EventSubject
    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class EventWrite:
    """`body` is the whole Event, to be created; `again` says that its count and time may be patched instead."""

    name: str
    body: dict[str, Any]
    again: bool


@dataclass(slots=True)
class _Series:
    name: str
    first: float
    last: float
    count: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class EventLog:
    """Decides which notices become events. Times are seconds since 1970."""

    def __init__(self, instance: str) -> None:
        self.suppressed = 0
        self._instance = instance
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()

    def take(self, notice: EventNotice, now: float) -> EventWrite | None:
        """The event to write, or None where enough has been said of this object."""
        subject = notice.subject
        about = (subject.kind, subject.name, subject.uid)
        if not self._may_speak(about, now):
            self.suppressed += 1
            return None
        key = (*about, notice.reason, notice.message)
        series = self._series.pop(key, None)
        again = series is not None and now - series.last < SERIES
        if series is None or not again:
            hashed = hashlib.sha256("\0".join((*key, repr(now))).encode()).hexdigest()[:16]
            series = _Series(f"{subject.name[:200]}.{hashed}", now, now, 0)
        series.last, series.count = now, series.count + 1
        self._series[key] = series
        if len(self._series) > MAX_SERIES:
            self._series.popitem(last=False)
        return EventWrite(series.name, self._body(notice, series), again)

    def _may_speak(self, about: tuple[str, ...], now: float) -> bool:
        bucket = self._buckets.pop(about, None) or _Bucket(BURST, now)
        bucket.tokens = min(BURST, bucket.tokens + max(0.0, now - bucket.at) / REFILL)
        bucket.at = now
        self._buckets[about] = bucket
        if len(self._buckets) > MAX_SERIES:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _body(self, notice: EventNotice, series: _Series) -> dict[str, Any]:
        subject = notice.subject
        involved = {
            "apiVersion": subject.api_version,
            "kind": subject.kind,
            "name": subject.name,
            "uid": subject.uid,
            "resourceVersion": subject.version,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": "default"},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "reason": notice.reason,
            "message": _cut(notice.message),
            "type": "Warning" if notice.warning else "Normal",
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
            "firstTimestamp": rfc3339.format_time(series.first),
            "lastTimestamp": rfc3339.format_time(series.last),
            "count": series.count,
        }


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= MAX_MESSAGE else encoded[: MAX_MESSAGE - 3].decode(errors="ignore") + "…"
