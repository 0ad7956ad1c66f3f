"""Parts of the host's state that are observed and repaired separately, and which part an object belongs to. Pure."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from ravenvpn.mesh.hoststate import (
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
from ravenvpn.node.neighbours import RTM_DELNEIGH
from ravenvpn.node.operations import Operation, OwnedDevice
from ravenvpn.node.rtnetlink import RTM_DELRULE, Stray


class HostPart(StrEnum):
    """A part of the host's state. The split follows cost: a dump of 40,000 routes takes a second, the rest is cheap.

    DEVICES includes what belongs to devices: addresses, neighbours, FDB entries and sysctls.
    """

    DEVICES = "devices"
    ROUTES = "routes"  # of both tables and families
    RULES = "rules"  # policy rules of both families
    FILTER = "filter"  # the nft table


ALL_PARTS = frozenset(HostPart)


def restrict(wanted: HostState, parts: frozenset[HostPart]) -> HostState:
    """Return the plan for these parts alone. Our two devices stay in, since everything else depends on them."""
    if HostPart.DEVICES not in parts:
        wanted = replace(wanted, addresses=(), neighbours=(), forwarding=(), sysctls=())
    return replace(
        wanted,
        routes=wanted.routes if HostPart.ROUTES in parts else (),
        rules=wanted.rules if HostPart.RULES in parts else (),
        packet_filter=wanted.packet_filter if HostPart.FILTER in parts else None,
    )


def part_of(operation: Operation) -> HostPart:
    """Return the part that an operation changes."""
    match operation.target:
        case Route():
            return HostPart.ROUTES
        case Rule():
            return HostPart.RULES
        case Stray(deletion=deletion):  # its message type shows the kind of object
            return {RTM_DELRULE: HostPart.RULES, RTM_DELNEIGH: HostPart.DEVICES}.get(deletion, HostPart.ROUTES)
        case (
            TunDevice() | VxlanDevice() | OwnedDevice() | DeviceAddress() | Neighbour() | ForwardingEntry() | Sysctl()
        ):
            return HostPart.DEVICES
        case _:  # Ruleset, SetElements, NftTable
            return HostPart.FILTER


def parts_to_retry(refused: Operation | None) -> frozenset[HostPart]:
    """Return the parts to observe again after a refused operation; all of them if reading failed (None)."""
    if refused is None:
        return ALL_PARTS
    part = part_of(refused)
    # Routes on a device that could not be set up were refused or lost as well.
    return frozenset((part, HostPart.ROUTES)) if part is HostPart.DEVICES else frozenset((part,))
