"""Addresses that follow from names, so that nobody has to hand them out (docs/architecture).

Every hash is SHA-256 of the UTF-8 name, its first bits, in network byte order. Two names can meet in one address;
`mesh.conflict_index` looks for that, this module only derives.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ravenvpn.mesh.hoststate import Address

_TUNNEL_SUBNET = 1  # <mesh /48>:1::/64 holds the tunnel addresses of nodes
_VXLAN_SUBNET = 2  # <mesh /48>:2::/64 their IPv6 next hops on the VXLAN
_VXLAN_OCTET = 240  # upstream: the node's IPv4 address with this first octet
_MAC_PREFIX = bytes((0xAA, 0x0F))  # upstream's --customized-mac-prefix


def _hash(name: str, octets: int) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:octets], "big")


@lru_cache(maxsize=8)
def mesh_network(mesh: str) -> IPv6Network:
    """The mesh's /48: fd00::/8 (RFC 4193, locally assigned) with 40 bits of the name's hash as global id."""
    return IPv6Network((0xFD << 120 | _hash(mesh, 5) << 80, 48))


@lru_cache(maxsize=1 << 15)
def tunnel_address(mesh: str, node: str) -> IPv6Address:
    """Where a node is inside the tunnel: `<mesh /48>:1::<64-bit hash of its name>`, whatever its keys are."""
    return mesh_network(mesh)[_TUNNEL_SUBNET << 64 | _hash(node, 8)]


def vxlan_next_hop(mesh: str, node: str) -> IPv6Address:
    """The IPv6 next hop that stands for a node on the VXLAN: `<mesh /48>:2::<64-bit hash of its name>`."""
    return mesh_network(mesh)[_VXLAN_SUBNET << 64 | _hash(node, 8)]


def vxlan_address(private_ip: IPv4Address) -> IPv4Address:
    """The IPv4 address of a node on the VXLAN, as upstream derives it: 10.1.2.3 becomes 240.1.2.3."""
    return IPv4Address(_VXLAN_OCTET << 24 | int(private_ip) & 0xFFFFFF)


def vxlan_mac(node: str, private_ip: Address | None) -> str:
    """The MAC of a node on the VXLAN: aa:0f, then its VXLAN IPv4 address, or 32 bits of its name's hash."""
    if isinstance(private_ip, IPv4Address):
        tail = vxlan_address(private_ip).packed
    else:
        tail = hashlib.sha256(node.encode()).digest()[:4]
    return (_MAC_PREFIX + tail).hex(":")
