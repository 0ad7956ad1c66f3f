"""Format host objects and operations as text, close to the syntax of ip(8): for plans, reports, logs and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ravenvpn.mesh.hoststate import (
    NFT_TABLE,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    PacketFilter,
    Route,
    RouteKind,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node.links import LinkFacts
from ravenvpn.node.operations import HostObject, Operation, OwnedDevice, SetElements
from ravenvpn.node.rtnetlink import Stray


def format_object(target: HostObject | PacketFilter) -> str:
    """Return one line for an object, without its reason: "route 10.244.2.0/24 table 9127 dev ravenvpn0 mtu 1420".

    Errors use it as their subject, so the text identifies the object on the host.
    """
    match target:
        case Route():
            return _format_route(target)
        case Rule():
            return _format_rule(target)
        case TunDevice():
            return f"device {target.name} mtu {target.mtu} up"
        case VxlanDevice():
            return f"device {target.name} VXLAN {target.vni} port {target.port} local {target.local} mtu {target.mtu}"
        case OwnedDevice():
            return f"device {target.name}"
        case DeviceAddress():
            return f"address {target.address} dev {target.device}"
        case Neighbour():
            return f"neighbour {target.address} at {target.mac} dev {target.device}"
        case ForwardingEntry():
            return f"forwarding entry {target.mac} to {target.destination} dev {target.device}"
        case Sysctl():
            return f"sysctl {target.key}={target.value}"
        case Stray():  # named when it was parsed
            return target.description
        case SetElements():  # the count alone: a region may have hundreds
            return f"nft table {NFT_TABLE}: {len(target.elements)} set elements"
        case _:  # the packet filter, planned, written or removed
            return f"nft table {NFT_TABLE}"


# Nouns for counts, one per type. Everything that is not listed is the nft table or a part of it.
_NOUNS: dict[type, str] = {
    Route: "route",
    Rule: "rule",
    Stray: "stray object",
    TunDevice: "device",
    VxlanDevice: "device",
    OwnedDevice: "device",
    DeviceAddress: "address",
    Neighbour: "neighbour",
    ForwardingEntry: "forwarding entry",
    Sysctl: "sysctl",
}


def format_counts(operations: Iterable[Operation]) -> str:
    """Return the number of operations by verb and type, for a log line: "add 12 route, change 1 sysctl"."""
    counts = Counter((operation.verb, _NOUNS.get(type(operation.target), "nft table")) for operation in operations)
    return ", ".join(f"{verb} {count} {name}" for (verb, name), count in sorted(counts.items()))


def format_link(link: LinkFacts | None) -> str:
    """Return the settings of a device that a change replaces: "mtu 1400 aa:0f:0a:00:00:05 up"; "absent" for None."""
    if link is None:
        return "absent"
    words = (f"mtu {link.mtu}", link.mac, "up" if link.up else "down")
    return " ".join(word for word in words if word)


def _format_route(route: Route) -> str:
    """Return "route [unreachable] PREFIX table N [via A] [dev D] [src A] [mtu N] [metric N]"."""
    kind = () if route.kind is RouteKind.UNICAST else (route.kind,)
    options = (("via", route.via), ("dev", route.device), ("src", route.source), ("mtu", route.mtu))
    return " ".join(
        (
            "route",
            *kind,
            str(route.prefix),
            f"table {route.table}",
            *(f"{name} {value}" for name, value in options if value is not None),
            *((f"metric {route.metric}",) if route.metric else ()),
        )
    )


def _format_rule(rule: Rule) -> str:
    """Return "rule PREFERENCE IPvN [iif D] [to PREFIX] [ipproto N] [sport N] [dport N] ACTION [TARGET]".

    The target of a lookup is a table, that of a goto a preference."""
    conditions = (
        ("iif", rule.input_device),
        ("to", rule.to),
        ("ipproto", rule.ip_protocol),
        ("sport", rule.source_port),
        ("dport", rule.destination_port),
    )
    return " ".join(
        (
            f"rule {rule.preference} IPv{rule.family}",
            *(f"{name} {value}" for name, value in conditions if value is not None),
            rule.action,
            *((str(rule.target),) if rule.target else ()),
        )
    )
