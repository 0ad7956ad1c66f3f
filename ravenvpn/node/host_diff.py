"""What to change on the host, and in which order: a pure function of what is there and what should be.

The order is the point. Coming up: fail-closed routes first, so that from the first moment on traffic for another
region is refused rather than sent in clear; then devices, their settings, addresses and neighbours; the packet filter
before the first packet can need it; routes; and the rules that send traffic to them last. Going down it is mirrored,
fail-closed routes last of all. Where something is exchanged, the new is there before the old goes.
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
from ravenvpn.node import nft
from ravenvpn.node.links import LinkFacts
from ravenvpn.node.operations import Filter, HostDevice, LocalPrefixes, Observed, Operation, Thing, Verb
from ravenvpn.node.rtnetlink import IP6_RT_PRIO_USER, Key, route_key

_Entry = TypeVar("_Entry", Neighbour, ForwardingEntry)


def diff(observed: Observed, wanted: HostState) -> list[Operation]:
    """The operations that turn `observed` into `wanted`; empty if that is what is there."""
    fresh = set(_fresh_devices(observed, wanted))
    flushed = _flushed_devices(observed, wanted) - fresh
    put, drop = _routes(observed, wanted, fresh, flushed)
    unwanted_addresses = _removed_addresses(observed, wanted, fresh)
    add_rules, remove_rules = _rules(observed, wanted)
    filter_first, filter_last = _filter(observed, wanted)
    return list(
        chain(
            (operation for operation in put if closes(operation.thing)),
            _links(observed, wanted),
            _sysctls(observed, wanted, fresh),
            _addresses(observed, wanted, fresh),
            (operation for device, operation in unwanted_addresses if device in flushed),
            _neighbours(observed, wanted, fresh | set(_renamed_devices(observed, wanted))),
            _forwarding(observed, wanted, fresh),
            filter_first,
            (operation for operation in put if not closes(operation.thing)),
            add_rules,
            remove_rules,
            (Operation(Verb.REMOVE, stray) for stray in observed.strays),
            (operation for operation in drop if not closes(operation.thing)),
            _removed_neighbours(observed, wanted, fresh),
            (operation for device, operation in unwanted_addresses if device not in flushed),
            _removed_links(observed, wanted),
            (operation for operation in drop if closes(operation.thing)),
            filter_last,
            _restored_sysctls(observed, wanted),
        )
    )


def assumed(wanted: HostState) -> Observed:
    """The host as it is if `wanted` was applied and nobody touched it since: what `diff` needs of it for a delta.

    Of devices it knows nothing.
    """
    rules = nft.ruleset(wanted)
    return Observed(
        addresses=set(wanted.addresses),
        neighbours=set(wanted.neighbours),
        forwarding=set(wanted.forwarding),
        routes={route_key(route): route for route in map(_normal, wanted.routes)},
        rules=set(wanted.rules),
        sysctls={item.key: item.value for item in wanted.sysctls},
        packet_filter=rules.facts if rules is not None else None,
    )


def closes(thing: Thing | None) -> bool:
    """Whether it keeps traffic from leaving in clear. What looks the same in the other table only keeps a packet from
    going round in circles: to put it long before the route it backs would refuse what is under way."""
    return (
        isinstance(thing, Route)
        and thing.table == TABLE_REMOTE
        and thing.kind is RouteKind.UNREACHABLE
        and thing.metric == FAIL_CLOSED_METRIC
    )


def _normal(route: Route) -> Route:
    if route.metric == IP6_RT_PRIO_USER and route.prefix.version == 6:
        return replace(route, metric=0)  # the kernel writes 1024 where nothing is said
    return route


# --- Devices ---------------------------------------------------------------------------------------------------


def _fresh_devices(observed: Observed, wanted: HostState) -> Iterable[str]:
    """Devices that will be made anew: what hangs on them is gone then."""
    for device in (wanted.tun, wanted.vxlan):
        if device is not None and device.name not in observed.links:
            yield device.name
    vxlan = wanted.vxlan
    if vxlan is not None and vxlan.name in observed.links and _differs(observed.links[vxlan.name], vxlan, observed):
        yield vxlan.name


def _renamed_devices(observed: Observed, wanted: HostState) -> Iterable[str]:
    """Devices that get another MAC, and with that, so the kernel has it, lose all their neighbours."""
    vxlan = wanted.vxlan
    link = observed.links.get(vxlan.name) if vxlan is not None else None
    if vxlan is not None and link is not None and link.mac.lower() != vxlan.mac.lower():
        yield vxlan.name


def _differs(link: LinkFacts, vxlan: VxlanDevice, observed: Observed) -> bool:
    """Whether the device has to be made anew: the kernel changes neither VNI nor port of a living one."""
    found = link.vxlan
    if found is None:
        return True
    moved = observed.underlay is not None and found.underlay != observed.underlay
    return (found.vni, found.port, found.local, found.learning) != (
        vxlan.vni,
        vxlan.port,
        vxlan.local,
        False,
    ) or moved


def _links(observed: Observed, wanted: HostState) -> Iterable[Operation]:
    tun, vxlan = wanted.tun, wanted.vxlan
    if tun is not None:
        link = observed.links.get(tun.name)
        if link is None or (link.kind, link.mtu, link.up) != ("tun", tun.mtu, True):
            yield Operation(Verb.CHANGE, tun, _link_words(link))
    if vxlan is not None:
        link = observed.links.get(vxlan.name)
        if link is None:
            yield Operation(Verb.ADD, vxlan)
        elif _differs(link, vxlan, observed):
            yield Operation(Verb.REMOVE, HostDevice(vxlan.name), _link_words(link))
            yield Operation(Verb.ADD, vxlan)
        elif (link.mtu, link.mac.lower(), link.up) != (vxlan.mtu, vxlan.mac.lower(), True):
            yield Operation(Verb.CHANGE, vxlan, _link_words(link))


def _link_words(link: LinkFacts | None) -> str:
    return "absent" if link is None else f"mtu {link.mtu} {link.mac} {'up' if link.up else 'down'}".replace("  ", " ")


def _removed_links(observed: Observed, wanted: HostState) -> Iterable[Operation]:
    kept = {device.name for device in (wanted.tun, wanted.vxlan) if device is not None}
    for name in sorted(set(observed.links) - kept):
        yield Operation(Verb.REMOVE, HostDevice(name))


# --- What hangs on devices -------------------------------------------------------------------------------------


def _addresses(observed: Observed, wanted: HostState, fresh: set[str]) -> Iterable[Operation]:
    for item in wanted.addresses:
        if item.device in fresh or item not in observed.addresses:
            yield Operation(Verb.ADD, item)


def _removed_addresses(observed: Observed, wanted: HostState, fresh: set[str]) -> list[tuple[str, Operation]]:
    """(device, removal) of each address that is not wanted."""
    gone = observed.addresses - set(wanted.addresses)
    kept = sorted((item for item in gone if item.device not in fresh), key=str)
    return [(item.device, Operation(Verb.REMOVE, item)) for item in kept]


def _flushed_devices(observed: Observed, wanted: HostState) -> set[str]:
    """Devices that lose their last IPv4 address, and with it, so the kernel has it, all their IPv4 routes."""
    with_addresses = {item.device for item in observed.addresses if item.address.version == 4}
    return with_addresses - {item.device for item in wanted.addresses if item.address.version == 4}


def _neighbours(observed: Observed, wanted: HostState, fresh: set[str]) -> Iterable[Operation]:
    return _entries(observed.neighbours, wanted.neighbours, fresh, lambda item: (item.device, item.address))


def _forwarding(observed: Observed, wanted: HostState, fresh: set[str]) -> Iterable[Operation]:
    return _entries(observed.forwarding, wanted.forwarding, fresh, lambda item: (item.device, item.mac))


def _entries(
    present: Collection[_Entry], wanted: Iterable[_Entry], fresh: set[str], key: Callable[[_Entry], Hashable]
) -> Iterable[Operation]:
    """One that is there under a wanted one's key is changed into it. A device made anew has none."""
    held = {key(item): item for item in present if item.device not in fresh}
    for item in wanted:
        before = held.get(key(item))
        if before is None:
            yield Operation(Verb.ADD, item)
        elif item not in present:
            yield Operation(Verb.CHANGE, item, before)


def _removed_neighbours(observed: Observed, wanted: HostState, fresh: set[str]) -> Iterable[Operation]:
    """Those that no wanted one takes the place of."""
    replaced = {(entry.device, entry.mac) for entry in wanted.forwarding if entry not in observed.forwarding}
    for entry in sorted(observed.forwarding - set(wanted.forwarding), key=str):
        if entry.device not in fresh and (entry.device, entry.mac) not in replaced:
            yield Operation(Verb.REMOVE, entry)
    addresses = {(item.device, item.address) for item in wanted.neighbours}
    for item in sorted(observed.neighbours - set(wanted.neighbours), key=str):
        if item.device not in fresh and (item.device, item.address) not in addresses:
            yield Operation(Verb.REMOVE, item)


# --- Routes and rules ------------------------------------------------------------------------------------------


def _routes(
    observed: Observed, wanted: HostState, fresh: set[str], flushed: set[str]
) -> tuple[list[Operation], list[Operation]]:
    """(to put, to drop). A put takes the place of the route with its key in one step."""

    def lost(route: Route) -> bool:
        return route.device in fresh or (route.device in flushed and route.prefix.version == 4)

    put: list[Operation] = []
    kept: set[Key] = set()
    for route in map(_normal, wanted.routes):
        key = route_key(route)
        kept.add(key)
        before = observed.routes.get(key)
        if before is not None and lost(before):
            before = None
        if before != route:
            put.append(Operation(Verb.ADD if before is None else Verb.CHANGE, route, before))
    gone = [route for key, route in observed.routes.items() if key not in kept and not lost(route)]
    gone.sort(key=lambda route: -route.metric)  # what backs a route goes before it
    return put, [Operation(Verb.REMOVE, route) for route in gone]


def _rules(observed: Observed, wanted: HostState) -> tuple[list[Operation], list[Operation]]:
    """(to add, to remove). Where gotos land comes before them, and goes after them."""

    def order(rule: Rule) -> tuple[bool, int, str]:
        return rule.action is not RuleAction.NOP, rule.preference, str(rule)

    new = sorted((rule for rule in wanted.rules if rule not in observed.rules), key=order)
    old = sorted(observed.rules - set(wanted.rules), key=order, reverse=True)
    return [Operation(Verb.ADD, rule) for rule in new], [Operation(Verb.REMOVE, rule) for rule in old]


# --- Sysctls ---------------------------------------------------------------------------------------------------


def _sysctls(observed: Observed, wanted: HostState, fresh: set[str]) -> Iterable[Operation]:
    for item in wanted.sysctls:
        current = observed.sysctls.get(item.key)
        if current != item.value or fresh & set(item.key.split("/")):
            yield Operation(Verb.CHANGE, item, current)


def _restored_sysctls(observed: Observed, wanted: HostState) -> Iterable[Operation]:
    kept = {item.key for item in wanted.sysctls}
    for key, entry in sorted(observed.remembered.items()):
        if key not in kept:
            yield Operation(Verb.REMOVE, Sysctl(key, entry.original, ours=False), entry.written)


# --- Packet filter ---------------------------------------------------------------------------------------------


def _filter(observed: Observed, wanted: HostState) -> tuple[list[Operation], list[Operation]]:
    rules, found = nft.ruleset(wanted), observed.packet_filter
    if rules is None:
        return [], [] if found is None else [Operation(Verb.REMOVE, Filter())]
    if found == rules.facts:
        return [], []
    if found is not None and found.shape == rules.facts.shape:
        return [Operation(Verb.CHANGE, LocalPrefixes(rules.facts.local))], []
    return [Operation(Verb.ADD if found is None else Verb.CHANGE, rules)], []
