"""Level-triggered reconciler: apply each plan to the host, and repair what other programs change meanwhile.

The asyncio side of `Host`. Blocking work runs in a thread, one piece at a time. A notification of the kernel
(`watch`) makes the part it concerns due after a short delay, or a longer one while it flaps (`flapping`); the part
is then observed and brought to the plan. Refused changes are retried with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ravenvpn.backoff import Backoff
from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import HostDelta, HostState
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.execute import OperationFailure
from ravenvpn.node.flapping import FlapDetector, Flapping
from ravenvpn.node.flows import FlowChecker
from ravenvpn.node.format import format_object
from ravenvpn.node.host_events import (
    AddressesChanged,
    ChangeRefused,
    DeviceGone,
    FlappingDetected,
    FlowsRebound,
    HostEvent,
    Restored,
)
from ravenvpn.node.parts import ALL_PARTS, HostPart, part_of, parts_to_retry
from ravenvpn.node.watch import AddressChange, Change, ForeignChange, Watch

T = TypeVar("T")

RESYNC_INTERVAL = 600.0  # seconds between observations of everything, for changes without a notification
FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # seconds after a refused change, doubling


@dataclass(frozen=True, slots=True)
class WantedState:
    """The plan of the host, computed when it is needed: making the routes of a large world takes time."""

    whole: Callable[[], HostState]
    frame: Callable[[], HostState]  # without routes and without remote prefixes of the packet filter

    @classmethod
    def fixed(cls, state: HostState) -> WantedState:
        """Return a plan that is `state` in both forms."""
        return cls(lambda: state, lambda: state)


def _boot_clock() -> float:
    """Return seconds since boot, suspension included: what was due before a suspension is due after it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Reconciler:
    """Keep a `Host` at its plan from `start` to `stop`.

    Owned by one event loop, on which `on_event` is called. Every piece of work on the host holds one lock, so plans
    are applied in the order of the calls. Closing the host is the caller's, after `stop`.
    """

    def __init__(
        self, host: Host, on_event: Callable[[HostEvent], None], clock: Callable[[], float] = _boot_clock
    ) -> None:
        self._host, self._on_event, self._clock = host, on_event, clock
        self._watch = Watch(host.port, host.nft_processes)
        self._wanted: WantedState | None = None  # None before the first plan and after `cleanup`
        self._host_lock = asyncio.Lock()
        self._flap_detector = FlapDetector()
        self._due: dict[HostPart, float] = {}  # when to observe a part again, on `clock`
        # Programs seen changing a part since its last repair (an ordered set).
        self._programs: dict[HostPart, dict[str, None]] = {}
        self._wake = asyncio.Event()  # `_due` changed
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff(first=FIRST_RETRY, limit=LAST_RETRY)
        self._failed: tuple[OperationFailure, ...] = ()
        self._flows = FlowChecker(lambda count: on_event(FlowsRebound(count)))

    def start(self) -> None:
        """Begin to watch and to repair. Needs a running loop; raises HostError if the kernel cannot be watched."""
        self._watch.start(asyncio.get_running_loop(), self._on_changes)
        self._task = asyncio.create_task(self._repair_when_due(), name="keep host network")

    async def stop(self) -> None:
        """Stop repairing and wait for work under way. The host stays as it is."""
        self._watch.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._flows.stop()
        async with self._host_lock:  # a thread cannot be cancelled
            pass

    async def wait_stopped(self) -> None:
        """Return when repairing has stopped; raise the exception that stopped it, if it was not `stop`."""
        if self._task is not None:
            await asyncio.wait((self._task,))
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    @property
    def failed(self) -> tuple[OperationFailure, ...]:
        """Operations that the kernel refuses at present."""
        problem = self._flows.problem
        return self._failed if problem is None else (*self._failed, OperationFailure(None, problem))

    @property
    def flapping(self) -> list[Flapping]:
        """Objects that another program keeps reverting: the host is not reliably at its plan."""
        return self._flap_detector.flapping(self._clock())

    @property
    def pending(self) -> frozenset[HostPart]:
        """Parts that are due for observation: changed by others, or refused and to be retried."""
        return frozenset(self._due)

    async def run(self, function: Callable[[Host], T]) -> T:
        """Return `function(host)`, called in a thread when no other work on the host is under way."""
        async with self._host_lock:
            return await asyncio.to_thread(function, self._host)

    async def reconcile(self, wanted: WantedState) -> ApplyResult:
        """Observe everything, bring it to `wanted`, and keep it there. Raises HostError if reading fails."""
        async with self._host_lock:
            self._wanted = wanted
            return self._record(await asyncio.to_thread(self._host.apply, wanted.whole()), ALL_PARTS)

    async def reconcile_delta(self, delta: HostDelta, wanted: WantedState) -> ApplyResult:
        """Apply a change of the plan and keep the host at `wanted`, the plan that it leads to.

        While operations are refused the host is not what the delta starts from, and everything is observed instead.
        """
        async with self._host_lock:
            self._wanted = wanted
            if self._failed:
                return self._record(await asyncio.to_thread(self._host.apply, wanted.whole()), ALL_PARTS)
            result = await asyncio.to_thread(self._host.apply_delta, delta, wanted.whole)
            return self._record(result, frozenset())

    async def cleanup(self) -> ApplyResult:
        """Remove everything of ours, and repair nothing until the next plan."""
        async with self._host_lock:
            self._wanted = None
            self._due.clear()
            return await asyncio.to_thread(self._host.cleanup)

    def schedule(self, parts: Iterable[HostPart] = ALL_PARTS) -> None:
        """Have these parts observed and repaired soon; later while they flap."""
        now = self._clock()
        for part in parts:
            delayed = now + self._flap_detector.delay(part, now)
            self._due[part] = min(self._due.get(part, delayed), now + RESYNC_INTERVAL)
        self._wake.set()

    def _on_changes(self, changes: list[Change]) -> None:
        """Schedule the parts that notifications concern, and report addresses and deleted devices."""
        addresses = tuple(change for change in changes if isinstance(change, AddressChange))
        parts: set[HostPart] = set()
        for change in changes:
            if isinstance(change, ForeignChange):
                parts.add(change.part)
                if change.program:
                    self._programs.setdefault(change.part, {})[change.program] = None
                if change.deleted_device:
                    self._on_event(DeviceGone(change.deleted_device))
                if change.routes_lost:
                    parts.add(HostPart.ROUTES)
        if any(not address.present for address in addresses):
            # The kernel removes a deleted address from IPv6 routes that prefer it as source, without a notification.
            parts.add(HostPart.ROUTES)
        if parts and self._wanted is not None:
            self.schedule(parts)
        if addresses:
            self._on_event(AddressesChanged(addresses))

    async def _repair_when_due(self) -> None:
        """Repair parts when they are due, and everything every RESYNC_INTERVAL, until cancelled."""
        resynced = self._clock()
        while True:
            now = self._clock()
            next_due = min([*self._due.values(), resynced + RESYNC_INTERVAL])
            self._wake.clear()  # before waiting, so that no `schedule` from now on is missed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_due - now, 0.0)):
                    await self._wake.wait()
            now = self._clock()
            if now >= resynced + RESYNC_INTERVAL:
                resynced = now
                parts = ALL_PARTS
            else:
                parts = frozenset(part for part, due in self._due.items() if due <= now)
            # Before the repair: a notification that comes during it makes the part due again.
            for part in parts:
                self._due.pop(part, None)
            if parts and self._wanted is not None:
                await self._repair(parts)

    async def _repair(self, parts: frozenset[HostPart]) -> None:
        """Observe parts, bring them to the plan, and report what was restored, flaps or is refused."""
        async with self._host_lock:
            if self._wanted is None:  # `cleanup` came first
                return
            wanted = self._wanted
            refused_before = set(map(str, self._failed))  # compared as text: a retry makes new objects
            result = self._record(await self._apply(wanted, parts), parts)
            # A recreated device took its addresses and routes with it: restore them in the same repair.
            if result.affected:
                further = self._record(await self._apply(wanted, result.affected), result.affected)
                result = ApplyResult(result.changed + further.changed, result.failed + further.failed)
                parts |= frozenset(map(part_of, further.changed))
        now, restored = self._clock(), result.changed
        # The plan did not change, so every object that had to be restored was changed by another program.
        for part in parts:
            descriptions = [format_object(operation.target) for operation in restored if part_of(operation) is part]
            programs = tuple(self._programs.pop(part, {}))
            if descriptions:
                self._flap_detector.record_repairs(part, descriptions, programs, now)
                self._on_event(Restored(tuple(descriptions), programs))
        # Reported with each repair of a flapping object, so that the log shows that it goes on.
        flapping = tuple(one for one in self._flap_detector.flapping(now) if one.part in parts)
        if flapping and restored:
            delay = max(self._flap_detector.delay(one.part, now) for one in flapping)
            self._on_event(FlappingDetected(flapping, delay))
        # Refusals that were known before are being retried; only new ones are reported.
        if not refused_before.issuperset(map(str, result.failed)):
            self._on_event(ChangeRefused(result.failed))

    async def _apply(self, wanted: WantedState, parts: frozenset[HostPart]) -> ApplyResult:
        """Apply the plan to some parts in a thread; a HostError becomes a failure that is retried."""
        # Making the routes of a large world takes longer than everything else that is repaired.
        state = wanted.whole() if HostPart.ROUTES in parts else wanted.frame()
        try:
            return await asyncio.to_thread(self._host.apply, state, parts)
        except HostError as error:
            return ApplyResult(failed=(OperationFailure(None, error),))

    def _record(self, result: ApplyResult, parts: frozenset[HostPart]) -> ApplyResult:
        """Keep what was refused and schedule its retry; return `result`.

        `parts` are those that were observed. Earlier failures of other parts stand, since nothing new is known.
        """
        unobserved = tuple(one for one in self._failed if not parts_to_retry(one.operation) <= parts)
        self._failed = (*unobserved, *result.failed)
        self._flows.schedule(result.flow_check)
        # One back-off for all parts: a refusal usually has one cause, such as a missing device.
        if result.failed:
            due = self._clock() + self._backoff.delay()
            for part in frozenset[HostPart]().union(*(parts_to_retry(one.operation) for one in result.failed)):
                self._due[part] = min(self._due.get(part, due), due)
            self._wake.set()
        elif not self._failed:
            self._backoff.reset()
        return result
