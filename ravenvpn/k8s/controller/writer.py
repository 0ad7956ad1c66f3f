"""Write decisions to the API server, only while this replica leads.

Each write gets no more time than the Lease leaves, so that none is in flight when another replica may take the Lease.
A status also carries the resourceVersion it was decided on: a write that is delayed on its way changes nothing if
another one came first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.decide import Decision
from ravenvpn.k8s.controller.events import EventCorrelator, EventNotice, EventWrite
from ravenvpn.k8s.controller.options import CONTROLLER_NAME, NAMESPACE
from ravenvpn.k8s.controller.published_keys import key_patch
from ravenvpn.k8s.lease import Leadership
from ravenvpn.k8s.resource import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    EVENTS,
    GATEWAYS,
    SERVICES,
    ApiError,
    Object,
    Resource,
)

log = logging.getLogger(__name__)

# Name in managedFields. `yurt_manager` compares the times of this manager with those of OpenYurt's controller.
FIELD_MANAGER = CONTROLLER_NAME
WRITE_TIMEOUT = 5.0  # seconds for one write; less if the Lease leaves less

_SERVICES = SERVICES.within(NAMESPACE)
_SLICES = ENDPOINT_SLICES.within(NAMESPACE)
_ENDPOINTS = ENDPOINTS.within(NAMESPACE)

Answer = TypeVar("Answer")


class NotLeading(Exception):
    """This replica does not lead (any more). Nothing was sent."""


class ObjectWriter:
    """The writes of one replica. Answers go into the cache, so that the next decision does not wait for the watch."""

    def __init__(
        self,
        client: Client,
        cache: ClusterCache,
        leadership: Leadership,
        events: EventCorrelator,
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns seconds since 1970, for the times of events."""
        # Object ("status", "service", "slice", "endpoints", "event", "key") and outcome ("done", "conflict",
        # "refused", "timeout") → writes since the start.
        self.written: Counter[tuple[str, str]] = Counter()
        self._client, self._cache, self._leadership = client, cache, leadership
        self._events, self._wall = events, wall

    async def apply(self, decision: Decision) -> None:
        """Write everything in the decision: Services, status, events, keys, in this order.

        Raises ApiError if the API server refuses a write (409: the Gateway changed since the decision) and NotLeading
        if this replica may not write; what follows in the order is not written then.
        """
        await self._apply_exposure(decision)
        # The Gateway may have been deleted since the decision; then there is no status to write.
        if decision.status is not None and decision.name in self._cache.gateways:
            patch = decision.status
            answer = await self._write(
                "status",
                lambda: self._client.merge(
                    GATEWAYS, decision.name, patch, subresource="status", field_manager=FIELD_MANAGER
                ),
            )
            self._cache.apply(ObjectKind.GATEWAY, [answer])
        await self.emit(decision.notices)
        if decision.keys:
            await self._publish_keys(decision.name, dict(decision.keys))

    async def emit(self, notices: Iterable[EventNotice]) -> None:
        """Log the notices and write them as events.

        Every notice is logged, also those that `EventCorrelator` leaves out. A failed write of an event is ignored,
        because nothing depends on events.
        """
        for notice in notices:
            (log.warning if notice.warning else log.info)(
                "%s %s: %s: %s", notice.subject.kind, notice.subject.name, notice.reason, notice.message
            )
            event = self._events.correlate(notice, self._wall())
            if event is not None:
                try:
                    await self._write_event(event)
                except (ApiError, NotLeading) as error:
                    log.debug("event %s not written: %s", event.name, error)

    async def _write_event(self, event: EventWrite) -> None:
        """Create the event, or raise the count of the one that was created before."""
        resource = EVENTS.within(event.body["metadata"]["namespace"])
        if event.repeated:
            patch = {key: event.body[key] for key in ("count", "lastTimestamp")}
            try:
                await self._write("event", lambda: self._client.merge(resource, event.name, patch))
            except ApiError as error:
                if error.status != 404:  # the API server deletes events after an hour (--event-ttl)
                    raise
            else:
                return
        await self._write("event", lambda: self._client.create(resource, event.body))

    async def _apply_exposure(self, decision: Decision) -> None:
        """Write Services and EndpointSlices of one Gateway.

        Every answer and every deletion goes into the cache at once, so that the next decision does not repeat it.
        """
        exposure = decision.exposure
        # Slices before their Service: a Service that appears has an endpoint. Deletions last, slices first.
        for document in exposure.slices:
            await self._apply(ObjectKind.SLICE, _SLICES, document)
        for document in exposure.services:
            await self._apply(ObjectKind.SERVICE, _SERVICES, document)
        for name in exposure.drop_endpoints:
            await self._delete("endpoints", _ENDPOINTS, name)
        for name in exposure.drop_slices:
            await self._delete("slice", _SLICES, name)
            self._cache.apply(ObjectKind.SLICE, (), (name,))
        for name in exposure.drop_services:
            await self._delete("service", _SERVICES, name)
            self._cache.apply(ObjectKind.SERVICE, (), (name,))

    async def _apply(self, kind: ObjectKind, resource: Resource, document: Object) -> None:
        """Server-side apply of a whole object; fields of other managers stay."""
        what = "service" if kind is ObjectKind.SERVICE else "slice"
        answer = await self._write(what, lambda: self._client.apply(resource, document, field_manager=FIELD_MANAGER))
        self._cache.apply(kind, [answer])

    async def _delete(self, what: str, resource: Resource, name: str) -> None:
        """Delete an object; one that is gone already is not an error."""
        try:
            await self._write(what, lambda: self._client.delete(resource, name))
        except ApiError as error:
            if error.status != 404:
                raise

    async def _publish_keys(self, name: str, missing: dict[str, str]) -> None:
        """Read the Gateway and patch its endpoints. The patch needs the list as it is stored, see `key_patch`.

        The cache has decoded values only, without the unknown fields that the patch must keep.
        """
        document = await self._client.get(GATEWAYS, name)
        patch = key_patch(document, missing)
        if patch is not None:
            log.info("Gateway %s: write public key of %s into spec.endpoints", name, ", ".join(sorted(missing)))
            answer = await self._write(
                "key", lambda: self._client.merge(GATEWAYS, name, patch, field_manager=FIELD_MANAGER)
            )
            self._cache.apply(ObjectKind.GATEWAY, [answer])

    async def _write(self, what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Send one write within the time the Lease leaves, and count its outcome; `what` names the object.

        Raises NotLeading if no time is left, ApiError if the API server refuses or does not answer in time. After a
        timeout it is not known whether the write took effect; the next decision finds out from the cache.
        """
        budget = self._leadership.budget()
        if budget <= 0:
            raise NotLeading
        try:
            async with asyncio.timeout(min(budget, WRITE_TIMEOUT)):
                answer = await call()
        except ApiError as error:
            self.written[what, "conflict" if error.status == 409 else "refused"] += 1
            raise
        except TimeoutError as error:
            self.written[what, "timeout"] += 1
            raise ApiError(f"the API server did not answer the write of a {what} in time", reason="Silent") from error
        self.written[what, "done"] += 1
        return answer
