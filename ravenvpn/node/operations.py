"""The words of `diff`: what may be on a host, as it was found, and the changes that can be made to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Prefix,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.reason import Reason
from ravenvpn.node import nft
from ravenvpn.node.links import LinkFacts
from ravenvpn.node.rtnetlink import Key, Stray
from ravenvpn.node.sysctl import Remembered


class Verb(StrEnum):
    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One of our devices, only to be removed."""

    name: str


@dataclass(frozen=True, slots=True)
class LocalPrefixes:
    """The elements of the nft sets, where the rest of the table is as it should be."""

    prefixes: frozenset[Prefix]


@dataclass(frozen=True, slots=True)
class Filter:
    """Our nft table, only to be removed."""


Thing = (
    Route
    | Stray
    | Rule
    | TunDevice
    | VxlanDevice
    | HostDevice
    | DeviceAddress
    | Neighbour
    | ForwardingEntry
    | Sysctl
    | nft.Ruleset
    | LocalPrefixes
    | Filter
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One change. `before` is what is replaced, where that tells a person something."""

    verb: Verb
    thing: Thing
    before: Thing | str | None = None

    @property
    def reason(self) -> Reason | None:
        """Return why the thing is planned; None for things that no plan holds (a stray route, a saved sysctl)."""
        return getattr(self.thing, "reason", None)


@dataclass(slots=True)
class Observed:
    """What this host has of ours."""

    links: dict[str, LinkFacts] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)  # devices of another kind under our names: never touched
    underlay: int | None = None  # index of the device that has the VXLAN's local address; 0: bind to none
    addresses: set[DeviceAddress] = field(default_factory=set)
    neighbours: set[Neighbour] = field(default_factory=set)
    forwarding: set[ForwardingEntry] = field(default_factory=set)
    routes: dict[Key, Route] = field(default_factory=dict)
    rules: set[Rule] = field(default_factory=set)
    strays: list[Stray] = field(default_factory=list)  # what no plan makes, or what is there twice
    sysctls: dict[str, str | None] = field(default_factory=dict)
    remembered: dict[str, Remembered] = field(default_factory=dict)
    packet_filter: nft.FilterFacts | None = None
