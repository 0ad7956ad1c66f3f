"""Carries decisions out, and only while this replica leads: no write begins, and none may last, past its time.

Every status carries the resourceVersion it was decided on, so that even a write which was held up on its way changes
nothing that anybody wrote since.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ravenvpn.k8s.client import EVENTS, GATEWAYS, SERVICES, ApiError, Client, Object
from ravenvpn.k8s.controller import keys
from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.decide import Decision
from ravenvpn.k8s.controller.events import EventLog, EventNotice, EventWrite
from ravenvpn.k8s.lease import Leadership
from ravenvpn.k8s.resource import Resource

log = logging.getLogger(__name__)

NAMESPACE = "kube-system"
FIELD_MANAGER = "raven-vpn-controller"
WRITE_TIMEOUT = 5.0  # seconds, less where the Lease leaves less
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", NAMESPACE)
ENDPOINTS = Resource("", "v1", "endpoints", NAMESPACE)

Answer = TypeVar("Answer")


class NotLeading(Exception):
    """Our time is over: nothing was sent."""


class ObjectWriter:
    """Of one replica. `written` counts what the API server took or refused, by kind and outcome."""

    def __init__(
        self, client: Client, view: ClusterCache, leadership: Leadership, events: EventLog, wall: Callable[[], float]
    ) -> None:
        self.written: Counter[tuple[str, str]] = Counter()
        self._client, self._view, self._leadership = client, view, leadership
        self._events, self._wall = events, wall

    async def carry_out(self, decision: Decision) -> None:
        """Raises ApiError where the API server refuses, NotLeading where we may not write (any more)."""
        await self._expose(decision)
        held = self._view.gateways.get(decision.name)
        if decision.status is not None and held is not None:
            answer = await self._write(
                "status",
                lambda: self._client.merge(
                    GATEWAYS,
                    decision.name,
                    decision.status or {},
                    subresource="status",
                    field_manager=FIELD_MANAGER,
                ),
            )
            self._view.take(ObjectKind.GATEWAY, [answer])
        await self.tell(decision.notices)
        if decision.keys:
            await self._publish_keys(decision.name, dict(decision.keys))

    async def tell(self, notices: Iterable[EventNotice]) -> None:
        """As events. One that the API server does not take is lost: nothing depends on them."""
        for notice in notices:
            (log.warning if notice.warning else log.info)(
                "%s %s: %s: %s", notice.subject.kind, notice.subject.name, notice.reason, notice.message
            )
            event = self._events.take(notice, self._wall())
            if event is not None:
                try:
                    await self._tell(event)
                except (ApiError, NotLeading) as error:
                    log.debug("event not written: %s", error)

    async def _tell(self, event: EventWrite) -> None:
        resource = EVENTS.within(event.body["metadata"]["namespace"])
        if event.again:
            patch = {key: event.body[key] for key in ("count", "lastTimestamp")}
            try:
                await self._write("event", lambda: self._client.merge(resource, event.name, patch))
            except ApiError as error:
                if error.status != 404:  # events last an hour
                    raise
            else:
                return
        await self._write("event", lambda: self._client.create(resource, event.body))

    async def _expose(self, decision: Decision) -> None:
        exposure, services = decision.exposure, SERVICES.within(NAMESPACE)
        # First where it leads, then what leads there: a Service that appears leads somewhere.
        for document in exposure.slices:
            await self._apply(ObjectKind.SLICE, SLICES, document)
        for document in exposure.services:
            await self._apply(ObjectKind.SERVICE, services, document)
        for name in exposure.drop_endpoints:
            await self._drop("endpoints", ENDPOINTS, name)
        for name in exposure.drop_slices:
            await self._drop("slice", SLICES, name)
            self._view.take(ObjectKind.SLICE, (), (name,))
        for name in exposure.drop_services:
            await self._drop("service", services, name)
            self._view.take(ObjectKind.SERVICE, (), (name,))

    async def _apply(self, kind: ObjectKind, resource: Resource, document: Object) -> None:
        what = "service" if kind is ObjectKind.SERVICE else "slice"
        answer = await self._write(what, lambda: self._client.apply(resource, document, field_manager=FIELD_MANAGER))
        self._view.take(kind, [answer])

    async def _drop(self, what: str, resource: Resource, name: str) -> None:
        try:
            await self._write(what, lambda: self._client.delete(resource, name))
        except ApiError as error:
            if error.status != 404:
                raise

    async def _publish_keys(self, name: str, wanted: dict[str, str]) -> None:
        document = await self._client.get(GATEWAYS, name)
        patch = keys.patch(document, wanted)
        if patch is not None:
            log.info("Gateway %s: public key of %s put where upstream's agents look", name, ", ".join(sorted(wanted)))
            answer = await self._write(
                "key", lambda: self._client.merge(GATEWAYS, name, patch, field_manager=FIELD_MANAGER)
            )
            self._view.take(ObjectKind.GATEWAY, [answer])

    async def _write(self, what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
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
            raise ApiError(f"writing a {what} took too long", reason="Silent") from error
        self.written[what, "done"] += 1
        return answer
