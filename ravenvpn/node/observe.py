"""Read from the kernel what this host has of ours, in the terms of a plan.

Marks show ownership: the two device names, our two routing tables, the nft table's name, and protocol 157 on
routes and rules anywhere. Nothing else is read.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    PROTOCOL,
    TABLE_LOCAL,
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    Address,
    DeviceAddress,
    HostState,
    Rule,
)
from ravenvpn.node import neighbours, nft, rtnetlink, sysctl
from ravenvpn.node.host_diff import expected_state
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.nft_ruleset import FilterFacts
from ravenvpn.node.operations import ObservedState
from ravenvpn.node.parts import ALL_PARTS, HostPart
from ravenvpn.node.rtnetlink import Stray, route_key

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_TABLES = (TABLE_REMOTE, TABLE_LOCAL)
_OUR_DEVICES = {TUNNEL_DEVICE: "tun", VXLAN_DEVICE: "vxlan"}  # name → kind; with another kind the device is not ours
_LOOPBACK_INDEX = 1  # ifindex of lo in every network namespace
_SCOPE_LINK = 253  # RT_SCOPE_LINK


def observe(
    links: LinkClient,
    netlink: NetlinkSocket,
    saved_sysctls: Mapping[str, sysctl.SavedSysctl],
    wanted: HostState,
    parts: frozenset[HostPart] = ALL_PARTS,
) -> ObservedState:
    """Return the state of these parts; the others are assumed to be as `wanted` has them.

    `wanted` also says which sysctls and which underlay address to read. Pass a plan that `restrict` reduced to the
    same parts, so that nothing is compared that was not read. Raises HostError, but not for nft (see `_filter`).
    """
    observed = expected_state(wanted) if parts != ALL_PARTS else ObservedState()
    observed.saved_sysctls = dict(saved_sysctls)
    names = _observe_devices(observed, links, wanted)  # in any case: routes refer to devices by ifindex
    if HostPart.DEVICES in parts:
        _observe_device_state(observed, links, netlink, names, wanted)
    if HostPart.ROUTES in parts:
        _observe_routes(observed, netlink, names)
    if HostPart.RULES in parts:
        _observe_rules(observed, netlink)
    if HostPart.FILTER in parts:
        observed.packet_filter = _filter()
    return observed


def underlay_index(links: LinkClient, local: Address) -> int | None:
    """Return the ifindex of the device that has the address `local`, None if no device has it.

    0 for an address on lo: it is reached by any device, so the VXLAN must not be bound to one.
    """
    for index, address, _ in links.addresses():
        if address.ip == local:
            return 0 if index == _LOOPBACK_INDEX else index
    return None


def _observe_devices(observed: ObservedState, links: LinkClient, wanted: HostState) -> dict[int, str]:
    """Fill in our devices; return their names by ifindex."""
    for name, kind in _OUR_DEVICES.items():
        link = links.link(name)
        if link is not None and link.kind == kind:
            observed.links[name] = link
        elif link is not None:  # another program's device: never changed, and the error names it
            observed.foreign.add(name)
    if wanted.vxlan is not None:
        observed.underlay = underlay_index(links, wanted.vxlan.local)
    return {link.index: name for name, link in observed.links.items()}


def _observe_device_state(
    observed: ObservedState, links: LinkClient, netlink: NetlinkSocket, names: dict[int, str], wanted: HostState
) -> None:
    """Fill in addresses, neighbours, FDB entries and sysctls. `names`: our devices by ifindex."""
    # The kernel adds a link-local IPv6 address to a device that comes up and removes it with the device.
    observed.addresses = {
        DeviceAddress(names[index], address)
        for index, address, scope in links.addresses()
        if index in names and not (address.version == 6 and scope == _SCOPE_LINK)
    }
    # Permanent entries are made on the VXLAN alone; the TUN has no link layer.
    observed.neighbours, observed.forwarding = set(), set()
    vxlan = observed.links.get(VXLAN_DEVICE)
    if vxlan is not None:
        observed.neighbours.update(neighbours.dump_neighbours(netlink, vxlan.index, vxlan.name))
        for entry in neighbours.dump_forwarding(netlink, vxlan.index, vxlan.name):
            if isinstance(entry, Stray):
                observed.strays.append(entry)
            else:
                observed.forwarding.add(entry)
    observed.sysctls = {item.key: sysctl.read(item.key) for item in wanted.sysctls}


def _observe_routes(observed: ObservedState, netlink: NetlinkSocket, names: dict[int, str]) -> None:
    """Fill in the routes of our tables, from any program, and those with our protocol in any other table."""
    observed.routes = {}
    for family in _FAMILIES:
        # Three filtered dumps instead of one of everything: a host may have a full routing table of its own.
        bodies = [
            *rtnetlink.dump_routes(netlink, family, table=TABLE_REMOTE),
            *rtnetlink.dump_routes(netlink, family, table=TABLE_LOCAL),
            *(
                body
                for body in rtnetlink.dump_routes(netlink, family, protocol=PROTOCOL)
                if rtnetlink.route_owner(body)[0] not in _TABLES
            ),
        ]
        for body in bodies:
            found = rtnetlink.parse_route(body, names)
            if isinstance(found, Stray):
                observed.strays.append(found)
            elif found is not None:
                route, ours = found
                key = route_key(route)
                # No plan has a route in another table or on another device, even with our protocol.
                ours = ours and route.table in _TABLES and (route.device is None or route.device in _OUR_DEVICES)
                # IPv6 may hold several routes with one key (multipath); one of them is enough.
                if ours and key not in observed.routes:
                    observed.routes[key] = route
                else:
                    description = f"route {route.prefix} in table {route.table}"
                    observed.strays.append(Stray(description, body, rtnetlink.RTM_DELROUTE))


def _observe_rules(observed: ObservedState, netlink: NetlinkSocket) -> None:
    """Fill in the rules with our protocol; a second copy of a rule is a stray."""
    observed.rules = set()
    for family in _FAMILIES:
        for body in rtnetlink.dump_rules(netlink, family):
            found = rtnetlink.parse_rule(body)
            if isinstance(found, Rule) and found not in observed.rules:
                observed.rules.add(found)
            elif isinstance(found, Rule):
                description = f"second rule {found.preference}"
                observed.strays.append(Stray(description, body, rtnetlink.RTM_DELRULE))
            elif found is not None:
                observed.strays.append(found)


def _filter() -> FilterFacts | None:
    """Return our nft table; None also if nft does not work, so that the rest of the host's state is not held up.

    Where a table is planned, the attempt to write it reports the error of nft.
    """
    try:
        return nft.observe()
    except HostError:
        return None
