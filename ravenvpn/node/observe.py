"""What this host has of ours: by device name, table, nft table name and protocol 157, and nothing else is read."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    PROTOCOL,
    TABLE_LOCAL,
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    DeviceAddress,
    HostState,
    Rule,
)
from ravenvpn.node import neighbours, nft, rtnetlink, sysctl
from ravenvpn.node.host_diff import assumed
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.operations import Observed
from ravenvpn.node.rtnetlink import Stray, route_key

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_TABLES = (TABLE_REMOTE, TABLE_LOCAL)
_OUR_DEVICES = {TUNNEL_DEVICE: "tun", VXLAN_DEVICE: "vxlan"}  # and their kinds: of another kind they are not ours
_SCOPE_LINK = 253


class HostPart(StrEnum):
    """What can be looked at by itself. Devices come with what hangs on them: addresses, neighbours, sysctls."""

    DEVICES = "devices"
    ROUTES = "routes"
    RULES = "rules"
    FILTER = "filter"


ALL = frozenset(HostPart)


def narrowed(wanted: HostState, parts: frozenset[HostPart]) -> HostState:
    """What is wanted of these parts. Our two devices stay in, since everything else hangs on them."""
    if HostPart.DEVICES not in parts:
        wanted = replace(wanted, addresses=(), neighbours=(), forwarding=(), sysctls=())
    return replace(
        wanted,
        routes=wanted.routes if HostPart.ROUTES in parts else (),
        rules=wanted.rules if HostPart.RULES in parts else (),
        packet_filter=wanted.packet_filter if HostPart.FILTER in parts else None,
    )


def observe(
    netlink: LinkClient,
    pipe: NetlinkSocket,
    remembered: Mapping[str, sysctl.Remembered],
    wanted: HostState,
    parts: frozenset[HostPart] = ALL,
) -> Observed:
    """`wanted` says which sysctls and which underlay address to look at; parts not asked for are taken from it, so it
    should be `narrowed` to them."""
    observed = assumed(wanted) if parts != ALL else Observed()
    observed.remembered = dict(remembered)
    names = _devices(observed, netlink, wanted)
    if HostPart.DEVICES in parts:
        _what_hangs_on_devices(observed, netlink, pipe, names, wanted)
    if HostPart.ROUTES in parts:
        _routes(observed, pipe, names)
    if HostPart.RULES in parts:
        _rules(observed, pipe)
    if HostPart.FILTER in parts:
        observed.packet_filter = _filter()
    return observed


def _devices(observed: Observed, netlink: LinkClient, wanted: HostState) -> dict[int, str]:
    for name, kind in _OUR_DEVICES.items():
        link = netlink.link(name)
        if link is not None and link.kind == kind:
            observed.links[name] = link
        elif link is not None:
            observed.foreign.add(name)
    if wanted.vxlan is not None:
        observed.underlay = underlay(netlink, wanted.vxlan.local)
    return {link.index: name for name, link in observed.links.items()}


def underlay(netlink: LinkClient, local: object) -> int | None:
    """Index of the device with this address; 0 for lo, whose addresses are reached by any device; None: absent."""
    for index, address, _ in netlink.addresses():
        if address.ip == local:
            return 0 if index == 1 else index
    return None


def _what_hangs_on_devices(
    observed: Observed, netlink: LinkClient, pipe: NetlinkSocket, names: dict[int, str], wanted: HostState
) -> None:
    # The kernel's own link-local IPv6 address comes and goes with the device.
    observed.addresses = {
        DeviceAddress(names[index], address)
        for index, address, scope in netlink.addresses()
        if index in names and not (address.version == 6 and scope == _SCOPE_LINK)
    }
    observed.neighbours, observed.forwarding = set(), set()
    vxlan = observed.links.get(VXLAN_DEVICE)
    if vxlan is not None:
        observed.neighbours.update(neighbours.neighbours(pipe, vxlan.index, vxlan.name))
        for entry in neighbours.forwarding(pipe, vxlan.index, vxlan.name):
            if isinstance(entry, Stray):
                observed.strays.append(entry)
            else:
                observed.forwarding.add(entry)
    observed.sysctls = {item.key: sysctl.read(item.key) for item in wanted.sysctls}


def _routes(observed: Observed, pipe: NetlinkSocket, names: dict[int, str]) -> None:
    observed.routes = {}
    for family in _FAMILIES:
        # Our tables, whoever wrote there, and what carries our protocol anywhere else.
        bodies = [
            *rtnetlink.dump_routes(pipe, family, table=TABLE_REMOTE),
            *rtnetlink.dump_routes(pipe, family, table=TABLE_LOCAL),
            *(
                body
                for body in rtnetlink.dump_routes(pipe, family, protocol=PROTOCOL)
                if rtnetlink.route_owner(body)[0] not in _TABLES
            ),
        ]
        for body in bodies:
            found = rtnetlink.read_route(body, names)
            if isinstance(found, Stray):
                observed.strays.append(found)
            elif found is not None:
                route, ours = found
                key = route_key(route)
                # What names another device or table is no route of ours, even if it carries our protocol.
                ours = ours and route.table in _TABLES and (route.device is None or route.device in _OUR_DEVICES)
                if ours and key not in observed.routes:
                    observed.routes[key] = route
                else:
                    what = f"route {route.prefix} in table {route.table}"
                    observed.strays.append(Stray(what, body, rtnetlink.RTM_DELROUTE))


def _rules(observed: Observed, pipe: NetlinkSocket) -> None:
    observed.rules = set()
    for family in _FAMILIES:
        for body in rtnetlink.dump_rules(pipe, family):
            found = rtnetlink.read_rule(body)
            if isinstance(found, Rule) and found not in observed.rules:
                observed.rules.add(found)
            elif isinstance(found, Rule):
                what = f"second rule {found.preference}"
                observed.strays.append(Stray(what, body, rtnetlink.RTM_DELRULE))
            elif found is not None:
                observed.strays.append(found)


def _filter() -> nft.FilterFacts | None:
    try:
        return nft.observe()
    except HostError:
        # Without a working nft there is no table to be seen. Where one is wanted, writing it says what is wrong, and
        # the rest of the host's state does not wait for it.
        return None
