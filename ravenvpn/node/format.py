"""Our things on a host in words, near to how ip(8) writes them: for plans, reports and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ravenvpn.mesh.hoststate import (
    NFT_TABLE,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node.operations import HostDevice, LocalPrefixes, Operation
from ravenvpn.node.rtnetlink import Stray


def words(thing: object) -> str:
    """One thing, without its reason."""
    match thing:
        case Route():
            parts = [str(thing.prefix), f"table {thing.table}"]
            parts[0] = f"{thing.kind} {parts[0]}" if thing.kind != "unicast" else parts[0]
            for name in ("via", "device", "source", "mtu"):
                value = getattr(thing, name)
                if value is not None:
                    parts.append(f"{ {'device': 'dev', 'source': 'src'}.get(name, name) } {value}")
            return "route " + " ".join([*parts, *([f"metric {thing.metric}"] if thing.metric else [])])
        case Rule():
            parts = [f"rule {thing.preference} IPv{thing.family}"]
            conditions = (
                ("iif", thing.input_device),
                ("to", thing.to),
                ("ipproto", thing.ip_protocol),
                ("sport", thing.source_port),
                ("dport", thing.destination_port),
            )
            parts += [f"{name} {value}" for name, value in conditions if value is not None]
            return " ".join([*parts, thing.action, *([str(thing.target)] if thing.target else [])])
        case TunDevice():
            return f"device {thing.name} mtu {thing.mtu} up"
        case VxlanDevice():
            return f"device {thing.name} VXLAN {thing.vni} port {thing.port} local {thing.local} mtu {thing.mtu}"
        case HostDevice():
            return f"device {thing.name}"
        case DeviceAddress():
            return f"address {thing.address} dev {thing.device}"
        case Neighbour():
            return f"neighbour {thing.address} at {thing.mac} dev {thing.device}"
        case ForwardingEntry():
            return f"forwarding entry {thing.mac} to {thing.destination} dev {thing.device}"
        case Sysctl():
            return f"sysctl {thing.key}={thing.value}"
        case Stray():
            return thing.what
        case LocalPrefixes():
            return f"nft table {NFT_TABLE}: {len(thing.prefixes)} prefixes of this region"
        case _:
            return f"nft table {NFT_TABLE}"


def counted(operations: Iterable[Operation]) -> str:
    """For a log line: "add 12 route, change 1 sysctl"."""
    counts = Counter((operation.verb, type(operation.thing).__name__.lower()) for operation in operations)
    return ", ".join(f"{verb} {count} {name}" for (verb, name), count in sorted(counts.items()))
