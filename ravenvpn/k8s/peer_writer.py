"""The agent's own Peer, written by server-side apply. Nothing here stops the agent or its data path."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable

from ravenvpn import rfc3339
from ravenvpn.backoff import Backoff
from ravenvpn.k8s.client import PEERS, Client
from ravenvpn.k8s.peer_outbox import PeerContent, PeerOutbox, PeerPart, PeerStatusReport
from ravenvpn.k8s.resource import ApiError, Object
from ravenvpn.mesh.model import PeerObject

log = logging.getLogger(__name__)

FIELD_MANAGER = "ravenvpn-agent"


class PeerWriter:
    """Writes what it is told to want; `error` says why that does not succeed right now."""

    def __init__(
        self,
        client: Client,
        *,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._now, self._wall = client, now, wall
        self._backoff = Backoff(draw)
        self._outbox = PeerOutbox()
        self._wake = asyncio.Event()
        self._since: dict[str, tuple[bool, str]] = {}  # condition → what it is, and since when (RFC 3339)
        self.error = ""
        self.written = 0  # requests that wrote something

    def want(self, announcement: PeerContent) -> None:
        self._outbox.want(announcement)
        self._wake.set()

    def describe(self, report: PeerStatusReport) -> None:
        self._outbox.describe(report)
        self._wake.set()

    def saw(self, peer: PeerObject | None) -> None:
        """Our Peer in the world that is in force."""
        self._outbox.saw(peer)
        self._wake.set()

    @property
    def stands(self) -> bool:
        """Whether what is wanted has been written."""
        return self._outbox.is_written

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            part, wait = self._outbox.next(self._now())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait == math.inf else wait):
                        await self._wake.wait()
                continue
            try:
                await (self._write_peer() if part is PeerPart.PEER else self._write_status())
            except ApiError as error:
                if str(error) != self.error:
                    log.warning("our Peer cannot be written: %s", error)
                self.error = str(error)
                await asyncio.sleep(self._backoff.delay(error.retry_after or 0.0))
            else:
                self.written += 1
                self.error = ""
                self._backoff.reset()

    async def _write_peer(self) -> None:
        announcement = self._outbox.wanted
        assert announcement is not None
        await self._client.apply(PEERS, announcement.document(), field_manager=FIELD_MANAGER)
        log.info("announced as %s of region %s", announcement.role, announcement.region or "none")
        self._outbox.wrote_peer(announcement, self._now())

    async def _write_status(self) -> None:
        announcement, report = self._outbox.wanted, self._outbox.report
        assert announcement is not None
        assert report is not None
        thing: Object = {
            "apiVersion": f"{PEERS.group}/{PEERS.version}",
            "kind": "Peer",
            "metadata": {"name": announcement.peer.name},
            "status": self._status(report),
        }
        try:
            await self._client.apply(PEERS, thing, field_manager=FIELD_MANAGER, subresource="status")
        except ApiError as error:
            if error.status != 404:
                raise
            self._outbox.is_gone()
        else:
            self._outbox.wrote_status(report, self._now())

    def _status(self, report: PeerStatusReport) -> Object:
        conditions = []
        moment = rfc3339.format_time(self._wall())
        for condition in report.conditions:
            holds, since = self._since.get(condition.type, (None, ""))
            if holds != condition.holds:
                since = moment
                self._since[condition.type] = (condition.holds, since)
            conditions.append(
                {
                    "type": condition.type,
                    "status": "True" if condition.holds else "False",
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastTransitionTime": since,
                }
            )
        return {
            "version": report.version,
            "dataplane": report.dataplane,
            "sessions": {"wanted": report.wanted, "up": report.up},
            "conditions": conditions,
        }
