"""Writes the agent's own Peer by server-side apply. A failure here never stops the agent or its data path.

Server-side apply creates the Peer if it does not exist and takes no resourceVersion, so there is no read before the
write and no conflict with a concurrent one. Fields that another manager owns are taken over (force).
"""

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
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.peer_outbox import PeerContent, PeerOutbox, PeerPart, PeerStatusReport
from ravenvpn.k8s.resource import PEERS, ApiError, Object
from ravenvpn.mesh.model import PeerObject

log = logging.getLogger(__name__)

# Owner of our fields in managedFields. It must not change between versions: fields of another owner would remain.
FIELD_MANAGER = "ravenvpn-agent"


class PeerWriter:
    """Writes content and status as `PeerOutbox` schedules them. All methods run on the loop of `run`."""

    def __init__(
        self,
        client: Client,
        *,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`draw` draws evenly from 0.0 to 1.0; `now` is a monotonic clock and `wall` Unix time, in seconds."""
        self._client, self._now, self._wall = client, now, wall
        self._backoff = Backoff(draw)
        self._outbox = PeerOutbox()
        self._wake = asyncio.Event()
        self._transitions: dict[str, tuple[bool, str]] = {}  # condition type → value, and since when (RFC 3339)
        self.error = ""  # why the last write failed; "" after a success
        self.written = 0  # requests that succeeded

    @property
    def is_published(self) -> bool:
        """Whether the API has our Peer with the content that was set last."""
        return self._outbox.is_published

    def set_content(self, content: PeerContent) -> None:
        """Replace labels and spec; written at once."""
        self._outbox.set_content(content)
        self._wake.set()

    def set_status(self, status: PeerStatusReport) -> None:
        """Replace the status; written at the intervals of `peer_outbox`."""
        self._outbox.set_status(status)
        self._wake.set()

    def observe(self, peer: PeerObject | None) -> None:
        """Compare with our Peer in the world that is in force; None if it has none. A difference is corrected."""
        self._outbox.observe(peer)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled. Failures are logged once each and retried with back-off."""
        while True:
            self._wake.clear()
            # Cleared before the decision: a change during it or during the write leads to another round.
            part, wait = self._outbox.next_write(self._now())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait == math.inf else wait):
                        await self._wake.wait()
                continue
            try:
                await (self._write_peer() if part is PeerPart.PEER else self._write_status())
            except ApiError as error:
                if str(error) != self.error:
                    log.warning("our Peer cannot be written: %s; retrying", error)
                self.error = str(error)
                # Not interruptible by changes of content: they would bypass the back-off while the server is away.
                await asyncio.sleep(self._backoff.delay(error.retry_after or 0.0))
            else:  # the back-off starts again only after a success
                self.written += 1
                self.error = ""
                self._backoff.reset()

    async def _write_peer(self) -> None:
        """Apply labels and spec."""
        content = self._outbox.content
        assert content is not None
        # `content` is read before the await: a change during the request is written in the next round.
        await self._client.apply(PEERS, content.document(), field_manager=FIELD_MANAGER)
        log.info("our Peer is written: role %s, region %s", content.role, content.region or "none")
        self._outbox.peer_written(content, self._now())

    async def _write_status(self) -> None:
        """Apply the status subresource. 404: the Peer was deleted, and is written again before its status.

        The API server ignores a status in a write of the main resource, hence two requests."""
        content, status = self._outbox.content, self._outbox.status
        assert content is not None
        assert status is not None
        obj: Object = {
            "apiVersion": f"{PEERS.group}/{PEERS.version}",
            "kind": "Peer",
            "metadata": {"name": content.peer.name},
            "status": self._status_document(status),
        }
        try:
            await self._client.apply(PEERS, obj, field_manager=FIELD_MANAGER, subresource="status")
        except ApiError as error:
            if error.status != 404:
                raise
            self._outbox.peer_deleted()
        else:
            self._outbox.status_written(status, self._now())

    def _status_document(self, status: PeerStatusReport) -> Object:
        """The status as the API takes it. lastTransitionTime changes only with the value of a condition."""
        conditions = []
        # lastTransitionTime is kept in memory only: after a restart of the agent every condition begins anew.
        moment = rfc3339.format_time(self._wall())
        for condition in status.conditions:
            # None differs from both values: a condition that is new gets the current time.
            holds, since = self._transitions.get(condition.type, (None, ""))
            if holds != condition.holds:
                since = moment
                self._transitions[condition.type] = (condition.holds, since)
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
            "version": status.version,
            "dataplane": status.dataplane,
            "sessions": {"wanted": status.sessions_wanted, "up": status.sessions_up},
            "conditions": conditions,
        }
