"""Rounds of deciding and writing: what was touched is looked at, what differs is written, each Gateway by itself.

A refusal is tried again, ever later; nothing that happens to one Gateway keeps another waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ravenvpn import rfc3339
from ravenvpn.backoff import Backoff
from ravenvpn.k8s.client import ApiError
from ravenvpn.k8s.controller.cache import ClusterCache
from ravenvpn.k8s.controller.conflict_view import ConflictView
from ravenvpn.k8s.controller.decide import Decision, Rights, decide, subject
from ravenvpn.k8s.controller.desired import status_of
from ravenvpn.k8s.controller.events import EventNotice
from ravenvpn.k8s.controller.keys import Quarrels
from ravenvpn.k8s.controller.writer import NotLeading, ObjectWriter
from ravenvpn.mesh.model import Gateway, GatewayStatus

log = logging.getLogger(__name__)

CHUNK = 50  # Gateways looked at in one go, some 25 ms; then the Lease and the watches get their turn
PARALLEL = 8  # writes at once
NOTHING = GatewayStatus()


class ReconcileQueue:
    """Of one term of leadership. `look` does a round; `close` lets go of what is on its way."""

    def __init__(
        self,
        view: ClusterCache,
        writer: ObjectWriter,
        mesh: str,
        addresses: Callable[[str], Sequence[str]],
        *,
        draw: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.standing = ConflictView(mesh)
        self.defects = 0
        self.failing: dict[str, str] = {}  # Gateway → why its last write failed
        self._view, self._writer, self._addresses = view, writer, addresses
        self._draw, self._wall = draw, wall
        self._told: dict[str, frozenset[EventNotice]] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # touched while busy
        self._backoffs: dict[str, Backoff] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._quarrels = Quarrels()
        self._contested: set[str] = set()  # Gateways of which that was said
        self._slots = asyncio.Semaphore(PARALLEL)
        view.touch_all()
        view.touched_peers.update(view.peers)

    def close(self) -> None:
        for handle in self._waiting.values():
            handle.cancel()
        for task in self._busy.values():
            task.cancel()

    async def look(self, rights: Rights, wake: Callable[[], None]) -> None:
        """Decide for everything that was touched; writes go on in the background and call `wake` when done."""
        view = self._view
        touched, view.touched = view.touched - {""}, set()
        peers, view.touched_peers = view.touched_peers, set()
        names = sorted(touched)
        # First what all of them should say and who contradicts whom, and only then a decision on any.
        statuses: dict[str, GatewayStatus] = {}
        changed = set(self.standing.update({}, {name: view.peers.get(name) for name in peers}))
        for some in _chunks(names):
            wanted: dict[str, Gateway | None] = {}
            for name in some:
                held = view.gateways.get(name)
                value = held.value if held else None
                statuses[name] = NOTHING if value is None else self._guarded(name, value)
                wanted[name] = None if value is None else replace(value, status=statuses[name])
            changed |= self.standing.update(wanted, {})
            await asyncio.sleep(0)
        view.touched |= changed - touched
        for some in _chunks(names):
            for name in some:
                self._one(name, statuses[name], rights, wake)
            await asyncio.sleep(0)
        if view.touched:
            wake()

    def _guarded(self, name: str, gateway: Gateway) -> GatewayStatus:
        try:
            return status_of(self._view, gateway, self._addresses)
        except Exception:
            self._defect(name)
            return gateway.status

    def _defect(self, name: str) -> None:
        """Ours, and no reason to leave the other Gateways alone."""
        self.defects += 1
        log.exception("a defect: Gateway %s is left as it is", name)

    def _one(self, name: str, status: GatewayStatus, rights: Rights, wake: Callable[[], None]) -> None:
        if name in self._busy:
            self._again.add(name)
            return
        try:
            decision = decide(
                self._view,
                name,
                status,
                self.standing.lost_by(name),
                rights,
                told=self._told.get(name, frozenset()),
                now=rfc3339.format_time(self._wall()),
            )
        except Exception:
            self._defect(name)
            return
        decision = self._without_quarrels(decision)
        if name not in self._view.gateways:
            for forgotten in (self._told, self._backoffs, self.failing):
                forgotten.pop(name, None)
        elif decision.lasting or name in self._told:
            self._told[name] = decision.lasting
        if decision:
            self._busy[name] = asyncio.create_task(self._write(decision, wake), name=f"write Gateway {name}")

    def _without_quarrels(self, decision: Decision) -> Decision:
        if not decision.keys:
            return decision
        allowed = tuple(key for key in decision.keys if self._quarrels.allow(decision.name, key[0], self._wall()))
        held = self._view.gateways.get(decision.name)
        left = [node for node, key in decision.keys if (node, key) not in allowed]
        if not left or held is None:
            return decision
        message = f"the public key of node {left[0]} is overwritten again and again: do two agents run there?"
        notice = EventNotice(subject(held), "KeyContested", message, warning=True)
        told = () if decision.name in self._contested else (notice,)
        self._contested.add(decision.name)
        return replace(decision, keys=allowed, notices=(*decision.notices, *told))

    async def _write(self, decision: Decision, wake: Callable[[], None]) -> None:
        name = decision.name
        try:
            async with self._slots:
                await self._writer.carry_out(decision)
            self._backoffs.pop(name, None)
            self.failing.pop(name, None)
        except NotLeading:
            # The Lease may be ours again before anybody noticed that it was not: nothing decided is forgotten.
            self._retry(name, 1.0, wake)
        except ApiError as error:
            stale = error.status == 409
            if not stale:
                log.warning("Gateway %s: %s", name, error)
                self.failing[name] = str(error)
            backoff = self._backoffs.setdefault(name, Backoff(self._draw, first=0.2 if stale else 1.0))
            self._retry(name, backoff.delay(error.retry_after or 0.05), wake)
        except Exception:
            self._defect(name)
        finally:
            self._busy.pop(name, None)
            if name in self._again:
                self._again.discard(name)
                self._view.touched.add(name)
                wake()

    def _retry(self, name: str, after: float, wake: Callable[[], None]) -> None:
        def again() -> None:
            self._waiting.pop(name, None)
            self._view.touched.add(name)
            wake()

        if name in self._waiting:
            self._waiting[name].cancel()
        self._waiting[name] = asyncio.get_running_loop().call_later(after, again)


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[i : i + CHUNK] for i in range(0, len(names), CHUNK))
