"""`Host`: bring this host to a planned state (observe, diff, execute). The only part of the agent that changes it.

Blocking; `reconciler` calls it through `asyncio.to_thread`, one call at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    Address,
    DeviceAddress,
    HostDelta,
    HostState,
    PacketFilter,
    Prefix,
    Route,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT
from ravenvpn.node import sysctl
from ravenvpn.node.conntrack import FlowCheck
from ravenvpn.node.discovery import HostFacts, discover_host
from ravenvpn.node.execute import Executor, OperationFailure
from ravenvpn.node.host_diff import expected_state, is_fail_closed, required_operations
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.nft_ruleset import Ruleset
from ravenvpn.node.observe import observe
from ravenvpn.node.operations import ObservedState, Operation, OwnedDevice, SetElements, Verb
from ravenvpn.node.parts import ALL_PARTS, HostPart, restrict
from ravenvpn.prefixes import PrefixSet

_NOTHING = HostState()
_NFT_PROCESSES_KEPT = 64  # more than run between a write and the arrival of its notification


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """Outcome of one pass over the host."""

    changed: tuple[Operation, ...] = ()  # in order; empty if the host was as planned
    failed: tuple[OperationFailure, ...] = ()
    # Parts outside the pass that its changes may have altered: what depends on a device that was recreated.
    affected: frozenset[HostPart] = frozenset()
    flow_check: FlowCheck | None = field(default=None, compare=False)  # live flows to check now (`flows`)


class Host:
    """The part of this host's network that is ours. One call at a time, from any thread.

    Every method blocks. A refused change is in the result's `failed`; HostError is raised where the state cannot be
    read at all.
    """

    def __init__(self, state_file: Path) -> None:
        """`state_file` is the journal of sysctls on devices of others (`sysctl.SysctlJournal`)."""
        self._netlink = NetlinkSocket()
        self._journal = sysctl.SysctlJournal(state_file)
        # Process ids of our latest writes to nf_tables: notifications about them carry one.
        self.nft_processes: deque[int] = deque(maxlen=_NFT_PROCESSES_KEPT)
        # All local prefixes of the filter in force, since a delta holds only those that changed.
        self._local: frozenset[Prefix] = frozenset()
        self._foreign: frozenset[str] = frozenset()  # our device names taken by others, as of the last observation
        # The facts by which live flows are checked.
        self._remote = PrefixSet()  # prefixes with a fail-closed route
        self._own_sources: frozenset[bytes] = frozenset()  # packed
        # A process that was killed may have left flows unchecked, so the first whole pass checks all flows even if it
        # finds the filter in place.
        self._all_checked = False

    @property
    def port(self) -> int:
        """Netlink port of our changes of routes, rules and neighbours; notifications about them carry it."""
        return self._netlink.port

    def close(self) -> None:
        """Close the netlink socket; the host stays as it is."""
        self._netlink.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def observe(self, wanted: HostState = _NOTHING, parts: frozenset[HostPart] = ALL_PARTS) -> ObservedState:
        """Return the state of this host in the terms of the plan `wanted` (see `observe.observe`)."""
        with LinkClient() as links:
            return observe(links, self._netlink, self._journal.load(), wanted, parts)

    def discover(
        self,
        destinations: Iterable[Address] = (),
        pods: Iterable[Prefix] = (),
        listen_port: int = DEFAULT_TUNNEL_PORT,
    ) -> HostFacts:
        """Return the facts that planning needs (see `discovery.discover_host`)."""
        with LinkClient() as links:
            return discover_host(
                links,
                self._netlink,
                self._journal.load(),
                destinations=destinations,
                pods=pods,
                listen_port=listen_port,
            )

    def apply(self, wanted: HostState, parts: frozenset[HostPart] = ALL_PARTS) -> ApplyResult:
        """Observe these parts of the host and bring them to `wanted`.

        `wanted` may leave out other parts; its two devices are read in any case, since everything depends on them.
        """
        # Facts for later deltas and for the check of live flows, before the plan is cut down to the parts.
        if HostPart.FILTER in parts:
            self._remember_filter(wanted.packet_filter)
        if HostPart.ROUTES in parts:
            self._remote = PrefixSet(route.prefix for route in wanted.routes if is_fail_closed(route))
        wanted = restrict(wanted, parts)
        saved, unreadable = self._saved_sysctls() if HostPart.DEVICES in parts else ({}, ())
        with LinkClient() as links:
            observed = observe(links, self._netlink, saved, wanted, parts)
            self._foreign = frozenset(observed.foreign)
            result = self._execute(required_operations(observed, wanted), links)
        dependent = (
            frozenset((HostPart.DEVICES, HostPart.ROUTES))
            if any(map(_changes_device, result.changed))
            else frozenset[HostPart]()
        )
        if not self._all_checked and parts >= {HostPart.ROUTES, HostPart.FILTER}:
            self._all_checked = True
            result = replace(result, flow_check=self._flow_check(self._remote))
        return replace(result, failed=(*unreadable, *result.failed), affected=dependent - parts)

    def apply_delta(self, delta: HostDelta, wanted: Callable[[], HostState]) -> ApplyResult:
        """Apply a change of the plan at a cost proportional to the change.

        Nothing is observed, so the host must be as the plan before had it; after a failure or a change by another
        program call `apply`. Where our devices or their addresses change, `wanted` is called for the whole plan, and
        everything is observed.
        """
        added, removed = delta.added, delta.removed
        if any((added.tun, added.vxlan, added.addresses, removed.tun, removed.vxlan, removed.addresses)):
            return self.apply(wanted())
        added, removed = self._complete_filter(delta)
        # The old values of what changes stand in for an observation; `added` is then all that is planned.
        observed = expected_state(removed)
        if removed.sysctls:
            keys = {item.key for item in removed.sysctls}
            observed.saved_sysctls = {key: entry for key, entry in self._saved_sysctls()[0].items() if key in keys}
        with LinkClient() as links:
            return self._execute(required_operations(observed, added), links)

    def cleanup(self) -> ApplyResult:
        """Remove everything that carries our marks, and restore the sysctls of devices of others."""
        return self.apply(_NOTHING)

    def _execute(self, operations: Sequence[Operation], links: LinkClient) -> ApplyResult:
        executor = Executor(links, self._netlink, self._journal, self.nft_processes.append, self._foreign)
        executor.run(operations)
        return ApplyResult(
            tuple(executor.changed), tuple(executor.failed), flow_check=self._flows_to_check(executor.changed)
        )

    def _saved_sysctls(self) -> tuple[dict[str, sysctl.SavedSysctl], tuple[OperationFailure, ...]]:
        """Return the journal. An unreadable file is a failure that is reported and does not stop the rest."""
        try:
            return self._journal.load(), ()
        except HostError as error:
            return {}, (OperationFailure(None, error),)

    def _complete_filter(self, delta: HostDelta) -> tuple[HostState, HostState]:
        """Return both sides of a delta with the complete packet filter, or without one if the nft table stays as is.

        Where the delta holds only the local prefixes that changed, all of them are filled in. Remote prefixes are no
        part of the table.
        """
        added, removed = delta.added, delta.removed
        new, old = added.packet_filter, removed.packet_filter
        before = self._local
        if delta.filter_replaced:
            self._remember_filter(new)
            return added, removed
        self._local = before.difference(old.local if old is not None else ()).union(
            new.local if new is not None else ()
        )
        # A side without changed elements is None; then both sides have the same VXLAN sources.
        after_frame, before_frame = new or old, old or new
        if (
            after_frame is None
            or before_frame is None
            or (self._local == before and after_frame.vxlan_sources == before_frame.vxlan_sources)
        ):
            return replace(added, packet_filter=None), replace(removed, packet_filter=None)
        return (
            replace(added, packet_filter=replace(after_frame, local=tuple(self._local))),
            replace(removed, packet_filter=replace(before_frame, local=tuple(before))),
        )

    # Live flows.

    def _remember_filter(self, packet_filter: PacketFilter | None) -> None:
        """Keep what later deltas and the check of live flows need of a whole filter."""
        kept = packet_filter or PacketFilter()
        self._local = frozenset(kept.local)
        self._own_sources = frozenset(address.packed for address in kept.own_sources)

    def _flows_to_check(self, changed: Iterable[Operation]) -> FlowCheck | None:
        """Return which flows may be misbound because of these changes; update the set of remote prefixes.

        All flows with remote prefixes if our chains or the local prefixes changed, else those with a prefix that has
        just become remote. A new fail-closed route marks such a prefix: device routes also come back after a restart.
        """
        filter_changed, fresh = False, PrefixSet()
        for operation in changed:
            target = operation.target
            if isinstance(target, Ruleset | SetElements):
                filter_changed = True
            elif isinstance(target, Route) and is_fail_closed(target):
                if operation.verb is Verb.REMOVE:
                    self._remote.discard(target.prefix)
                else:
                    self._remote.add(target.prefix)
                    if operation.verb is Verb.ADD:
                        fresh.add(target.prefix)
        return self._flow_check(self._remote | () if filter_changed else fresh)

    def _flow_check(self, remote: PrefixSet) -> FlowCheck | None:
        return FlowCheck(remote, self._own_sources, PrefixSet(self._local)) if remote else None


def _changes_device(operation: Operation) -> bool:
    """Return whether routes, or other objects on a device, may have gone with this change of it."""
    return isinstance(operation.target, TunDevice | VxlanDevice | OwnedDevice | DeviceAddress)
