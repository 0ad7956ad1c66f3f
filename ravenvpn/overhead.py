"""Header sizes of the encapsulations, and the MTU arithmetic built on them. All sizes in bytes.

Sources: WireGuard whitepaper §5.4.6 (transport data message), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 768 (UDP),
RFC 7348 §5 (VXLAN). IP options and extension headers are not counted: we send none on the outer network.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

IPV4_HEADER: Final = 20  # without options
IPV6_HEADER: Final = 40  # without extension headers
UDP_HEADER: Final = 8
ETHERNET_HEADER: Final = 14  # without a VLAN tag
VXLAN_HEADER: Final = 8
# Type and reserved bytes 4, receiver index 4, counter 8; the AEAD tag is 16 more.
TRANSPORT_HEADER: Final = 16
TRANSPORT_TAG: Final = 16
TRANSPORT_OVERHEAD: Final = TRANSPORT_HEADER + TRANSPORT_TAG

ETHERNET_MTU: Final = 1500
MIN_IPV6_MTU: Final = 1280  # RFC 8200 §5: a link with a smaller MTU carries no IPv6

IP_HEADER: Final[Mapping[int, int]] = MappingProxyType({4: IPV4_HEADER, 6: IPV6_HEADER})  # by IP version

# A session may move between the outer families at any time, so the tunnel's MTU leaves room for the larger header.
TUNNEL_OVERHEAD: Final = IPV6_HEADER + UDP_HEADER + TRANSPORT_OVERHEAD


def tunnel_mtu(underlay: int) -> int:
    """Return the MTU inside the tunnel over a path with MTU `underlay`, at least the minimum that IPv6 needs."""
    return max(underlay - TUNNEL_OVERHEAD, MIN_IPV6_MTU)


def vxlan_mtu(underlay: int, family: int) -> int:
    """Return the MTU of a VXLAN device whose outer packets have IP version `family`; not bounded below."""
    return underlay - IP_HEADER[family] - UDP_HEADER - VXLAN_HEADER - ETHERNET_HEADER
