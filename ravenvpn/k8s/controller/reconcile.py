"""Reconcile queue of one term of leadership: decide for the dirty Gateways, write what differs, retry what failed.

As in client-go's workqueue, a Gateway is processed once at a time, and a change that arrives meanwhile queues it
again. Each Gateway has its own back-off, so a refused write delays no other Gateway. All methods run on one event
loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ravenvpn import rfc3339
from ravenvpn.backoff import Backoff
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.conflict_view import ConflictView
from ravenvpn.k8s.controller.decide import Decision, WriteScope, decide, subject
from ravenvpn.k8s.controller.desired_status import Resolve, desired_status
from ravenvpn.k8s.controller.events import EventNotice
from ravenvpn.k8s.controller.published_keys import KeyWriteLimit
from ravenvpn.k8s.controller.writer import NotLeading, ObjectWriter
from ravenvpn.k8s.resource import ApiError
from ravenvpn.mesh.model import Gateway, GatewayStatus

log = logging.getLogger(__name__)

# Gateways decided on without yielding to the event loop: about 25 ms, so that renewing the Lease is never late.
CHUNK = 50
# Writes in flight at once. A new leader may have a thousand statuses to write, and renewing the Lease must not wait
# behind them.
PARALLEL_WRITES = 8
# Seconds; upper bounds of the first retry after a failed write. A conflict is retried sooner: the watch event that
# caused it is on its way.
FIRST_RETRY, FIRST_RETRY_CONFLICT = 1.0, 0.2
MIN_RETRY = 0.05  # at least, unless the API server asks for more (Retry-After)
NOT_LEADING_RETRY = 1.0  # after a write that was not sent because the Lease had run out
EMPTY_STATUS = GatewayStatus()  # of a Gateway that is gone or was never readable


class ReconcileQueue:
    """Reconciles Gateways until `close`. A new one starts with every Gateway and Peer dirty and no memory."""

    def __init__(
        self,
        cache: ClusterCache,
        writer: ObjectWriter,
        mesh: str,
        resolve: Resolve,
        *,
        draw: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`mesh` is the name of the mesh, `draw` draws evenly from 0.0 to 1.0, `wall` returns seconds since 1970."""
        self.conflicts = ConflictView(mesh)
        self.defects = 0  # decisions and writes that ended with an unexpected exception
        self.failing: dict[str, str] = {}  # Gateway → error of its last write
        self._cache, self._writer, self._resolve = cache, writer, resolve
        self._draw, self._wall = draw, wall
        self._reported: dict[str, frozenset[EventNotice]] = {}  # lasting problems that were emitted, by Gateway
        self._processing: dict[str, asyncio.Task[None]] = {}  # Gateway → its write
        self._requeue: set[str] = set()  # became dirty while processed
        self._backoffs: dict[str, Backoff] = {}  # Gateway → its failures since the last successful write
        self._retries: dict[str, asyncio.TimerHandle] = {}  # Gateway → when it becomes dirty again
        self._key_limit = KeyWriteLimit()
        self._contested: set[str] = set()  # Gateways with a notice KeyContested, one for each term
        self._slots = asyncio.Semaphore(PARALLEL_WRITES)
        cache.mark_all_dirty()
        cache.dirty_peers.update(cache.peers)

    def close(self) -> None:
        """Cancel pending retries and writes."""
        for handle in self._retries.values():
            handle.cancel()
        for task in self._processing.values():
            task.cancel()

    async def reconcile(self, scope: WriteScope, wake: Callable[[], None]) -> None:
        """Decide for everything that is dirty.

        Writes run in the background. `wake` is called when another call is due: after a failed write, for a Gateway
        that changed meanwhile, and for Gateways that a new conflict made dirty.
        """
        cache = self._cache
        dirty, dirty_peers = cache.drain()
        names = sorted(dirty)
        # The desired statuses of all of them first, then the conflicts between these, and only then any decision.
        statuses: dict[str, GatewayStatus] = {}
        changed = set(self.conflicts.update({}, {name: cache.peers.get(name) for name in dirty_peers}))
        for chunk in _chunks(names):
            desired: dict[str, Gateway | None] = {}
            for name in chunk:
                gateway = cache.gateways.get(name)
                value = gateway.value if gateway else None
                statuses[name] = EMPTY_STATUS if value is None else self._desired_status(name, value)
                desired[name] = None if value is None else replace(value, status=statuses[name])
            changed |= self.conflicts.update(desired, {})
            await asyncio.sleep(0)
        cache.dirty |= changed - dirty
        for chunk in _chunks(names):
            for name in chunk:
                self._process(name, statuses[name], scope, wake)
            await asyncio.sleep(0)
        if cache.dirty:
            wake()

    def _desired_status(self, name: str, gateway: Gateway) -> GatewayStatus:
        """Return the desired status; the stored one, so that nothing is written, if computing it fails."""
        try:
            return desired_status(self._cache, gateway, self._resolve)
        except Exception:
            self._log_defect(name)
            return gateway.status

    def _log_defect(self, name: str) -> None:
        """Count and log an unexpected exception; the other Gateways are reconciled nevertheless."""
        self.defects += 1
        log.exception("Gateway %s is left as it is because of a defect in the controller; please report it", name)

    def _process(self, name: str, status: GatewayStatus, scope: WriteScope, wake: Callable[[], None]) -> None:
        """Decide for one Gateway and start its write.

        While its previous write runs, nothing is decided: the answer will change the cache. The Gateway is queued
        again instead.
        """
        if name in self._processing:
            self._requeue.add(name)
            return
        try:
            decision = decide(
                self._cache,
                name,
                status,
                self.conflicts.lost_by(name),
                scope,
                reported=self._reported.get(name, frozenset()),
                now=rfc3339.format_time(self._wall()),
            )
        except Exception:
            self._log_defect(name)
            return
        decision = self._limit_key_writes(decision)
        if name not in self._cache.gateways:
            for by_name in (self._reported, self._backoffs, self.failing):
                by_name.pop(name, None)
        elif decision.ongoing or name in self._reported:
            self._reported[name] = decision.ongoing
        if decision:
            self._processing[name] = asyncio.create_task(self._write(decision, wake), name=f"write Gateway {name}")

    def _limit_key_writes(self, decision: Decision) -> Decision:
        """Drop keys that another program keeps overwriting from the decision, with a notice."""
        if not decision.keys:
            return decision
        now = self._wall()
        admitted = tuple(key for key in decision.keys if self._key_limit.admit(decision.name, key[0], now))
        refused = [key[0] for key in decision.keys if key not in admitted]
        gateway = self._cache.gateways.get(decision.name)
        if not refused or gateway is None:
            return decision
        message = (
            f"another program keeps overwriting the public key of node {refused[0]} in spec.endpoints, so it is not "
            "written for ten minutes; run only one agent on that node"
        )
        notice = EventNotice(subject(gateway), "KeyContested", message, warning=True)
        notices = decision.notices if decision.name in self._contested else (*decision.notices, notice)
        self._contested.add(decision.name)
        return replace(decision, keys=admitted, notices=notices)

    async def _write(self, decision: Decision, wake: Callable[[], None]) -> None:
        """Write one decision and schedule the retry if it fails.

        Runs as a task of its own and raises nothing, so that no exception is lost in a task that is not awaited.
        """
        name = decision.name
        try:
            async with self._slots:
                await self._writer.apply(decision)
            self._backoffs.pop(name, None)
            self.failing.pop(name, None)
        except NotLeading:
            # The Lease may be renewed again before the controller ends this term: the Gateway must stay queued.
            self._retry(name, NOT_LEADING_RETRY, wake)
        except ApiError as error:
            conflict = error.status == 409
            if not conflict:
                log.warning("Gateway %s: write failed, will be retried: %s", name, error)
                self.failing[name] = str(error)
            first = FIRST_RETRY_CONFLICT if conflict else FIRST_RETRY
            backoff = self._backoffs.setdefault(name, Backoff(self._draw, first=first))
            self._retry(name, backoff.delay(error.retry_after or MIN_RETRY), wake)
        except Exception:
            self._log_defect(name)
        finally:
            self._processing.pop(name, None)
            if name in self._requeue:
                self._requeue.discard(name)
                self._cache.dirty.add(name)
                wake()

    def _retry(self, name: str, after: float, wake: Callable[[], None]) -> None:
        """Mark the Gateway dirty in `after` seconds."""

        def expired() -> None:
            self._retries.pop(name, None)
            self._cache.dirty.add(name)
            wake()

        if name in self._retries:
            self._retries[name].cancel()
        self._retries[name] = asyncio.get_running_loop().call_later(after, expired)


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split the names into runs of `CHUNK`."""
    return (names[i : i + CHUNK] for i in range(0, len(names), CHUNK))
