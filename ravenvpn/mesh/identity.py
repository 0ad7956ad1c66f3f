"""Addresses derived from names, so that no allocator is needed: tunnel and VXLAN addresses, MACs.

Every hash is the first bits of SHA-256 of the UTF-8 name, in network byte order. Two names can have one address;
`mesh.conflict_index` detects that, this module only derives.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ravenvpn.mesh.hoststate import Address

_TUNNEL_SUBNET = 1  # <mesh /48>:1::/64 holds the tunnel addresses of nodes
_VXLAN_SUBNET = 2  # <mesh /48>:2::/64 their IPv6 next hops on the VXLAN
_VXLAN_OCTET = 240  # OpenYurt: the node's IPv4 address with this first octet
_MAC_PREFIX = bytes((0xAA, 0x0F))  # OpenYurt's default of --customized-mac-prefix


def _hash(name: str, octets: int) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:octets], "big")


@lru_cache(maxsize=8)
def mesh_network(mesh: str) -> IPv6Network:
    """Return the mesh's /48: fd00::/8 (RFC 4193, locally assigned) with 40 bits of the name's hash as global id."""
    return IPv6Network((0xFD << 120 | _hash(mesh, 5) << 80, 48))


@lru_cache(maxsize=1 << 15)
def tunnel_address(mesh: str, node: str) -> IPv6Address:
    """Return a node's address in the tunnel: `<mesh /48>:1::<64-bit hash of its name>`, independent of its keys."""
    return mesh_network(mesh)[_TUNNEL_SUBNET << 64 | _hash(node, 8)]


def vxlan_next_hop(mesh: str, node: str) -> IPv6Address:
    """Return a node's IPv6 address on the VXLAN: `<mesh /48>:2::<64-bit hash of its name>`."""
    return mesh_network(mesh)[_VXLAN_SUBNET << 64 | _hash(node, 8)]


def vxlan_address(private_ip: IPv4Address) -> IPv4Address:
    """Return a node's IPv4 address on the VXLAN, as OpenYurt derives it: 10.1.2.3 becomes 240.1.2.3.

    240.0.0.0/4 is reserved (RFC 1112 §4), so it collides with no network in use; Linux routes it.
    """
    return IPv4Address(_VXLAN_OCTET << 24 | int(private_ip) & 0xFFFFFF)


def vxlan_mac(node: str, private_ip: Address | None) -> str:
    """Return a node's MAC on the VXLAN: aa:0f, then its VXLAN IPv4 address, or 32 bits of its name's hash."""
    if isinstance(private_ip, IPv4Address):
        tail = vxlan_address(private_ip).packed
    else:
        tail = hashlib.sha256(node.encode()).digest()[:4]
    return (_MAC_PREFIX + tail).hex(":")
