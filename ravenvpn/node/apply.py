"""Bring a host to the wanted state: observe, diff, execute. The one place of the agent that changes the host.

Synchronous; the agent calls it through `asyncio.to_thread`, one call at a time. One refused change stops nothing
else: it is reported, with its reason, beside what was changed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    Address,
    DeviceAddress,
    ForwardingEntry,
    HostDelta,
    HostState,
    Neighbour,
    Prefix,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node import conntrack, nft, rtnetlink, sysctl
from ravenvpn.node.delta import between
from ravenvpn.node.diff import assumed, diff
from ravenvpn.node.facts import HostFacts, look
from ravenvpn.node.netlink import Netlink
from ravenvpn.node.observe import ALL, Part, observe, underlay
from ravenvpn.node.operations import Device, Filter, LocalPrefixes, MisboundFlows, Observed, Operation, Verb
from ravenvpn.node.pipe import Pipe, Reply
from ravenvpn.node.reasons import host_error
from ravenvpn.node.rtnetlink import Stray
from ravenvpn.node.words import words

_NOTHING = HostState()


@dataclass(frozen=True, slots=True)
class Failure:
    """What was refused, with the kernel's reason; no operation if it was the looking."""

    operation: Operation | None
    error: HostError

    def __str__(self) -> str:
        return f"{self.operation.verb} {self.error}" if self.operation is not None else str(self.error)


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What was changed, in order, and what was refused. `changed` is empty if the host was as it should be."""

    changed: tuple[Operation, ...] = ()
    failed: tuple[Failure, ...] = ()


class Host:
    """This host's network, as far as it is ours. One call at a time, from whichever thread.

    `state_file` remembers sysctls of devices that are not ours (`sysctl.Originals`).
    """

    def __init__(self, state_file: Path) -> None:
        self._pipe = Pipe()
        self._originals = sysctl.Originals(state_file)
        # Process ids of our latest writes to nf_tables: notifications about them carry one.
        self.nft_processes: deque[int] = deque(maxlen=64)
        # Elements of the filter's sets, since a delta holds only those that changed.
        self._local: set[Prefix] = set()

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

    def observe(self, wanted: HostState = _NOTHING, parts: frozenset[Part] = ALL) -> Observed:
        """What is there of ours (see `observe.observe`)."""
        with Netlink() as netlink:
            return observe(netlink, self._pipe, self._originals.load(), wanted, parts)

    def facts(
        self, destinations: Iterable[Address] = (), pods: Iterable[Prefix] = (), listen_port: int = 4500
    ) -> HostFacts:
        """What planning wants to know of this host (see `facts`)."""
        with Netlink() as netlink:
            return look(
                netlink,
                self._pipe,
                self._originals.load(),
                destinations=destinations,
                pods=pods,
                listen_port=listen_port,
            )

    def apply(self, wanted: HostState, parts: frozenset[Part] = ALL) -> ApplyResult:
        """Look at everything of ours, or at some parts, and bring it to `wanted`."""
        self._local = set(wanted.packet_filter.local) if wanted.packet_filter is not None else set()
        remembered, unreadable = self._remembered()
        with Netlink() as netlink:
            observed = observe(netlink, self._pipe, remembered, wanted, parts)
            result = self._execute(diff(observed, wanted), wanted, netlink)
        return replace(result, failed=(*unreadable, *result.failed))

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
        with Netlink() as netlink:
            return self._execute(diff(observed, added), added, netlink)

    def apply_changes(self, previous: HostState, wanted: HostState) -> ApplyResult:
        """`apply_delta` between two whole states; fast where they share what did not change."""
        self._local = set(previous.packet_filter.local) if previous.packet_filter is not None else set()
        return self.apply_delta(between(previous, wanted), lambda: wanted)

    def cleanup(self) -> ApplyResult:
        """Remove everything of ours, found by its marks, and put back the sysctls of others' devices."""
        return self.apply(_NOTHING)

    def _remembered(self) -> tuple[dict[str, sysctl.Remembered], tuple[Failure, ...]]:
        """What sysctls of others were before us. A file that can't be read is reported, and stops nothing else."""
        try:
            return self._originals.load(), ()
        except HostError as error:
            return {}, (Failure(None, error),)

    def _with_whole_filter(self, delta: HostDelta) -> tuple[HostState, HostState]:
        """Both sides of a delta, with all local prefixes where it holds only those that changed."""
        added, removed = delta.added, delta.removed
        new, old = added.packet_filter, removed.packet_filter
        before = frozenset(self._local)
        if delta.filter_replaced:
            self._local = set(new.local) if new is not None else set()
            return added, removed
        frame = new or old
        if frame is None:
            return added, removed
        self._local -= set(old.local) if old is not None else set()
        self._local |= set(new.local) if new is not None else set()
        remote = new.remote if new is not None else ()
        return (
            replace(added, packet_filter=replace(frame, local=tuple(self._local), remote=remote)),
            replace(removed, packet_filter=replace(frame, local=tuple(before))),
        )

    def execute(self, operations: Sequence[Operation], wanted: HostState) -> ApplyResult:
        """Carry out operations that `diff` made for `wanted`."""
        with Netlink() as netlink:
            return self._execute(operations, wanted, netlink)

    def _execute(self, operations: Sequence[Operation], wanted: HostState, netlink: Netlink) -> ApplyResult:
        """Carry out the operations in their order; routes and rules that follow each other go as one batch."""
        changed: list[Operation] = []
        failed: list[Failure] = []
        indices = _indices()
        for batched, group in groupby(operations, key=lambda operation: isinstance(operation.thing, _BATCHED)):
            if batched:
                self._execute_batch(list(group), indices, changed, failed)
                continue
            for operation in group:
                try:
                    self._execute_one(operation, indices, wanted, netlink)
                except HostError as error:
                    failed.append(Failure(operation, error))
                else:
                    changed.append(operation)
        return ApplyResult(tuple(changed), tuple(failed))

    def _execute_batch(
        self,
        operations: list[Operation],
        indices: dict[str, int],
        changed: list[Operation],
        failed: list[Failure],
    ) -> None:
        messages: list[bytes] = []
        sent: list[Operation] = []
        for operation in operations:
            thing = operation.thing
            device = thing.device if isinstance(thing, Route) else None
            if device is not None and device not in indices and operation.verb is not Verb.REMOVE:
                failed.append(Failure(operation, host_error(words(thing), errno.ENODEV)))
            elif device is not None and device not in indices:
                changed.append(operation)  # it went with its device
            else:
                messages.append(_message(operation, indices.get(device, 0) if device else 0))
                sent.append(operation)
        for operation, reply in zip(sent, self._pipe.request(messages), strict=True):
            if _settled(operation, reply):
                changed.append(operation)
            else:
                failed.append(Failure(operation, host_error(words(operation.thing), reply.errno, reply.detail)))

    def _execute_one(
        self, operation: Operation, indices: dict[str, int], wanted: HostState, netlink: Netlink
    ) -> None:
        thing, removing = operation.thing, operation.verb is Verb.REMOVE
        match thing:
            case TunDevice():
                index = _index(indices, thing.name, words(thing))
                link = netlink.link(thing.name)
                if link is not None and link.kind != "tun":
                    raise host_error(words(thing), errno.EEXIST, f"{thing.name} is there, but no TUN device")
                netlink.set_link(index, thing.name, mtu=thing.mtu)
            case VxlanDevice():
                _put_vxlan(operation, thing, indices, netlink)
            case Device():
                netlink.remove_link(thing.name)
                indices.pop(thing.name, None)
            case DeviceAddress():
                if not removing:
                    netlink.add_address(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    netlink.remove_address(indices[thing.device], thing)
            case Neighbour():
                if not removing:
                    netlink.put_neighbour(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    netlink.remove_neighbour(indices[thing.device], thing)
            case ForwardingEntry():
                if not removing:
                    netlink.put_forwarding(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    netlink.remove_forwarding(indices[thing.device], thing)
            case Sysctl():
                self._set_sysctl(operation, thing)
            case nft.Ruleset():
                nft.write(nft.replacement(thing), self.nft_processes.append)
            case LocalPrefixes():
                nft.write(nft.refill(thing.prefixes), self.nft_processes.append)
            case Filter():
                nft.write(nft.removal(), self.nft_processes.append)
            case MisboundFlows():
                sources = wanted.packet_filter.own_sources if wanted.packet_filter is not None else ()
                conntrack.forget(thing.prefixes, sources)
            case _:  # routes, rules and strays go in batches
                raise AssertionError(thing)

    def _set_sysctl(self, operation: Operation, item: Sysctl) -> None:
        current = sysctl.read(item.key)
        if operation.verb is Verb.REMOVE:
            # Somebody else's value by now is somebody else's business.
            if current == operation.before:
                sysctl.write(item.key, item.value)
            self._originals.forget(item.key)
            return
        if not item.ours and current is not None:
            self._originals.remember(item.key, current, item.value)
        sysctl.write(item.key, item.value)


_BATCHED = (Route, Rule, Stray)


def _indices() -> dict[str, int]:
    """Indices of our devices, as far as they are there."""
    found: dict[str, int] = {}
    for name in (TUNNEL_DEVICE, VXLAN_DEVICE):
        with contextlib.suppress(OSError):
            found[name] = socket.if_nametoindex(name)
    return found


def _put_vxlan(operation: Operation, device: VxlanDevice, indices: dict[str, int], netlink: Netlink) -> None:
    if operation.verb is Verb.ADD:
        carrier = underlay(netlink, device.local)
        if carrier is None:
            raise host_error(words(device), errno.EADDRNOTAVAIL, f"no device has {device.local}")
        netlink.add_vxlan(device, carrier)
        indices.update(_indices())
    else:
        index = _index(indices, device.name, words(device))
        netlink.set_link(index, device.name, mtu=device.mtu, mac=device.mac)


def _index(indices: dict[str, int], device: str, subject: str) -> int:
    if device not in indices:
        raise host_error(subject, errno.ENODEV)
    return indices[device]


def _message(operation: Operation, oif: int) -> bytes:
    thing, removing = operation.thing, operation.verb is Verb.REMOVE
    if isinstance(thing, Route):
        return rtnetlink.delete_route(thing, oif) if removing else rtnetlink.put_route(thing, oif)
    if isinstance(thing, Rule):
        return rtnetlink.delete_rule(thing) if removing else rtnetlink.add_rule(thing)
    assert isinstance(thing, Stray)
    return rtnetlink.delete_stray(thing)


def _settled(operation: Operation, reply: Reply) -> bool:
    if operation.verb is Verb.REMOVE:
        return reply.errno in (0, errno.ESRCH, errno.ENOENT, errno.ENODEV)  # gone is gone
    if isinstance(operation.thing, Rule):
        return reply.errno in (0, errno.EEXIST)  # the kernel compares whole rules: it is there
    return reply.errno == 0
