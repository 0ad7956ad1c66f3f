"""Keeps the host as it is wanted: applies what is planned, and restores what others undo.

The asyncio shell of `Host`. The agent says what it wants; blocking work runs in a thread, one piece at a time. What
the kernel tells (`watch`) makes the touched part be looked at again after a short pause, a longer one in a fight
(`fights`). What was refused is tried again.
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
from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    HostDelta,
    HostState,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.execute import OperationFailure
from ravenvpn.node.flapping import FlapDetector, Flapping
from ravenvpn.node.flows import FlowJudge
from ravenvpn.node.format import words
from ravenvpn.node.neighbours import RTM_DELNEIGH
from ravenvpn.node.observe import ALL, HostPart
from ravenvpn.node.operations import HostDevice, Operation
from ravenvpn.node.rtnetlink import RTM_DELRULE, Stray
from ravenvpn.node.watch import AddressChange, Change, Disturbance, Watch

T = TypeVar("T")

LOOK_EVERY = 600.0  # seconds between looks at everything, for what no notification tells
FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # seconds after a refusal, doubling


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """Addresses of this host came or went: time to plan anew."""

    changes: tuple[AddressChange, ...]


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """One of our devices was deleted by somebody. The VXLAN is restored here; the TUN is for the daemon to reopen."""

    name: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What others had undone is back. `by`: programs, where the kernel names them."""

    things: tuple[str, ...]
    by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlappingDetected:
    """Another program keeps undoing things of ours; the next repair waits `delay` seconds."""

    fights: tuple[Flapping, ...]
    delay: float


@dataclass(frozen=True, slots=True)
class ChangeRefused:
    """A repair that the kernel refused, at least in part; it is tried again. Told once, not at every trial."""

    failed: tuple[OperationFailure, ...]


@dataclass(frozen=True, slots=True)
class FlowsRebound:
    """So many live flows had been bound to another source; their next packets are judged anew."""

    count: int


Event = AddressesChanged | DeviceGone | Restored | FlappingDetected | ChangeRefused | FlowsRebound


@dataclass(frozen=True, slots=True)
class WantedState:
    """What the host should look like, made when asked for. `frame` leaves out routes and remote prefixes, which in a
    large world are what takes time to make."""

    whole: Callable[[], HostState]
    frame: Callable[[], HostState]

    @classmethod
    def of(cls, state: HostState) -> WantedState:
        return cls(lambda: state, lambda: state)


class Reconciler:
    """Owns a `Host` from `start` to `stop`. `on_event` is called on the loop."""

    def __init__(
        self,
        host: Host,
        on_event: Callable[[Event], None],
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._host, self._on_event, self._clock = host, on_event, clock
        self._watch = Watch(host.port, host.nft_processes)
        self._wanted: WantedState | None = None
        self._one_at_a_time = asyncio.Lock()
        self._fights = FlapDetector()
        self._due: dict[HostPart, float] = {}  # when to look at a part again
        self._seen_by: dict[HostPart, dict[str, None]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff(first=FIRST_RETRY, limit=LAST_RETRY)
        self._failed: tuple[OperationFailure, ...] = ()
        self._flows = FlowJudge(lambda count: on_event(FlowsRebound(count)))

    def start(self) -> None:
        self._watch.start(asyncio.get_running_loop(), self._on_changes)
        self._task = asyncio.create_task(self._repair_when_due(), name="keep host network")

    async def stop(self) -> None:
        """Leave the host as it is."""
        self._watch.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._flows.stop()
        async with self._one_at_a_time:  # a thread at work can't be cancelled
            pass

    async def ended(self) -> None:
        """Return when repairing has stopped; raise the defect that stopped it."""
        if self._task is not None:
            await asyncio.wait((self._task,))
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    @property
    def failed(self) -> tuple[OperationFailure, ...]:
        """What the kernel refuses at present."""
        problem = self._flows.problem
        return self._failed if problem is None else (*self._failed, OperationFailure(None, problem))

    @property
    def fights(self) -> list[Flapping]:
        """Fights going on now: the host is not reliably as it is wanted."""
        return self._fights.current(self._clock())

    @property
    def disturbed(self) -> frozenset[HostPart]:
        """Parts that others have touched and that are still to be looked at, or that were refused."""
        return frozenset(self._due)

    async def look(self, read: Callable[[Host], T]) -> T:
        """Have something read from the host, in its turn."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(read, self._host)

    async def want(self, wanted: WantedState) -> ApplyResult:
        """Look at everything and bring it to `wanted`, from now on."""
        async with self._one_at_a_time:
            self._wanted = wanted
            return self._noted(await asyncio.to_thread(self._host.apply, wanted.whole()), ALL)

    async def change(self, delta: HostDelta, wanted: WantedState) -> ApplyResult:
        """Make a planned change. `wanted` gives the whole that it leads to, when that is needed."""
        async with self._one_at_a_time:
            self._wanted = wanted
            if self._failed:  # the host is not what the delta starts from
                return self._noted(await asyncio.to_thread(self._host.apply, wanted.whole()), ALL)
            return self._noted(await asyncio.to_thread(self._host.apply_delta, delta, wanted.whole), frozenset())

    async def cleanup(self) -> ApplyResult:
        """Remove everything of ours and want nothing from now on."""
        async with self._one_at_a_time:
            self._wanted = None
            self._due.clear()
            return await asyncio.to_thread(self._host.cleanup)

    def look_again(self, parts: Iterable[HostPart] = ALL) -> None:
        """Have these parts looked at and mended soon."""
        now = self._clock()
        for part in parts:
            self._due[part] = min(self._due.get(part, now + self._fights.delay(part, now)), now + LOOK_EVERY)
        self._wake.set()

    def _on_changes(self, changes: list[Change]) -> None:
        addresses = tuple(change for change in changes if isinstance(change, AddressChange))
        parts: set[HostPart] = set()
        for change in changes:
            if isinstance(change, Disturbance):
                parts.add(change.part)
                if change.by:
                    self._seen_by.setdefault(change.part, {})[change.by] = None
                if change.gone:
                    self._on_event(DeviceGone(change.gone))
                if change.routes_lost:
                    parts.add(HostPart.ROUTES)
        if any(not address.present for address in addresses):
            parts.add(HostPart.ROUTES)  # those of IPv6 lose a preferred source that is gone; nothing tells
        if parts and self._wanted is not None:
            self.look_again(parts)
        if addresses:
            self._on_event(AddressesChanged(addresses))

    async def _repair_when_due(self) -> None:
        looked = self._clock()
        while True:
            now = self._clock()
            next_due = min([*self._due.values(), looked + LOOK_EVERY])
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_due - now, 0.0)):
                    await self._wake.wait()
            now = self._clock()
            if now >= looked + LOOK_EVERY:
                looked = now
                parts = ALL
            else:
                parts = frozenset(part for part, due in self._due.items() if due <= now)
            for part in parts:
                self._due.pop(part, None)
            if parts and self._wanted is not None:
                await self._repair(parts)

    async def _repair(self, parts: frozenset[HostPart]) -> None:
        async with self._one_at_a_time:
            if self._wanted is None:
                return
            wanted = self._wanted
            refused_before = set(map(str, self._failed))
            result = self._noted(await self._apply(wanted, parts), parts)
            if result.follow:
                further = self._noted(await self._apply(wanted, result.follow), result.follow)
                result = ApplyResult(result.changed + further.changed, result.failed + further.failed)
                parts |= frozenset(map(_part, further.changed))
        now, restored = self._clock(), result.changed
        for part in parts:
            things = [words(operation.thing) for operation in restored if _part(operation) is part]
            by = tuple(self._seen_by.pop(part, {}))
            if things:
                self._fights.restored(part, things, by, now)
                self._on_event(Restored(tuple(things), by))
        fights = tuple(fight for fight in self._fights.current(now) if fight.part in parts)
        if fights and restored:
            self._on_event(FlappingDetected(fights, max(self._fights.delay(fight.part, now) for fight in fights)))
        if not refused_before.issuperset(map(str, result.failed)):
            self._on_event(ChangeRefused(result.failed))

    async def _apply(self, wanted: WantedState, parts: frozenset[HostPart]) -> ApplyResult:
        state = wanted.whole() if HostPart.ROUTES in parts else wanted.frame()
        try:
            return await asyncio.to_thread(self._host.apply, state, parts)
        except HostError as error:
            return ApplyResult(failed=(OperationFailure(None, error),))

    def _noted(self, result: ApplyResult, parts: frozenset[HostPart]) -> ApplyResult:
        """Remember what was refused, and try that again later. Of parts that were not looked at nothing is new."""
        known = tuple(failure for failure in self._failed if not _parts(failure) <= parts)
        self._failed = (*known, *result.failed)
        self._flows.judge(result.rebinding)
        if result.failed:
            due = self._clock() + self._backoff.delay()
            for part in frozenset[HostPart]().union(*map(_parts, result.failed)):
                self._due[part] = min(self._due.get(part, due), due)
            self._wake.set()
        elif not self._failed:
            self._backoff.reset()
        return result


def _parts(failure: OperationFailure) -> frozenset[HostPart]:
    """What to look at again after a refusal."""
    if failure.operation is None:
        return ALL
    part = _part(failure.operation)
    return frozenset((part, HostPart.ROUTES)) if part is HostPart.DEVICES else frozenset((part,))


def _part(operation: Operation) -> HostPart:
    match operation.thing:
        case Route():
            return HostPart.ROUTES
        case Rule():
            return HostPart.RULES
        case Stray(deletion=deletion):
            return {RTM_DELRULE: HostPart.RULES, RTM_DELNEIGH: HostPart.DEVICES}.get(deletion, HostPart.ROUTES)
        case (
            TunDevice() | VxlanDevice() | HostDevice() | DeviceAddress() | Neighbour() | ForwardingEntry() | Sysctl()
        ):
            return HostPart.DEVICES
        case _:
            return HostPart.FILTER
