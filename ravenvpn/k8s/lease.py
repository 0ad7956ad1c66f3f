"""Who of several replicas leads: one Lease of coordination.k8s.io, kept as client-go's leader election keeps it.

`Candidacy` decides and reads no clock; `Election` talks to the API server. Two things are stricter than in client-go.
A leader's right to write ends `renew` seconds after the *request* of its last renewal that succeeded, before anybody
else may take the Lease, and each write gets no more time than is left until then: nothing that is still on its way
when the Lease can be lost belongs to a former leader. And a leader that lost it does not end: it stands again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from ravenvpn.errors import ClusterError
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.lease_timing import DEFAULT_TIMING, JITTER, MARGIN, LeaseTiming
from ravenvpn.k8s.resource import LEASES, ApiError
from ravenvpn.rfc3339 import format_micro_time

log = logging.getLogger(__name__)

RELEASED_DURATION = 1  # seconds; what client-go leaves in a Lease it gives up


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The Lease as the API server holds it. `version` is its resourceVersion, "" where there is none."""

    holder: str = ""
    duration: float = 0.0
    acquired: str = ""
    renewed: str = ""
    transitions: int = 0
    version: str = ""


class Candidacy:
    """One replica's view of the Lease. `now` is seconds of a clock that nobody sets; `wall` is the time to write."""

    def __init__(self, identity: str, timing: LeaseTiming = DEFAULT_TIMING) -> None:
        self.identity, self.timing = identity, timing
        self._seen: LeaseRecord | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None  # when the request of the last good renewal was made

    @property
    def holder(self) -> str:
        """Who held it when it was last seen; "" where nobody did or nothing is known."""
        return self._seen.holder if self._seen else ""

    @property
    def transitions(self) -> int:
        return self._seen.transitions if self._seen else 0

    def observe(self, record: LeaseRecord, now: float) -> None:
        """What the API server holds. Its times are of another's clock: what counts is when a change was seen here."""
        if record != self._seen:
            self._seen, self._seen_at = record, now
        if record.holder != self.identity:
            self._renewed_at = None

    def claim(self, now: float, wall: str) -> LeaseRecord | None:
        """The Lease to write now, to take it or to keep it; None where another holds it. Call after `observe`."""
        seen = self._seen
        assert seen is not None
        wanted = replace(seen, holder=self.identity, duration=self.timing.duration, renewed=wall)
        if seen.holder == self.identity:
            return wanted
        if seen.holder and now < self._seen_at + seen.duration:
            return None
        return replace(wanted, acquired=wall, transitions=seen.transitions + bool(seen.version))

    def written(self, record: LeaseRecord, asked_at: float, now: float) -> None:
        """The API server took our claim, which was sent at `asked_at`."""
        self._seen, self._seen_at = record, now
        self._renewed_at = asked_at

    def budget(self, now: float) -> float:
        """Seconds that a write begun now may take; 0 where we may not write at all."""
        if self._renewed_at is None or now >= self._renewed_at + self.timing.renew:
            return 0.0
        return self._renewed_at + self.timing.duration - MARGIN - now

    def leading(self, now: float) -> bool:
        return self.budget(now) > 0

    def release(self, wall: str) -> LeaseRecord | None:
        """The Lease to leave behind when we go, so that the next need not wait; None where it is not ours."""
        if self._seen is None or self._seen.holder != self.identity:
            return None
        self._renewed_at = None
        self._seen = replace(self._seen, holder="", duration=RELEASED_DURATION, renewed=wall, acquired=wall)
        return self._seen


class _LeaseMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _LeaseMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)


def read(document: Mapping[str, Any]) -> LeaseRecord:
    """A Lease; ClusterError where it is none."""
    try:
        lease = msgspec.convert(document, _Lease)
    except msgspec.ValidationError as error:
        raise ClusterError(f"a Lease that cannot be read: {error}") from error
    spec = lease.spec
    return LeaseRecord(
        holder=spec.holder_identity or "",
        duration=float(spec.lease_duration_seconds or 0),
        acquired=spec.acquire_time or "",
        renewed=spec.renew_time or "",
        transitions=spec.lease_transitions or 0,
        version=lease.metadata.resource_version,
    )


def write(record: LeaseRecord, name: str, namespace: str) -> dict[str, Any]:
    """The Lease as the API server takes it; with its resourceVersion, so that a stale view writes nothing."""
    metadata = {"name": name, "namespace": namespace, "resourceVersion": record.version}
    spec = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": max(1, int(record.duration)),
        "acquireTime": record.acquired,
        "renewTime": record.renewed,
        "leaseTransitions": record.transitions,
    }
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": {key: value for key, value in spec.items() if value != ""},
    }


class Leadership(Protocol):
    """What the one who writes asks."""

    def budget(self) -> float: ...
    def leading(self) -> bool: ...


class Alone:
    """Without leader election: the only replica may always write."""

    def budget(self) -> float:
        return float("inf")

    def leading(self) -> bool:
        return True


class Election:
    """Stands for the Lease as long as it runs, and calls `on_change` when leading begins or ends.

    `fit` says whether this replica could do the work; one that could not leaves the Lease to others or lets it lapse.
    """

    def __init__(
        self,
        client: Client,
        candidacy: Candidacy,
        *,
        name: str,
        namespace: str,
        on_change: Callable[[], None],
        fit: Callable[[], bool] = lambda: True,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`clock`: seconds that nobody sets; `jitter`: between 0 and 1."""
        self.candidacy = candidacy
        self._client, self._name, self._namespace = client, name, namespace
        self._resource = LEASES.within(namespace)
        self._on_change, self._fit, self._clock, self._jitter = on_change, fit, clock, jitter
        self._was_leading = False
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """This replica may have become fit: there is no need to wait for the next try."""
        self._nudged.set()

    def budget(self) -> float:
        return self.candidacy.budget(self._clock())

    def leading(self) -> bool:
        return self.candidacy.leading(self._clock())

    async def run(self) -> None:
        """Until cancelled; then the Lease is given up, if it is ours."""
        timing = self.candidacy.timing
        try:
            while True:
                if self._fit():
                    # A hung API server must not keep a leader from noticing that its time is over.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._patience()):
                            await self._try()
                self._tell()
                wait = min(timing.retry * (1 + JITTER * self._jitter()), self._until_over())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._nudged.wait()
                self._nudged.clear()
                self._tell()
        finally:
            with contextlib.suppress(ClusterError, TimeoutError):
                async with asyncio.timeout(timing.retry):
                    await self._release()
            self._tell()

    def _patience(self) -> float:
        """How long one try may take: until the renew deadline where we lead, its length else."""
        return min(self.candidacy.timing.renew, self._until_over())

    def _until_over(self) -> float:
        left = self.budget() - (self.candidacy.timing.duration - MARGIN - self.candidacy.timing.renew)
        return left if left > 0 else self.candidacy.timing.renew

    def _tell(self) -> None:
        leading = self.leading()
        if leading is not self._was_leading:
            self._was_leading = leading
            held = self.candidacy.holder
            log.info(
                "this replica leads" if leading else f"this replica does not lead any more; {held or 'nobody'} does"
            )
            self._on_change()

    async def _try(self) -> None:
        candidacy = self.candidacy
        try:
            if not self.leading():
                candidacy.observe(await self._look(), self._clock())
            asked_at = self._clock()
            claim = candidacy.claim(asked_at, format_micro_time(time.time()))
            if claim is None:
                return
            body = write(claim, self._name, self._namespace)
            call = self._client.replace if claim.version else self._client.create
            taken = await call(self._resource, body)
            candidacy.written(read(taken), asked_at, self._clock())
        except ApiError as error:
            if error.status == 409:
                # Somebody else wrote it: look who, at once, so that a loss is noticed now and not at the deadline.
                with contextlib.suppress(ClusterError):
                    candidacy.observe(await self._look(), self._clock())
            else:
                log.warning("Lease %s/%s: %s", self._namespace, self._name, error)
        except ClusterError as error:
            log.warning("Lease %s/%s: %s", self._namespace, self._name, error)

    async def _look(self) -> LeaseRecord:
        try:
            return read(await self._client.get(self._resource, self._name))
        except ApiError as error:
            if error.status == 404:
                return LeaseRecord()
            raise

    async def _release(self) -> None:
        record = self.candidacy.release(format_micro_time(time.time()))
        if record is not None:
            await self._client.replace(self._resource, write(record, self._name, self._namespace))
            log.info("the Lease %s/%s is given up", self._namespace, self._name)
