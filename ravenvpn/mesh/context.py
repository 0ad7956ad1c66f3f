"""What a node's plan depends on beside the other regions: who it is, what its host is like, how it is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ravenvpn.mesh.claims import NetworkSet
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.topology import GatewayNode, Hub, Region
from ravenvpn.mesh.vxlan_members import Overlay

# Outer IPv6 header 40, UDP 8, transport header and tag 32. Outer IPv4 would save 20; a session may move between
# the families at any time, so the smaller figure holds for both.
TUNNEL_OVERHEAD = 80
MIN_MTU = 1280  # RFC 8200 §5: below it a link carries no IPv6


@dataclass(frozen=True, slots=True)
class ApiEndpoint:
    """Where the client dials the API server; behind a ClusterIP each address behind it."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What planning may know of this host. The defaults suit a plan that is only printed.

    `addresses` are those present and usable (not tentative), None where nobody looked, and `networks` what they say
    is on the link with them. `mtus` map a literal address
    to the MTU of the route towards it, where that differs from `default_mtu`, the underlay's. `ipv6` is False where
    the kernel has none at all; `ipv6_disabled` is the sysctl `all.disable_ipv6`. `force_forwarding` says whether the
    kernel knows that sysctl (Linux ≥ 6.17). `pod_devices` are the devices behind which pods live and which do not
    forward now; `advertised` those that rely on router advertisements.
    """

    addresses: frozenset[Address] | None = None
    networks: frozenset[Prefix] = frozenset()
    default_mtu: int = 1500
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    ipv6: bool = True
    ipv6_disabled: bool = False
    force_forwarding: bool = True
    pod_devices: tuple[str, ...] = ()
    advertised: tuple[str, ...] = ()
    api: tuple[ApiEndpoint, ...] = ()

    def tunnel_mtu(self, hosts: tuple[str, ...] = ()) -> int:
        """MTU inside the tunnel towards these hosts: the smallest that any of them allows, never below 1280."""
        return max(min(self.path_mtu(hosts), self.default_mtu) - TUNNEL_OVERHEAD, MIN_MTU)

    def path_mtu(self, hosts: tuple[str, ...]) -> int:
        """The smallest MTU of the routes to these hosts, as they are outside the tunnel."""
        return min((self.mtus.get(host, self.default_mtu) for host in hosts), default=self.default_mtu)

    @property
    def families(self) -> tuple[int, ...]:
        return (4, 6) if self.ipv6 else (4,)


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's choices that planning heeds."""

    listen_port: int | None = None  # endpoint.port > this > Peer.spec.listenPort > 4500
    keepalive: int = 25  # seconds, on the side behind NAT (wg's customary figure)
    forward_node_ip: bool = False  # whether node addresses are routed and accepted, as pods are


@dataclass(frozen=True, slots=True)
class Context:
    """Who this node is in this world. Equal contexts make equal fragments of equal regions."""

    node: str
    mesh: str
    role: NodeRole
    region: Region | None
    me: GatewayNode | None  # this node as a gateway of its region, where it is one
    sources: Mapping[int, Address]  # own source by family
    shadowed: frozenset[Prefix]  # others' prefixes that are our own network's here
    near: NetworkSet  # our own network: no node of another region is looked for elsewhere at an address in here
    facts: LocalFacts
    settings: Settings
    hubs: tuple[Hub, ...]
    overlay: Overlay | None = None  # its part in its region's VXLAN

    @property
    def dialable(self) -> bool:
        return self.me is not None and self.me.dialable

    @property
    def is_gateway(self) -> bool:
        return self.role in (NodeRole.ACTIVE, NodeRole.STANDBY)

    @property
    def relays(self) -> bool:
        """Whether packets between two other regions may pass here."""
        return (
            self.role is NodeRole.ACTIVE
            and self.region is not None
            and any(self.node in hub.active for hub in self.hubs if hub.region == self.region.name)
        )
