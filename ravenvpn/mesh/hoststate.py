"""`HostState`, the desired state of a host: plain values that `mesh.plan` makes and `node` applies.

Every value carries the `Reason` it is there. A reason is no part of equality: the same route for another reason is
the same route.

It holds our own objects alone. `node` leaves other objects of the host as they are, unless they carry our marks: the
device names, the tables, the nft table, or protocol 157 on routes and rules.
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

# Our names on a host (docs/architecture/README.md, "Fixed names").
TUNNEL_DEVICE = "ravenvpn0"
VXLAN_DEVICE = "raven0"
PROTOCOL = 157  # rtm_protocol of our routes, FRA_PROTOCOL of our rules
TABLE_REMOTE = 9127  # prefixes of other regions
TABLE_LOCAL = 9129  # for packets that arrive from the tunnel or the VXLAN
NFT_TABLE = "ravenvpn"  # family inet
# So large that a route by a device always wins. The figure is that of Documentation/networking/vrf.rst for
# unreachable default routes; FRRouting reads it as distance 255, priority 8192.
FAIL_CLOSED_METRIC = 4278198272


class RouteKind(StrEnum):
    """Type of a route (ip-route(8))."""

    UNICAST = "unicast"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the kernel."""

    prefix: Prefix
    table: int  # TABLE_REMOTE or TABLE_LOCAL
    kind: RouteKind = RouteKind.UNICAST
    device: str | None = None  # None for UNREACHABLE
    via: Address | None = None  # next hop, installed with `onlink`: it lies in no subnet of the device
    source: Address | None = None  # preferred source of connections that start on this host
    mtu: int | None = None  # bytes
    metric: int = 0  # lower wins
    reason: Reason | None = field(default=None, compare=False)


class RuleAction(StrEnum):
    """Action of a policy routing rule (ip-rule(8))."""

    LOOKUP = "lookup"
    GOTO = "goto"
    NOP = "nop"


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy routing rule. A condition that is None matches every packet."""

    family: int  # 4 or 6
    preference: int  # lower is evaluated first
    action: RuleAction
    target: int = 0  # table for LOOKUP, preference for GOTO
    input_device: str | None = None  # "lo": packets that start on this host
    to: Prefix | None = None  # destination
    ip_protocol: int | None = None  # 6 TCP, 17 UDP
    source_port: int | None = None
    destination_port: int | None = None
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TunDevice:
    """The tunnel's device. The agent opens it; `node` sets its MTU and brings it up."""

    name: str
    mtu: int  # bytes
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """VXLAN between the nodes of one region: no learning, no flooding, permanent entries only."""

    name: str
    vni: int
    port: int  # UDP
    mtu: int  # bytes
    mac: str
    local: Address  # outer source; the device that has this address carries the VXLAN
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """An address of one of our devices."""

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
    """A kernel setting."""

    key: str  # with slashes: "net/ipv4/conf/ravenvpn0/rp_filter"
    value: str
    ours: bool = True  # the key disappears with our own device; False: `cleanup` restores its old value
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """The content of our one nft table; `node.nft` writes it.

    TCP MSS is clamped to the route's MTU for packets to `local` and `remote`.
    """

    local: Sequence[Prefix] = ()  # set elements: pods, own sources and node addresses of this region
    remote: Sequence[Prefix] = ()  # set elements: the same of every other region
    relays: bool = False  # this node is a hub: packets from remote to remote prefixes are forwarded
    own_sources: Sequence[Address] = ()  # SNAT of packets that start or were masqueraded here; one a family
    vxlan_sources: Sequence[Address] = ()  # outer sources whose VXLAN frames are accepted
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class HostState:
    """All planned objects of one host, each part sorted, so that equal plans are equal values."""

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
    """The difference of two desired states, so that a small change costs a small diff.

    Both sides are partial states. A changed object (another MTU on the same route) is in both. `tun` and `vxlan` are
    None where they did not change. If only elements of the packet filter's sets changed, `local` and `remote` hold
    just these elements. `vxlan_sources` are few: each side holds all of its own.
    """

    added: HostState = field(default_factory=HostState)  # new or changed, with the new value
    removed: HostState = field(default_factory=HostState)  # gone or changed, with the old value
    # The packet filter is new, gone, or differs in more than elements; then each side holds all of it, or None.
    filter_replaced: bool = False

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return self.filter_replaced or self.added != HostState() or self.removed != HostState()
