"""Bring a host to the wanted state: observe, diff, execute. The one place of the agent that changes the host.

Synchronous; the agent calls it through `asyncio.to_thread`, one call at a time.
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
from ravenvpn.node import nft, sysctl
from ravenvpn.node.conntrack import Rebinding
from ravenvpn.node.discovery import HostFacts, look
from ravenvpn.node.execute import Execution, OperationFailure
from ravenvpn.node.host_diff import assumed, closes, diff
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.observe import ALL, HostPart, narrowed, observe
from ravenvpn.node.operations import HostDevice, LocalPrefixes, Observed, Operation, Verb
from ravenvpn.prefixes import PrefixSet

_NOTHING = HostState()


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What was changed, in order, and what was refused. `changed` is empty if the host was as it should be.

    `follow` are parts that have to be looked at because of it, where they were not asked for: what hangs on a device
    that was made anew. `rebinding` says which live flows are to be judged anew now, by `conntrack.forget`.
    """

    changed: tuple[Operation, ...] = ()
    failed: tuple[OperationFailure, ...] = ()
    follow: frozenset[HostPart] = frozenset()
    rebinding: Rebinding | None = field(default=None, compare=False)


class Host:
    """This host's network, as far as it is ours. One call at a time, from whichever thread.

    `state_file` remembers sysctls of devices that are not ours (`sysctl.Originals`).
    """

    def __init__(self, state_file: Path) -> None:
        self._pipe = NetlinkSocket()
        self._originals = sysctl.Originals(state_file)
        # Process ids of our latest writes to nf_tables: notifications about them carry one.
        self.nft_processes: deque[int] = deque(maxlen=64)
        # Elements of the filter's sets, since a delta holds only those that changed.
        self._local: frozenset[Prefix] = frozenset()
        self._foreign: frozenset[str] = frozenset()  # devices of others under our names, when last looked
        # What live flows are judged by. A process that was killed may have left them unjudged, so the first look does
        # not ask whether the filter is new.
        self._remote = PrefixSet()
        self._own_sources: frozenset[bytes] = frozenset()
        self._judged = False

    @property
    def port(self) -> int:
        """The netlink port of our route and rule changes: notifications about them carry it."""
        return self._pipe.port

    def close(self) -> None:
        self._pipe.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def observe(self, wanted: HostState = _NOTHING, parts: frozenset[HostPart] = ALL) -> Observed:
        """What is there of ours (see `observe.observe`)."""
        with LinkClient() as netlink:
            return observe(netlink, self._pipe, self._originals.load(), wanted, parts)

    def facts(
        self,
        destinations: Iterable[Address] = (),
        pods: Iterable[Prefix] = (),
        listen_port: int = DEFAULT_TUNNEL_PORT,
    ) -> HostFacts:
        """What planning wants to know of this host (see `facts`)."""
        with LinkClient() as netlink:
            return look(
                netlink,
                self._pipe,
                self._originals.load(),
                destinations=destinations,
                pods=pods,
                listen_port=listen_port,
            )

    def apply(self, wanted: HostState, parts: frozenset[HostPart] = ALL) -> ApplyResult:
        """Look at everything of ours, or at some parts, and bring it to `wanted`.

        What `wanted` says of other parts is not read, but for our two devices, which everything else hangs on.
        """
        if HostPart.FILTER in parts:
            self._local = frozenset(wanted.packet_filter.local) if wanted.packet_filter is not None else frozenset()
            self._know_sources(wanted.packet_filter)
        if HostPart.ROUTES in parts:
            self._remote = PrefixSet(route.prefix for route in wanted.routes if closes(route))
        wanted = narrowed(wanted, parts)
        remembered, unreadable = self._remembered() if HostPart.DEVICES in parts else ({}, ())
        with LinkClient() as netlink:
            observed = observe(netlink, self._pipe, remembered, wanted, parts)
            self._foreign = frozenset(observed.foreign)
            result = self._execute(diff(observed, wanted), netlink)
        hanging = frozenset((HostPart.DEVICES, HostPart.ROUTES)) if any(map(_shakes, result.changed)) else frozenset()
        if not self._judged and parts >= {HostPart.ROUTES, HostPart.FILTER}:
            self._judged = True
            result = replace(result, rebinding=self._rebinding(self._remote))
        return replace(result, failed=(*unreadable, *result.failed), follow=hanging - parts)

    def apply_delta(self, delta: HostDelta, wanted: Callable[[], HostState]) -> ApplyResult:
        """Make a planned change, at the price of the change. The host has to be as it was planned before.

        Nothing is observed, so after a failure or a change by others `apply` is due. Our devices and addresses are
        the exception: where they change `wanted` is asked for the whole, and everything is looked at.
        """
        added, removed = delta.added, delta.removed
        if any((added.tun, added.vxlan, added.addresses, removed.tun, removed.vxlan, removed.addresses)):
            return self.apply(wanted())
        added, removed = self._with_whole_filter(delta)
        observed = assumed(removed)
        if removed.sysctls:
            gone = {item.key for item in removed.sysctls}
            observed.remembered = {key: entry for key, entry in self._remembered()[0].items() if key in gone}
        with LinkClient() as netlink:
            return self._execute(diff(observed, added), netlink)

    def cleanup(self) -> ApplyResult:
        """Remove everything of ours, found by its marks, and put back the sysctls of others' devices."""
        return self.apply(_NOTHING)

    def _execute(self, operations: Sequence[Operation], netlink: LinkClient) -> ApplyResult:
        execution = Execution(netlink, self._pipe, self._originals, self.nft_processes.append, self._foreign)
        execution.run(operations)
        return ApplyResult(
            tuple(execution.changed), tuple(execution.failed), rebinding=self._newly_bound(execution.changed)
        )

    def _remembered(self) -> tuple[dict[str, sysctl.Remembered], tuple[OperationFailure, ...]]:
        """What sysctls of others were before us. A file that can't be read is reported, and stops nothing else."""
        try:
            return self._originals.load(), ()
        except HostError as error:
            return {}, (OperationFailure(None, error),)

    def _with_whole_filter(self, delta: HostDelta) -> tuple[HostState, HostState]:
        """Both sides of a delta, with all local prefixes where it holds only those that changed, and with no filter
        where nothing about its table changed: remote prefixes are no part of that."""
        added, removed = delta.added, delta.removed
        new, old = added.packet_filter, removed.packet_filter
        before = self._local
        frame = new or old
        if delta.filter_replaced:
            self._local = frozenset(new.local) if new is not None else frozenset()
            self._know_sources(new)
            return added, removed
        self._local = before.difference(old.local if old is not None else ()).union(
            new.local if new is not None else ()
        )
        if frame is None or self._local == before:
            return replace(added, packet_filter=None), replace(removed, packet_filter=None)
        return (
            replace(added, packet_filter=replace(frame, local=tuple(self._local))),
            replace(removed, packet_filter=replace(frame, local=tuple(before))),
        )

    # Live flows.

    def _know_sources(self, packet_filter: PacketFilter | None) -> None:
        sources = packet_filter.own_sources if packet_filter is not None else ()
        self._own_sources = frozenset(address.packed for address in sources)

    def _newly_bound(self, changed: Iterable[Operation]) -> Rebinding | None:
        """Flows are judged anew when our chains or what they keep change, and those with a prefix that has just
        become remote. After a restart device routes come back too, but a fail-closed one is new only with its
        prefix."""
        filter_changed, fresh = False, PrefixSet()
        for operation in changed:
            thing = operation.thing
            if isinstance(thing, nft.Ruleset | LocalPrefixes):
                filter_changed = True
            elif isinstance(thing, Route) and closes(thing):
                if operation.verb is Verb.REMOVE:
                    self._remote.discard(thing.prefix)
                else:
                    self._remote.add(thing.prefix)
                    if operation.verb is Verb.ADD:
                        fresh.add(thing.prefix)
        return self._rebinding(self._remote | () if filter_changed else fresh)

    def _rebinding(self, remote: PrefixSet) -> Rebinding | None:
        return Rebinding(remote, self._own_sources, PrefixSet(self._local)) if remote else None


def _shakes(operation: Operation) -> bool:
    """Whether routes, or whatever else hangs on a device, may have gone with this change of it."""
    return isinstance(operation.thing, TunDevice | VxlanDevice | HostDevice | DeviceAddress)
