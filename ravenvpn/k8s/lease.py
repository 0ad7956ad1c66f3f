"""Leader election: which of several replicas may write, by a Lease of coordination.k8s.io as client-go keeps it.

`Candidacy` decides and reads no clock; `Election` sends the requests. Two rules are stricter than client-go's:
* A leader may write until `renew` seconds after the *request* of its last successful renewal, which is before another
  replica may take the Lease. Each write gets at most the time that is left until then, so that no write of a former
  leader is still under way when the Lease changes hands.
* A leader that lost the Lease does not exit: it becomes a candidate again.
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

RELEASED_DURATION = 1  # seconds; leaseDurationSeconds that client-go writes when it releases a Lease


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The Lease as the API server stores it; the defaults stand for a Lease that does not exist."""

    holder: str = ""  # identity of the leader; "" after a release
    duration: float = 0.0  # seconds
    acquired: str = ""  # RFC 3339 with microseconds, like `renewed`
    renewed: str = ""
    transitions: int = 0  # changes of the holder
    version: str = ""  # resourceVersion


class Candidacy:
    """One replica's view of the Lease.

    A leader's periods, with the default timing in seconds after the request of its last successful renewal:

        0            10                14           15
        | may write  | may not begin   | MARGIN     | another replica may take the Lease
                       a write, those
                       under way end

    `now` is seconds of a monotonic clock; `wall` is the current time to write into the Lease, RFC 3339.
    """

    def __init__(self, identity: str, timing: LeaseTiming = DEFAULT_TIMING) -> None:
        self.identity, self.timing = identity, timing
        self._seen: LeaseRecord | None = None
        self._seen_at = 0.0
        # `now` at which the last successful renewal was sent; None: this replica is not the leader.
        self._renewed_at: float | None = None

    @property
    def holder(self) -> str:
        """Identity of the leader as last observed; "" without one, or before the first observation."""
        return self._seen.holder if self._seen else ""

    def observe(self, record: LeaseRecord, now: float) -> None:
        """Record the Lease as the API server returned it.

        The times in it come from clocks of other nodes and are not compared with ours: the Lease expires `duration`
        seconds after this replica saw it change."""
        if record != self._seen:
            self._seen, self._seen_at = record, now
        if record.holder != self.identity:
            self._renewed_at = None

    def claim(self, now: float, wall: str) -> LeaseRecord | None:
        """Return the Lease to write now, to take or to renew it; None while another replica holds it.

        To be called after `observe`."""
        seen = self._seen
        assert seen is not None
        wanted = replace(seen, holder=self.identity, duration=self.timing.duration, renewed=wall)
        if seen.holder == self.identity:
            return wanted
        if seen.holder and now < self._seen_at + seen.duration:
            return None
        return replace(wanted, acquired=wall, transitions=seen.transitions + bool(seen.version))

    def written(self, record: LeaseRecord, asked_at: float, now: float) -> None:
        """The API server accepted our claim, which was sent at `asked_at`."""
        self._seen, self._seen_at = record, now
        self._renewed_at = asked_at

    def budget(self, now: float) -> float:
        """Return the seconds that a write begun now may take; 0 if this replica may not write."""
        if self._renewed_at is None or now >= self._renewed_at + self.timing.renew:
            return 0.0
        return self._renewed_at + self.timing.duration - MARGIN - now

    def leading(self, now: float) -> bool:
        """Whether this replica may begin a write now."""
        return self.budget(now) > 0

    def release(self, wall: str) -> LeaseRecord | None:
        """Stop leading; return the Lease to write so that the next leader need not wait, None if it is not ours."""
        if self._seen is None or self._seen.holder != self.identity:
            return None
        self._renewed_at = None
        self._seen = replace(self._seen, holder="", duration=RELEASED_DURATION, renewed=wall, acquired=wall)
        return self._seen


class _LeaseMeta(msgspec.Struct, rename="camel"):
    """metadata of a Lease, the field that is read."""

    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    """spec of a Lease; null after a release or in a Lease written by hand."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    """coordination.k8s.io/v1 Lease."""

    metadata: _LeaseMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)


def read(document: Mapping[str, Any]) -> LeaseRecord:
    """Convert a Lease of the API. Raises ClusterError if it is malformed."""
    try:
        lease = msgspec.convert(document, _Lease)
    except msgspec.ValidationError as error:
        raise ClusterError(f"the Lease is malformed: {error}") from error
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
    """Convert to a Lease of the API. It carries the resourceVersion, so that a write from an old state is refused."""
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
    """Permission to write, as the controller's writer asks for it."""

    def budget(self) -> float:
        """Return the seconds that a write begun now may take; 0: none may begin."""

    def leading(self) -> bool:
        """Whether a write may begin now."""


class Alone:
    """Leadership without election, for a single replica: it may always write."""

    def budget(self) -> float:
        """Return infinity."""
        return float("inf")

    def leading(self) -> bool:
        """Return True."""
        return True


class Election:
    """Takes and renews the Lease while `run` runs. All methods on one loop."""

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
        """Prepare the election; nothing is sent before `run`.

        * `name`, `namespace`: of the Lease.
        * `on_change` is called when leading begins or ends.
        * `fit` returns whether this replica could do the work; if not, it takes no Lease and lets its own expire.
        * `clock`: monotonic seconds; `jitter` draws evenly from 0 to 1.
        """
        self.candidacy = candidacy
        self._client, self._name, self._namespace = client, name, namespace
        self._resource = LEASES.within(namespace)
        self._on_change, self._fit, self._clock, self._jitter = on_change, fit, clock, jitter
        self._was_leading = False
        self._retry_now = asyncio.Event()

    def retry_now(self) -> None:
        """End the delay before the next attempt, because this replica may have become fit."""
        self._retry_now.set()

    def budget(self) -> float:
        """Return the seconds that a write begun now may take; 0: this replica does not lead."""
        return self.candidacy.budget(self._clock())

    def leading(self) -> bool:
        """Whether this replica leads now."""
        return self.candidacy.leading(self._clock())

    async def run(self) -> None:
        """Take and renew the Lease until cancelled; then release it, if it is ours."""
        timing = self.candidacy.timing
        try:
            while True:
                if self._fit():
                    # Bounded, so that a leader notices its deadline even if the API server hangs.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._attempt_timeout()):
                            await self._attempt()
                self._report_change()
                wait = min(timing.retry * (1 + JITTER * self._jitter()), self._until_over())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._retry_now.wait()
                self._retry_now.clear()
                self._report_change()
        finally:
            with contextlib.suppress(ClusterError, TimeoutError):
                async with asyncio.timeout(timing.retry):
                    await self._release()
            self._report_change()

    def _attempt_timeout(self) -> float:
        """Seconds one attempt may take: until the renew deadline for a leader, else the whole period."""
        return min(self.candidacy.timing.renew, self._until_over())

    def _until_over(self) -> float:
        """Seconds until this replica stops leading; the renew period if it does not lead."""
        left = self.budget() - (self.candidacy.timing.duration - MARGIN - self.candidacy.timing.renew)
        return left if left > 0 else self.candidacy.timing.renew

    def _report_change(self) -> None:
        """Log it and call `on_change` if leading has begun or ended since the last call."""
        leading = self.leading()
        if leading is not self._was_leading:
            self._was_leading = leading
            leader = self.candidacy.holder or "not known"
            log.info("this replica leads" if leading else f"this replica no longer leads; the leader is {leader}")
            self._on_change()

    async def _attempt(self) -> None:
        """Take or renew the Lease, once. Failures are logged."""
        candidacy = self.candidacy
        try:
            if not self.leading():
                candidacy.observe(await self._get(), self._clock())
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
                # Another replica wrote the Lease. Read it at once, so that a loss is noticed before the deadline.
                with contextlib.suppress(ClusterError):
                    candidacy.observe(await self._get(), self._clock())
            else:
                log.warning("Lease %s/%s: %s", self._namespace, self._name, error)
        except ClusterError as error:
            log.warning("Lease %s/%s: %s", self._namespace, self._name, error)

    async def _get(self) -> LeaseRecord:
        """Read the Lease; an empty record if there is none."""
        try:
            return read(await self._client.get(self._resource, self._name))
        except ApiError as error:
            if error.status == 404:
                return LeaseRecord()
            raise

    async def _release(self) -> None:
        """Write the Lease without a holder, if it is ours."""
        record = self.candidacy.release(format_micro_time(time.time()))
        if record is not None:
            await self._client.replace(self._resource, write(record, self._name, self._namespace))
            log.info("Lease %s/%s is released", self._namespace, self._name)
