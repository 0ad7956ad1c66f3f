"""The host's side of the agent: a Keeper that keeps it as planned, and what there is to say about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ravenvpn.agent.reports import PlanLine, ProblemReport
from ravenvpn.mesh.hoststate import Address, HostDelta, HostState, Prefix
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.discovery import LocalAddress
from ravenvpn.node.format import counted, words
from ravenvpn.node.host_diff import diff
from ravenvpn.node.operations import Verb
from ravenvpn.node.reconciler import (
    AddressesChanged,
    ChangeRefused,
    DeviceGone,
    Event,
    FlappingDetected,
    FlowsRebound,
    Reconciler,
    Restored,
    WantedState,
)

log = logging.getLogger(__name__)

_CHANGE = {Verb.ADD: "+", Verb.CHANGE: "~", Verb.REMOVE: "-"}
_LOGGED = 10  # failures of one change; the rest is in `raven-vpn status`


class HostKeeper:
    """Opens the host (HostError without root's powers); `start` and `stop` belong on the loop."""

    def __init__(
        self, state_file: Path, on_addresses: Callable[[], None], on_device_gone: Callable[[str], None]
    ) -> None:
        self._host = Host(state_file)
        self._keeper = Reconciler(self._host, self._told)
        self._on_addresses, self._on_device_gone = on_addresses, on_device_gone
        self._known = False  # whether a whole plan was applied, so that deltas may follow
        self.applied_at: float | None = None  # Unix seconds
        self.addresses: tuple[LocalAddress, ...] = ()  # of this host, when last looked

    def start(self) -> None:
        self._keeper.start()

    async def stop(self) -> None:
        """Leave the host as it is."""
        await self._keeper.stop()
        self._host.close()

    async def ended(self) -> None:
        """Return when the keeper has stopped; raise what stopped it, if that was not `stop`."""
        await self._keeper.ended()

    async def apply(
        self, delta: HostDelta, wanted: WantedState, *, whole: bool = False, began: float | None = None
    ) -> None:
        """Bring the host to the plan; what the kernel refuses is tried again, and told in `problems`.

        `whole`: something outside the plan changed what is there, such as a new TUN device: look at everything.
        `began`: when planning it did (monotonic), so that the log can say how long a change took to the kernel."""
        if whole or not self._known:
            self._note(await self._keeper.want(wanted), began)
            self._known = True
        elif delta:
            self._note(await self._keeper.change(delta, wanted), began)

    async def cleanup(self) -> None:
        self._note(await self._keeper.cleanup())

    async def facts(self, destinations: Iterable[Address], pods: Iterable[Prefix], listen_port: int) -> LocalFacts:
        """What planning wants to know of this host."""
        found = await self._keeper.look(lambda host: host.facts(destinations, pods, listen_port))
        self.addresses = found.addresses
        return found.local()

    async def differences(self, wanted: HostState) -> list[PlanLine]:
        """What looking at everything and applying `wanted` would change right now."""
        operations = await self._keeper.look(lambda host: diff(host.observe(wanted), wanted))
        return [PlanLine(what=words(item.thing), why=item.reason, change=_CHANGE[item.verb]) for item in operations]

    @property
    def missing(self) -> int:
        """How much of ours the host does not have, as far as is known: refused, undone, or fought over."""
        return max(len(self._keeper.failed), len(self._keeper.fights), len(self._keeper.disturbed))

    @property
    def problems(self) -> list[ProblemReport]:
        refused = [
            ProblemReport(
                kind="host",
                where=words(failure.operation.thing) if failure.operation else "looking",
                message=str(failure.error),
            )
            for failure in self._keeper.failed
        ]
        fights = [
            ProblemReport(
                kind="host",
                where=fight.what,
                message=f"was undone {fight.times} times" + (f" by {', '.join(fight.by)}" if fight.by else ""),
                remedy="find the program that does it; until then repairs come ever slower",
            )
            for fight in self._keeper.fights
        ]
        return [*refused, *fights]

    # Inside.

    def _note(self, result: ApplyResult, began: float | None = None) -> None:
        self.applied_at = time.time()
        if result.changed:
            took = {} if began is None else {"seconds": round(time.monotonic() - began, 4)}
            log.info("host: %s", counted(result.changed), extra=took)
        for failure in result.failed[:_LOGGED]:
            log.warning("host: %s", failure)

    def _told(self, event: Event) -> None:
        match event:
            case AddressesChanged():
                self._on_addresses()
            case DeviceGone(name=name):
                log.warning("device %s was deleted", name)
                self._on_device_gone(name)
            case Restored(things=things, by=by):
                who = f" by {', '.join(by)}" if by else ""
                log.warning("put back what was changed on this host%s: %s", who, "; ".join(things[:_LOGGED]))
            case FlappingDetected(fights=fights, delay=delay):
                log.error("%s keeps being undone; next repair in %.0f s", fights[0].what, delay)
            case FlowsRebound(count=count):
                log.info(
                    "%d live flows had another source than they get now: the next packet of each chooses anew", count
                )
            case ChangeRefused(failed=failed):
                log.warning("host: %s", failed[0])
