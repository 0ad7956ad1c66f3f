"""Bring a host to the wanted state: observe, diff, execute. The one place of the agent that changes the host.

Synchronous; the agent calls it through `asyncio.to_thread`, one call at a time. One refused change stops nothing
else: it is reported, with its reason, beside what was changed.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    PROTOCOL,
    TABLE_LOCAL,
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    Address,
    DeviceAddress,
    ForwardingEntry,
    HostState,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node import conntrack, nft, rtnetlink, sysctl
from ravenvpn.node.diff import (
    Device,
    Filter,
    LocalPrefixes,
    MisboundFlows,
    Observed,
    Operation,
    Verb,
    assumed,
    diff,
    difference,
)
from ravenvpn.node.netlink import Netlink
from ravenvpn.node.reasons import host_error
from ravenvpn.node.rtnetlink import Pipe, Reply, Stray, route_key
from ravenvpn.node.words import words

_NOTHING = HostState()
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class Failure:
    operation: Operation
    error: HostError

    def __str__(self) -> str:
        return f"{self.operation.verb} {self.error}"


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What was changed, in order, and what was refused. `changed` is empty if the host was as it should be."""

    changed: tuple[Operation, ...] = ()
    failed: tuple[Failure, ...] = ()


class Host:
    """This host's network, as far as it is ours. Holds one netlink socket of each kind; not for two threads at once.

    `state_file` remembers sysctls of devices that are not ours (`sysctl.Originals`).
    """

    def __init__(self, state_file: Path) -> None:
        self._netlink = Netlink()
        try:
            self._pipe = Pipe()
        except HostError:
            self._netlink.close()
            raise
        self._originals = sysctl.Originals(state_file)

    @property
    def port(self) -> int:
        """The netlink port of our route and rule changes: notifications about them carry it."""
        return self._pipe.port

    def close(self) -> None:
        self._netlink.close()
        self._pipe.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Looking -----------------------------------------------------------------------------------------------

    def observe(self, wanted: HostState = _NOTHING) -> Observed:
        """What is there of ours. `wanted` says which sysctls and which underlay address to look at besides."""
        observed = Observed(packet_filter=self._observe_filter(wanted), remembered=self._originals.load())
        names: dict[int, str] = {}
        for name in (TUNNEL_DEVICE, VXLAN_DEVICE):
            link = self._netlink.link(name)
            if link is not None:
                observed.links[name] = link
                names[link.index] = name
        for index, address, scope in self._netlink.addresses():
            # The kernel's own link-local address comes and goes with the device.
            if index in names and not (address.version == 6 and scope == _SCOPE_LINK):
                observed.addresses.add(DeviceAddress(names[index], address))
            if wanted.vxlan is not None and address.ip == wanted.vxlan.local:
                observed.underlay = 0 if index == 1 else index  # an address on lo is reached by several devices
        vxlan = observed.links.get(VXLAN_DEVICE)
        if vxlan is not None:
            observed.neighbours.update(self._netlink.neighbours(vxlan.index, vxlan.name))
            observed.forwarding.update(self._netlink.forwarding(vxlan.index, vxlan.name))
        self._observe_routes(observed, names)
        self._observe_rules(observed)
        observed.sysctls = {item.key: sysctl.read(item.key) for item in wanted.sysctls}
        return observed

    def _observe_filter(self, wanted: HostState) -> nft.FilterFacts | None:
        try:
            return nft.observe()
        except HostError:
            if wanted.packet_filter is None:
                return None  # no nft here, so no table of ours either
            raise

    def _observe_routes(self, observed: Observed, names: dict[int, str]) -> None:
        for family in _FAMILIES:
            # Our tables, whoever wrote there, and what carries our protocol anywhere else.
            bodies = [
                *rtnetlink.dump_routes(self._pipe, family, table=TABLE_REMOTE),
                *rtnetlink.dump_routes(self._pipe, family, table=TABLE_LOCAL),
                *(
                    body
                    for body in rtnetlink.dump_routes(self._pipe, family, protocol=PROTOCOL)
                    if rtnetlink.route_owner(body)[0] not in (TABLE_REMOTE, TABLE_LOCAL)
                ),
            ]
            for body in bodies:
                found = rtnetlink.read_route(body, names)
                if found is None:
                    continue
                if isinstance(found, Stray):
                    observed.strays.append(found)
                    continue
                route, ours = found
                key = route_key(route)
                if ours and key not in observed.routes:
                    observed.routes[key] = route
                else:
                    what = f"route {route.prefix} in table {route.table}"
                    observed.strays.append(Stray(what, body, rtnetlink.RTM_DELROUTE))

    def _observe_rules(self, observed: Observed) -> None:
        for family in _FAMILIES:
            for body in rtnetlink.dump_rules(self._pipe, family):
                found = rtnetlink.read_rule(body)
                if isinstance(found, Rule) and found not in observed.rules:
                    observed.rules.add(found)
                elif isinstance(found, Rule):
                    observed.strays.append(Stray(f"second rule {found.preference}", body, rtnetlink.RTM_DELRULE))
                elif found is not None:
                    observed.strays.append(found)

    # --- Changing ----------------------------------------------------------------------------------------------

    def apply(self, wanted: HostState) -> ApplyResult:
        """Look at everything of ours and bring it to `wanted`."""
        return self.execute(diff(self.observe(wanted), wanted), wanted)

    def apply_changes(self, previous: HostState, wanted: HostState) -> ApplyResult:
        """Bring a host that is as `previous` to `wanted`, at the price of what differs between the two.

        Nothing is observed, so after a failure or a change by others `apply` is due. Devices are an exception:
        where their part differs everything is observed.
        """
        if (previous.tun, previous.vxlan) != (wanted.tun, wanted.vxlan):
            return self.apply(wanted)
        old_routes, routes = difference(previous.routes, wanted.routes)
        old_neighbours, neighbours = difference(previous.neighbours, wanted.neighbours)
        old_forwarding, forwarding = difference(previous.forwarding, wanted.forwarding)
        observed = assumed(replace(previous, routes=old_routes, neighbours=old_neighbours, forwarding=old_forwarding))
        observed.remembered = self._originals.load() if previous.sysctls != wanted.sysctls else {}
        # No device is made or removed by a delta; `assumed` knows none, so the diff must not ask for any.
        changes = replace(wanted, tun=None, vxlan=None, routes=routes, neighbours=neighbours, forwarding=forwarding)
        operations = diff(observed, changes)
        return self.execute(operations, wanted)

    def cleanup(self) -> ApplyResult:
        """Remove everything of ours, found by its marks, and put back the sysctls of others' devices."""
        return self.apply(_NOTHING)

    def execute(self, operations: Sequence[Operation], wanted: HostState = _NOTHING) -> ApplyResult:
        """Carry out the operations in their order; routes and rules that follow each other go as one batch."""
        changed: list[Operation] = []
        failed: list[Failure] = []
        indices = {link.name: link.index for link in map(self._netlink.link, (TUNNEL_DEVICE, VXLAN_DEVICE)) if link}
        for batched, group in groupby(operations, key=lambda operation: isinstance(operation.thing, _BATCHED)):
            if batched:
                self._execute_batch(list(group), indices, changed, failed)
                continue
            for operation in group:
                try:
                    self._execute_one(operation, indices, wanted)
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

    def _execute_one(self, operation: Operation, indices: dict[str, int], wanted: HostState) -> None:
        thing, removing = operation.thing, operation.verb is Verb.REMOVE
        match thing:
            case TunDevice():
                index = _index(indices, thing.name, words(thing))
                self._netlink.set_link(index, thing.name, mtu=thing.mtu)
            case VxlanDevice():
                self._put_vxlan(operation, thing, indices)
            case Device():
                self._netlink.remove_link(thing.name)
                indices.pop(thing.name, None)
            case DeviceAddress():
                if not removing:
                    self._netlink.add_address(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    self._netlink.remove_address(indices[thing.device], thing)
            case Neighbour():
                if not removing:
                    self._netlink.put_neighbour(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    self._netlink.remove_neighbour(indices[thing.device], thing)
            case ForwardingEntry():
                if not removing:
                    self._netlink.put_forwarding(_index(indices, thing.device, words(thing)), thing)
                elif thing.device in indices:
                    self._netlink.remove_forwarding(indices[thing.device], thing)
            case Sysctl():
                self._set_sysctl(operation, thing)
            case nft.Ruleset():
                nft.write(nft.replacement(thing))
            case LocalPrefixes():
                nft.write(nft.refill(thing.prefixes))
            case Filter():
                nft.remove()
            case MisboundFlows():
                sources = wanted.packet_filter.own_sources if wanted.packet_filter is not None else ()
                conntrack.forget(thing.prefixes, sources)
            case _:  # routes, rules and strays go in batches
                raise AssertionError(thing)

    def _put_vxlan(self, operation: Operation, device: VxlanDevice, indices: dict[str, int]) -> None:
        if operation.verb is Verb.ADD:
            self._netlink.add_vxlan(device, self._underlay(device.local))
            link = self._netlink.link(device.name)
            if link is not None:
                indices[device.name] = link.index
        else:
            index = _index(indices, device.name, words(device))
            self._netlink.set_link(index, device.name, mtu=device.mtu, mac=device.mac)

    def _underlay(self, local: Address) -> int:
        for index, address, _ in self._netlink.addresses():
            if address.ip == local:
                return 0 if index == 1 else index
        raise host_error(f"device {VXLAN_DEVICE}", errno.EADDRNOTAVAIL, f"no device has {local}")

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
