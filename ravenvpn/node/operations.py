"""Value types between `observe`, `host_diff` and `execute`: the observed state of a host, and changes to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.reason import Reason
from ravenvpn.node.links import LinkFacts
from ravenvpn.node.nft_ruleset import FilterFacts, Ruleset, SetElement
from ravenvpn.node.rtnetlink import RouteKey, Stray
from ravenvpn.node.sysctl import SavedSysctl


class Verb(StrEnum):
    """Kind of a change. The values appear in log lines and in the output of `raven-vpn cleanup`."""

    ADD = "add"  # nothing with the object's key exists
    CHANGE = "change"  # an object with its key exists and is replaced or altered
    REMOVE = "remove"  # of a sysctl: the original value is restored


@dataclass(frozen=True, slots=True)
class OwnedDevice:
    """A device of ours by its name alone; target of removals."""

    name: str


@dataclass(frozen=True, slots=True)
class SetElements:
    """Elements of all sets of the nft table; target of changes where the rest of the table is right."""

    elements: frozenset[SetElement]  # without overlaps within a set


@dataclass(frozen=True, slots=True)
class NftTable:
    """Our nft table; target of its removal."""


HostObject = (
    Route
    | Stray
    | Rule
    | TunDevice
    | VxlanDevice
    | OwnedDevice
    | DeviceAddress
    | Neighbour
    | ForwardingEntry
    | Sysctl
    | Ruleset
    | SetElements
    | NftTable
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of the host."""

    verb: Verb
    target: HostObject  # as it is to be; of a removal, as it is
    before: HostObject | str | None = None  # the state it replaces, where a reader of the log gains from it

    @property
    def reason(self) -> Reason | None:
        """Why the target is part of the plan; None for removals of what no plan contains."""
        return getattr(self.target, "reason", None)


@dataclass(slots=True)
class ObservedState:
    """The kernel's objects of ours at one instant, in the terms of `HostState`."""

    links: dict[str, LinkFacts] = field(default_factory=dict)  # our devices that exist, by name
    foreign: set[str] = field(default_factory=set)  # our device names taken by devices of another kind: never touched
    underlay: int | None = None  # ifindex of the device with the VXLAN's local address; 0: lo has it; None: none has
    addresses: set[DeviceAddress] = field(default_factory=set)  # on our devices, without IPv6 link-local ones
    neighbours: set[Neighbour] = field(default_factory=set)  # permanent entries on the VXLAN
    forwarding: set[ForwardingEntry] = field(default_factory=set)  # permanent FDB entries of the VXLAN
    routes: dict[RouteKey, Route] = field(default_factory=dict)  # in our tables, with our protocol
    rules: set[Rule] = field(default_factory=set)  # with our protocol
    strays: list[Stray] = field(default_factory=list)  # with our marks, but not expressible in a plan, or duplicate
    sysctls: dict[str, str | None] = field(default_factory=dict)  # the planned keys; None: the kernel has no such key
    saved_sysctls: dict[str, SavedSysctl] = field(default_factory=dict)  # from the journal, by key
    packet_filter: FilterFacts | None = None  # None: no table of ours
