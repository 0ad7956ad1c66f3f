"""What a host should look like: plain values that `mesh.plan` makes and `node` brings about.

Every value carries the `Reason` it is there. A reason is no part of equality: the same route for another reason is
the same route.

Only what is ours is described. What the host has beyond it is found by `node` and left alone, unless it carries our
marks: the device names, the tables, the nft table, or protocol 157 on routes and rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from ravenvpn.mesh.reason import Reason

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

# Names of ours on a host (docs/architecture/README.md, "Fixed names").
TUNNEL_DEVICE = "ravenvpn0"
VXLAN_DEVICE = "raven0"
PROTOCOL = 157  # rtm_protocol of our routes, FRA_PROTOCOL of our rules
TABLE_REMOTE = 9127  # prefixes of other regions
TABLE_LOCAL = 9129  # where traffic out of the tunnel goes
NFT_TABLE = "ravenvpn"  # family inet
# Last metric before the kernel's own unreachable default: a device route always wins over it.
FAIL_CLOSED_METRIC = 4278198272


class RouteKind(StrEnum):
    UNICAST = "unicast"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `via` is on-link by declaration: our next hops lie in no subnet of the device."""

    prefix: Prefix
    table: int
    kind: RouteKind = RouteKind.UNICAST
    device: str | None = None
    via: Address | None = None
    source: Address | None = None  # preferred source of what starts on this host
    mtu: int | None = None
    metric: int = 0
    reason: Reason | None = field(default=None, compare=False)


class RuleAction(StrEnum):
    LOOKUP = "lookup"
    GOTO = "goto"
    NOP = "nop"


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy rule of one family (4 or 6). `target` is a table for LOOKUP, a preference for GOTO."""

    family: int
    preference: int
    action: RuleAction
    target: int = 0
    input_device: str | None = None  # "lo": what starts here
    to: Prefix | None = None
    ip_protocol: int | None = None  # 6 TCP, 17 UDP
    source_port: int | None = None
    destination_port: int | None = None
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TunDevice:
    """The tunnel's device. The daemon opens it; `node` sets MTU and state."""

    name: str
    mtu: int
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """VXLAN between the nodes of one region: no learning, no flooding, permanent entries only."""

    name: str
    vni: int
    port: int
    mtu: int
    mac: str
    local: Address  # our underlay address; its device carries the VXLAN
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    device: str
    address: Interface
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry: `address` on `device` is at `mac`."""

    device: str
    address: Address
    mac: str
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ForwardingEntry:
    """A permanent FDB entry of a VXLAN: frames to `mac` go to the underlay address `destination`."""

    device: str
    mac: str
    destination: Address
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """`key` as sysctl(8) writes it, with slashes ("net/ipv4/conf/ravenvpn0/rp_filter").

    `ours` is true for keys that vanish with our own devices; the others are put back by `cleanup`.
    """

    key: str
    value: str
    ours: bool = True
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """The meaning of our one nft table; `node.nft` knows how it is written (docs/architecture/host-network.md)."""

    # TCP MSS follows the route's MTU for what is forwarded or sent to these prefixes.
    local: Sequence[Prefix] = ()  # pods (and single node addresses) of this region, as this node sees them
    remote: Sequence[Prefix] = ()  # of every other region
    relays: bool = False  # remote → remote passes here (a hub)
    own_sources: Sequence[Address] = ()  # what starts here or was masqueraded here leaves with these, one a family
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class HostState:
    """All of it, each part sorted so that equal plans are equal values."""

    tun: TunDevice | None = None
    vxlan: VxlanDevice | None = None
    addresses: tuple[DeviceAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    forwarding: tuple[ForwardingEntry, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    packet_filter: PacketFilter | None = None


@dataclass(frozen=True, slots=True)
class HostDelta:
    """What turns one wanted HostState into the next, so that a small change costs a small diff.

    Both sides are partial states: `added` holds what is new, `removed` what is no longer wanted. A changed value
    (another MTU on the same route) is in both. `tun` and `vxlan` are whole where they changed and None elsewhere.
    A packet filter whose elements alone changed holds in `local` and `remote` just those elements, and its other
    fields are in force on both sides; `filter_replaced` says that the filter is new, gone, or changed beyond its
    elements, and then both sides hold it whole (None where there is none).
    """

    added: HostState = field(default_factory=HostState)
    removed: HostState = field(default_factory=HostState)
    filter_replaced: bool = False

    def __bool__(self) -> bool:
        return self.filter_replaced or self.added != HostState() or self.removed != HostState()
