"""Async face of `node`: discover this host, bring it to the plan, and report what could not be done.

The kernel is reached by blocking netlink calls, which the `Reconciler` makes in a thread; the event loop only waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ravenvpn.agent.reports import PlanLine, ProblemReport
from ravenvpn.mesh.hoststate import Address, HostDelta, HostState, Prefix
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.reason import code_of, explain
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.discovery import LocalAddress
from ravenvpn.node.format import format_counts, format_object
from ravenvpn.node.host_diff import required_operations
from ravenvpn.node.host_events import (
    AddressesChanged,
    ChangeRefused,
    DeviceGone,
    FlappingDetected,
    FlowsRebound,
    HostEvent,
    Restored,
)
from ravenvpn.node.operations import Verb
from ravenvpn.node.reconciler import Reconciler, WantedState

log = logging.getLogger(__name__)

_CHANGE = {Verb.ADD: "+", Verb.CHANGE: "~", Verb.REMOVE: "-"}  # as PlanLine.change has them
_LOGGED = 10  # failures of one change that are logged; `raven-vpn status` has all of them


class HostKeeper:
    """This host's network, kept as planned.

    Opening it raises HostError without CAP_NET_ADMIN. `state_file` holds the values that sysctls of other programs'
    devices had before. The two callbacks run on the loop: `on_addresses` after an address of this host came or went,
    `on_device_gone` with the name of a device of ours that another program deleted.
    """

    def __init__(
        self, state_file: Path, on_addresses: Callable[[], None], on_device_gone: Callable[[str], None]
    ) -> None:
        self._host = Host(state_file)
        self._reconciler = Reconciler(self._host, self._on_event)
        self._on_addresses, self._on_device_gone = on_addresses, on_device_gone
        self._has_plan = False  # a whole plan was applied, so that differences to it may follow
        self.applied_at: float | None = None  # Unix seconds of the last change, whether it succeeded or not
        self.addresses: tuple[LocalAddress, ...] = ()  # of this host, as of the last `discover`

    def start(self) -> None:
        """Begin to watch the kernel and to repair. Needs a running loop."""
        self._reconciler.start()

    async def stop(self) -> None:
        """Stop repairing and close the netlink sockets; everything on the host stays as it is."""
        await self._reconciler.stop()
        self._host.close()

    async def ended(self) -> None:
        """Return when repairing has stopped; raise the exception that stopped it, if it was not `stop`."""
        await self._reconciler.wait_stopped()

    async def apply(
        self, delta: HostDelta, wanted: WantedState, *, whole: bool = False, began: float | None = None
    ) -> None:
        """Bring the host to the plan. A change that the kernel refuses is retried and listed in `problems`.

        `delta` is what the plan changed, `wanted` makes the whole of it. `whole` compares everything with the kernel,
        for when something else changed the host, such as a new TUN device. `began` is when planning started
        (time.monotonic), so that the log shows how long a change took to reach the kernel."""
        # A difference is applied to the plan before, so the first plan after the start is always applied as a whole.
        if whole or not self._has_plan:
            self._log_result(await self._reconciler.reconcile(wanted), began)
            self._has_plan = True
        elif delta:
            self._log_result(await self._reconciler.reconcile_delta(delta, wanted), began)

    async def add_rules(self, delta: HostDelta, wanted: WantedState) -> HostDelta:
        """Install the routing rules that `delta` adds, and return the rest of it, still to be applied.

        For a change of the tunnel's port: rules recognise outer packets by their source port, so they have to be
        there before the tunnel sends from the new one. Otherwise outer packets to a node whose addresses are routed
        into the tunnel (forward_node_ip) would enter the tunnel that they carry."""
        if not self._has_plan or not delta.added.rules:
            return delta
        self._log_result(
            await self._reconciler.reconcile_delta(HostDelta(HostState(rules=delta.added.rules)), wanted)
        )
        return replace(delta, added=replace(delta.added, rules=()))

    async def cleanup(self) -> None:
        """Remove everything of ours from the host and stop repairing it."""
        self._log_result(await self._reconciler.cleanup())

    async def discover(self, destinations: Iterable[Address], pods: Iterable[Prefix], port: int) -> LocalFacts:
        """Return what planning needs to know of this host.

        `destinations`: addresses whose route MTU is looked up; `pods`: prefixes whose devices are looked up; `port`:
        the tunnel's UDP port."""
        found = await self._reconciler.run(lambda host: host.discover(destinations, pods, port))
        self.addresses = found.addresses
        return found.local_facts()

    async def diff(self, wanted: HostState) -> list[PlanLine]:
        """Return what applying `wanted` would change now, after reading the kernel's state; changes nothing.

        Waits for its turn: a change that is being applied ends first."""
        operations = await self._reconciler.run(lambda host: required_operations(host.observe(wanted), wanted))
        return [
            PlanLine(
                what=format_object(item.target),
                why=explain(item.reason),
                code=code_of(item.reason),
                change=_CHANGE[item.verb],
            )
            for item in operations
        ]

    @property
    def missing(self) -> int:
        """Number of planned things that the host is known not to have: refused, undone, or flapping."""
        reconciler = self._reconciler
        return max(len(reconciler.failed), len(reconciler.flapping), len(reconciler.pending))

    @property
    def problems(self) -> list[ProblemReport]:
        """Changes that the kernel refuses, and things that another program keeps undoing."""
        refused = [
            ProblemReport(
                kind="host",
                where=format_object(failure.operation.target) if failure.operation else "reading the kernel's state",
                message=str(failure.error),
            )
            for failure in self._reconciler.failed
        ]
        undone = [
            ProblemReport(
                kind="host",
                where=one.description,
                message=f"was undone {one.times} times" + (f" by {', '.join(one.programs)}" if one.programs else ""),
                remedy="find the program that does it; until then the pause before each repair grows",
            )
            for one in self._reconciler.flapping
        ]
        return [*refused, *undone]

    # Inside.

    def _log_result(self, result: ApplyResult, began: float | None = None) -> None:
        """Log what was changed, in one line with the seconds it took as an extra field, and what was refused."""
        self.applied_at = time.time()
        if result.changed:
            took = {} if began is None else {"seconds": round(time.monotonic() - began, 4)}
            log.info("host: %s", format_counts(result.changed), extra=took)
        for failure in result.failed[:_LOGGED]:
            log.warning("host: %s", failure)

    def _on_event(self, event: HostEvent) -> None:
        """Log an event of the reconciler; pass on those that need a new plan or a new tunnel."""
        match event:
            case AddressesChanged():
                self._on_addresses()
            case DeviceGone(name=name):
                log.warning("device %s was deleted by another program", name)
                self._on_device_gone(name)
            case Restored(descriptions=descriptions, programs=programs):
                by = f" by {', '.join(programs)}" if programs else ""
                log.warning("host: restored what was changed%s: %s", by, "; ".join(descriptions[:_LOGGED]))
            case FlappingDetected(flapping=flapping, delay=delay):
                log.error(
                    "host: %s keeps being undone by another program; next repair in %.0f s",
                    flapping[0].description,
                    delay,
                )
            case FlowsRebound(count=count):
                log.info("host: %d live flows had another source address; their next packets are routed anew", count)
            case ChangeRefused(failed=failed):
                log.warning("host: %s", failed[0])
