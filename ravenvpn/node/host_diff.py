"""Compute the operations that bring a host from its observed state to the planned one, in a safe order. Pure.

The order prevents leaks and outages. Setting up: fail-closed routes first, so that traffic for another region is
refused rather than sent in clear from the first moment on; then devices, sysctls, addresses and neighbours; the
packet filter before any packet can need it; device routes; and last the rules that send traffic to them. Tearing
down goes the other way, fail-closed routes last of all. A replacement exists before the old object goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from ravenvpn.mesh.hoststate import (
    FAIL_CLOSED_METRIC,
    TABLE_REMOTE,
    ForwardingEntry,
    HostState,
    Neighbour,
    Route,
    RouteKind,
    Rule,
    RuleAction,
    Sysctl,
    VxlanDevice,
)
from ravenvpn.node.format import format_link
from ravenvpn.node.links import LinkFacts
from ravenvpn.node.nft_ruleset import build_ruleset
from ravenvpn.node.operations import (
    HostObject,
    NftTable,
    ObservedState,
    Operation,
    OwnedDevice,
    SetElements,
    Verb,
)
from ravenvpn.node.rtnetlink import IP6_RT_PRIO_USER, RouteKey, route_key

_Entry = TypeVar("_Entry", Neighbour, ForwardingEntry)


def required_operations(observed: ObservedState, wanted: HostState) -> list[Operation]:
    """Return the operations that turn `observed` into `wanted`, in order; empty if nothing differs."""
    recreated = set(_recreated_devices(observed, wanted))
    flushed = _flushed_devices(observed, wanted) - recreated
    # Routes on devices in these two sets vanish while the operations run, so they count as absent.
    put, drop = _routes(observed, wanted, recreated, flushed)
    unwanted_addresses = _removed_addresses(observed, wanted, recreated)
    add_rules, remove_rules = _rules(observed, wanted)
    filter_first, filter_last = _filter(observed, wanted)
    return list(
        chain(
            (operation for operation in put if is_fail_closed(operation.target)),
            _links(observed, wanted),
            # Before the addresses: where IPv6 is disabled a device takes none.
            _sysctls(observed, wanted, recreated),
            _addresses(observed, wanted, recreated),
            # The removal of the last IPv4 address takes routes with it: before the routes are put.
            (operation for device, operation in unwanted_addresses if device in flushed),
            _neighbours(observed, wanted, recreated | set(_devices_with_new_mac(observed, wanted))),
            _forwarding(observed, wanted, recreated),
            # Before the device routes: the first packet of a flow decides about its NAT.
            filter_first,
            (operation for operation in put if not is_fail_closed(operation.target)),
            # New rules before old ones go, so that a changed rule is never absent.
            add_rules,
            remove_rules,
            (Operation(Verb.REMOVE, stray) for stray in observed.strays),
            (operation for operation in drop if not is_fail_closed(operation.target)),
            _removed_neighbours(observed, wanted, recreated),
            (operation for device, operation in unwanted_addresses if device not in flushed),
            _removed_links(observed, wanted),
            (operation for operation in drop if is_fail_closed(operation.target)),
            filter_last,
            # Forwarding of others' devices ends when nothing of ours needs it any more.
            _restored_sysctls(observed, wanted),
        )
    )


def expected_state(wanted: HostState) -> ObservedState:
    """Return what `observe` would find if `wanted` was applied and nothing changed since, without the devices.

    The starting point for a delta, and the stand-in for parts that are not observed.
    """
    ruleset = build_ruleset(wanted)
    return ObservedState(
        addresses=set(wanted.addresses),
        neighbours=set(wanted.neighbours),
        forwarding=set(wanted.forwarding),
        routes={route_key(route): route for route in map(_normalized, wanted.routes)},
        rules=set(wanted.rules),
        sysctls={item.key: item.value for item in wanted.sysctls},
        packet_filter=ruleset.facts if ruleset is not None else None,
    )


def is_fail_closed(target: HostObject) -> bool:
    """Return whether an object is a route that keeps traffic for a remote prefix from leaving in clear.

    The same kind of route in table 9129 is none: it only prevents a loop, and added before the device route of its
    prefix it would refuse packets under way.
    """
    return (
        isinstance(target, Route)
        and target.table == TABLE_REMOTE
        and target.kind is RouteKind.UNREACHABLE
        and target.metric == FAIL_CLOSED_METRIC
    )


def _normalized(route: Route) -> Route:
    """Return the route as `observe` reads it back: IPv6 routes without a metric get 1024 from the kernel."""
    if route.metric == IP6_RT_PRIO_USER and route.prefix.version == 6:
        return replace(route, metric=0)
    return route


# --- Devices ---------------------------------------------------------------------------------------------------


def _recreated_devices(observed: ObservedState, wanted: HostState) -> Iterable[str]:
    """Yield devices that will be created or replaced; nothing that belonged to an earlier one survives."""
    for device in (wanted.tun, wanted.vxlan):
        if device is not None and device.name not in observed.links:
            yield device.name
    vxlan = wanted.vxlan
    link = observed.links.get(vxlan.name) if vxlan is not None else None
    if vxlan is not None and link is not None and _must_recreate(link, vxlan, observed):
        yield vxlan.name


def _devices_with_new_mac(observed: ObservedState, wanted: HostState) -> Iterable[str]:
    """Yield devices that get another MAC: the kernel drops all their neighbours then."""
    vxlan = wanted.vxlan
    link = observed.links.get(vxlan.name) if vxlan is not None else None
    if vxlan is not None and link is not None and link.mac.lower() != vxlan.mac.lower():
        yield vxlan.name


def _must_recreate(link: LinkFacts, vxlan: VxlanDevice, observed: ObservedState) -> bool:
    """Return whether a setting differs that the kernel does not change on an existing VXLAN."""
    found = link.vxlan
    if found is None:
        return True
    moved = observed.underlay is not None and found.underlay != observed.underlay
    settings = (found.vni, found.port, found.local, found.learning)
    return moved or settings != (vxlan.vni, vxlan.port, vxlan.local, False)


def _links(observed: ObservedState, wanted: HostState) -> Iterable[Operation]:
    """Yield the changes of both devices. The TUN itself is opened by the tunnel; only MTU and state are set."""
    tun, vxlan = wanted.tun, wanted.vxlan
    if tun is not None:
        link = observed.links.get(tun.name)
        if link is None or (link.kind, link.mtu, link.up) != ("tun", tun.mtu, True):
            yield Operation(Verb.CHANGE, tun, format_link(link))
    if vxlan is not None:
        link = observed.links.get(vxlan.name)
        if link is None:
            yield Operation(Verb.ADD, vxlan)
        elif _must_recreate(link, vxlan, observed):
            yield Operation(Verb.REMOVE, OwnedDevice(vxlan.name), format_link(link))
            yield Operation(Verb.ADD, vxlan)
        elif (link.mtu, link.mac.lower(), link.up) != (vxlan.mtu, vxlan.mac.lower(), True):
            yield Operation(Verb.CHANGE, vxlan, format_link(link))


def _removed_links(observed: ObservedState, wanted: HostState) -> Iterable[Operation]:
    """Yield the removal of our devices that are not planned. Devices of another kind are not in `links`."""
    kept = {device.name for device in (wanted.tun, wanted.vxlan) if device is not None}
    for name in sorted(set(observed.links) - kept):
        yield Operation(Verb.REMOVE, OwnedDevice(name))


# --- Addresses, neighbours, FDB entries ------------------------------------------------------------------------


def _addresses(observed: ObservedState, wanted: HostState, recreated: set[str]) -> Iterable[Operation]:
    """Yield the addition of addresses that are absent, and of all on a device that is recreated."""
    for item in wanted.addresses:
        if item.device in recreated or item not in observed.addresses:
            yield Operation(Verb.ADD, item)


def _removed_addresses(
    observed: ObservedState, wanted: HostState, recreated: set[str]
) -> list[tuple[str, Operation]]:
    """Return (device, removal) of each address that is not planned."""
    gone = observed.addresses - set(wanted.addresses)
    removed = sorted((item for item in gone if item.device not in recreated), key=str)
    return [(item.device, Operation(Verb.REMOVE, item)) for item in removed]


def _flushed_devices(observed: ObservedState, wanted: HostState) -> set[str]:
    """Return devices that lose their last IPv4 address: the kernel drops all their IPv4 routes then."""
    with_addresses = {item.device for item in observed.addresses if item.address.version == 4}
    return with_addresses - {item.device for item in wanted.addresses if item.address.version == 4}


def _neighbours(observed: ObservedState, wanted: HostState, emptied: set[str]) -> Iterable[Operation]:
    """Yield additions and changes of neighbours, keyed by address."""
    return _entries(observed.neighbours, wanted.neighbours, emptied, lambda item: (item.device, item.address))


def _forwarding(observed: ObservedState, wanted: HostState, emptied: set[str]) -> Iterable[Operation]:
    """Yield additions and changes of FDB entries, keyed by MAC. A new MAC of the device leaves the FDB alone."""
    return _entries(observed.forwarding, wanted.forwarding, emptied, lambda item: (item.device, item.mac))


def _entries(
    present: Collection[_Entry], wanted: Iterable[_Entry], emptied: set[str], key: Callable[[_Entry], Hashable]
) -> Iterable[Operation]:
    """Yield additions and changes. The kernel holds one entry a key; devices in `emptied` have none by then."""
    held = {key(item): item for item in present if item.device not in emptied}
    for item in wanted:
        before = held.get(key(item))
        if before is None:
            yield Operation(Verb.ADD, item)
        elif item not in present:
            yield Operation(Verb.CHANGE, item, before)


def _removed_neighbours(observed: ObservedState, wanted: HostState, recreated: set[str]) -> Iterable[Operation]:
    """Yield the removal of entries that neither go with their device nor are replaced by one with the same key."""
    replaced = {(entry.device, entry.mac) for entry in wanted.forwarding if entry not in observed.forwarding}
    for entry in sorted(observed.forwarding - set(wanted.forwarding), key=str):
        if entry.device not in recreated and (entry.device, entry.mac) not in replaced:
            yield Operation(Verb.REMOVE, entry)
    addresses = {(item.device, item.address) for item in wanted.neighbours}
    for item in sorted(observed.neighbours - set(wanted.neighbours), key=str):
        if item.device not in recreated and (item.device, item.address) not in addresses:
            yield Operation(Verb.REMOVE, item)


# --- Routes and rules ------------------------------------------------------------------------------------------


def _routes(
    observed: ObservedState, wanted: HostState, recreated: set[str], flushed: set[str]
) -> tuple[list[Operation], list[Operation]]:
    """Return (routes to put, routes to remove). A put replaces the route with its key in one step."""

    def lost(route: Route) -> bool:
        """Return whether the kernel drops this route with its device or with the device's last address."""
        return route.device in recreated or (route.device in flushed and route.prefix.version == 4)

    put: list[Operation] = []
    kept: set[RouteKey] = set()
    for route in map(_normalized, wanted.routes):
        key = route_key(route)
        kept.add(key)
        before = observed.routes.get(key)
        if before is not None and lost(before):
            before = None
        if before != route:
            put.append(Operation(Verb.ADD if before is None else Verb.CHANGE, route, before))
    gone = [route for key, route in observed.routes.items() if key not in kept and not lost(route)]
    gone.sort(key=lambda route: -route.metric)  # of one prefix the fallback goes before the route it backs
    return put, [Operation(Verb.REMOVE, route) for route in gone]


def _rules(observed: ObservedState, wanted: HostState) -> tuple[list[Operation], list[Operation]]:
    """Return (rules to add, rules to remove). The target of gotos is added before them and removed after them."""

    def order(rule: Rule) -> tuple[bool, int, str]:
        """Return a sort key with NOPs, the targets of gotos, first."""
        return rule.action is not RuleAction.NOP, rule.preference, str(rule)

    # The kernel has no replacement of a rule, only additions and deletions.
    new = sorted((rule for rule in wanted.rules if rule not in observed.rules), key=order)
    old = sorted(observed.rules - set(wanted.rules), key=order, reverse=True)
    return [Operation(Verb.ADD, rule) for rule in new], [Operation(Verb.REMOVE, rule) for rule in old]


# --- Sysctls ---------------------------------------------------------------------------------------------------


def _sysctls(observed: ObservedState, wanted: HostState, recreated: set[str]) -> Iterable[Operation]:
    """Yield the sysctls whose value differs, and all of a device that is recreated."""
    for item in wanted.sysctls:
        current = observed.sysctls.get(item.key)
        if current != item.value or recreated & set(item.key.split("/")):  # a key of a new device has its default
            yield Operation(Verb.CHANGE, item, current)


def _restored_sysctls(observed: ObservedState, wanted: HostState) -> Iterable[Operation]:
    """Yield the restoration of sysctls that were changed on devices of others and are no longer planned."""
    kept = {item.key for item in wanted.sysctls}
    for key, entry in sorted(observed.saved_sysctls.items()):
        if key not in kept:
            yield Operation(Verb.REMOVE, Sysctl(key, entry.original, ours=False), entry.written)


# --- Packet filter ---------------------------------------------------------------------------------------------


def _filter(observed: ObservedState, wanted: HostState) -> tuple[list[Operation], list[Operation]]:
    """Return (operations before the routes, operations after them): the table is written early and removed late."""
    ruleset, found = build_ruleset(wanted), observed.packet_filter
    if ruleset is None:
        return [], [] if found is None else [Operation(Verb.REMOVE, NftTable())]
    if found == ruleset.facts:
        return [], []
    # The elements alone differ: refilling the sets leaves chains and rules, and thereby packets, undisturbed.
    if found is not None and found.shape == ruleset.facts.shape:
        return [Operation(Verb.CHANGE, SetElements(ruleset.facts.elements))], []
    return [Operation(Verb.ADD if found is None else Verb.CHANGE, ruleset)], []
