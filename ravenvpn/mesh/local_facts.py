"""Facts of this host that a plan depends on: addresses, path MTUs, kernel abilities, API server endpoints.

`ravenvpn.node.discovery` reads them from the kernel. Planning only sees these values, so it stays pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.overhead import ETHERNET_MTU, tunnel_mtu


@dataclass(frozen=True, slots=True)
class ApiEndpoint:
    """A socket address at which the client dials the API server; behind a ClusterIP, one per backend."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """Facts of one host at one instant. The defaults suit a plan that is only printed."""

    # Addresses present and usable (not tentative); None: not read, so every announced address counts as present.
    addresses: frozenset[Address] | None = None
    networks: frozenset[Prefix] = frozenset()  # on-link prefixes of these addresses
    default_mtu: int = ETHERNET_MTU  # of the underlay device, bytes
    # Literal destination address → MTU of the route towards it, only where it differs from `default_mtu`.
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    ipv6: bool = True  # False: the kernel was built or booted without IPv6
    ipv6_disabled: bool = False  # sysctl net.ipv6.conf.all.disable_ipv6
    force_forwarding: bool = True  # the kernel has net.ipv6.conf.*.force_forwarding (Linux ≥ 6.17)
    pod_devices: tuple[str, ...] = ()  # devices with pods behind them that do not forward now
    advertised: tuple[str, ...] = ()  # devices whose routes come from router advertisements
    api: tuple[ApiEndpoint, ...] = ()  # sorted; empty where the world comes from a directory

    def tunnel_mtu(self, hosts: tuple[str, ...] = ()) -> int:
        """Return the MTU inside the tunnel towards these hosts: the smallest of all their paths, at least 1280."""
        return tunnel_mtu(min(self.path_mtu(hosts), self.default_mtu))

    def path_mtu(self, hosts: tuple[str, ...]) -> int:
        """Return the smallest MTU of the underlay routes to these hosts; `default_mtu` without hosts."""
        return min((self.mtus.get(host, self.default_mtu) for host in hosts), default=self.default_mtu)

    @property
    def families(self) -> tuple[int, ...]:
        """Address families (4, 6) in which rules and sources are planned."""
        return (4, 6) if self.ipv6 else (4,)
