"""Pack permanent neighbours and FDB entries of the VXLAN into rtnetlink messages, and parse dumps of them.

By hand with struct, for two reasons: a large region has thousands (`netlink` has the figures), and pyroute2 can
neither dump nor delete an FDB entry that is bound to a device. The kernel makes one for a VXLAN with a default
destination (`ip link add … remote …`); it floods.

Layouts: linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from ravenvpn.mesh.hoststate import Address, ForwardingEntry, Neighbour
from ravenvpn.node.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NetlinkSocket,
    pack_attribute,
    pack_message,
    parse_attributes,
)
from ravenvpn.node.rtnetlink import Stray

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_NDA_DST, _NDA_LLADDR = 1, 2  # address (of an FDB entry: the underlay destination), MAC
# Attributes of FDB entries that no plan makes: other destination ports, VNIs or devices, and nexthop groups.
_NDA_VLAN, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_SRC_VNI, _NDA_NH_ID = 5, 6, 7, 8, 11, 13
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40  # states: never expires; not resolved by ARP or neighbour discovery
_NTF_SELF = 2  # the VXLAN's own FDB, not that of a bridge above it
_AF_BRIDGE = 7
_NO_MAC = bytes(6)

NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type


def replace_neighbour(item: Neighbour, index: int) -> bytes:
    """Return the request that adds a neighbour or replaces the entry of its address; `index` is the ifindex."""
    return _pack_neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, item, index)


def delete_neighbour(item: Neighbour, index: int) -> bytes:
    """Return the request that deletes the neighbour entry of an address."""
    return _pack_neighbour(RTM_DELNEIGH, 0, item, index)


def replace_forwarding(item: ForwardingEntry, index: int) -> bytes:
    """Return the request that adds an FDB entry or replaces the entry of its MAC."""
    return _pack_forwarding(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, item, index)


def delete_forwarding(item: ForwardingEntry, index: int) -> bytes:
    """Return the request that deletes an FDB entry; MAC and destination must match."""
    return _pack_forwarding(RTM_DELNEIGH, 0, item, index)


def _pack_neighbour(kind: int, flags: int, item: Neighbour, index: int) -> bytes:
    family = socket.AF_INET if item.address.version == 4 else socket.AF_INET6
    body = NDMSG.pack(family, index, _NUD_PERMANENT, 0, 0) + pack_attribute(_NDA_DST, item.address.packed)
    if kind == RTM_NEWNEIGH:
        body += pack_attribute(_NDA_LLADDR, _pack_mac(item.mac))
    return pack_message(kind, NLM_F_ACK | flags, body)


def _pack_forwarding(kind: int, flags: int, item: ForwardingEntry, index: int) -> bytes:
    body = NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    body += pack_attribute(_NDA_LLADDR, _pack_mac(item.mac)) + pack_attribute(_NDA_DST, item.destination.packed)
    return pack_message(kind, NLM_F_ACK | flags, body)


def dump_neighbours(netlink: NetlinkSocket, index: int, device: str) -> Iterator[Neighbour]:
    """Yield the permanent neighbours of both families on the device `index`, called `device`.

    Entries in other states were learned by the kernel and are left to it.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for _, body in netlink.dump(RTM_GETNEIGH, NDMSG.pack(family, 0, 0, 0, 0)):
            found_family, found_index, state, _, _ = NDMSG.unpack_from(body)
            if (found_family, found_index) != (family, index) or not state & _NUD_PERMANENT:
                continue
            found = parse_attributes(body, NDMSG.size)
            if _NDA_DST in found:
                yield Neighbour(device, _parse_address(found[_NDA_DST]), _parse_mac(found.get(_NDA_LLADDR, _NO_MAC)))


def dump_forwarding(netlink: NetlinkSocket, index: int, device: str) -> Iterator[ForwardingEntry | Stray]:
    """Yield the FDB entries of the VXLAN `index`, called `device`.

    Entries that no plan makes (learned, or with a port, VNI or device of their own) come as Strays to be deleted,
    since they divert frames. Entries without a destination belong to the kernel and are left out.
    """
    for _, body in netlink.dump(RTM_GETNEIGH, NDMSG.pack(_AF_BRIDGE, index, 0, 0, 0)):
        found_family, found_index, state, flags, _ = NDMSG.unpack_from(body)
        found = parse_attributes(body, NDMSG.size)
        if (found_family, found_index) != (_AF_BRIDGE, index) or _NDA_DST not in found or _NDA_LLADDR not in found:
            continue
        mac, destination = _parse_mac(found[_NDA_LLADDR]), _parse_address(found[_NDA_DST])
        unplanned = (_NDA_VLAN, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_SRC_VNI, _NDA_NH_ID)
        more = [kind for kind in unplanned if kind in found]
        if more or not state & _NUD_PERMANENT:
            # The deletion has to repeat every attribute that distinguishes the entry from others of its MAC.
            kinds = (_NDA_DST, _NDA_LLADDR, *more)
            header = NDMSG.pack(_AF_BRIDGE, index, state, flags, 0)
            message = header + b"".join(pack_attribute(kind, found[kind]) for kind in kinds)
            yield Stray(f"forwarding entry {mac} to {destination} dev {device}", message, RTM_DELNEIGH)
        else:
            yield ForwardingEntry(device, mac, destination)


def _parse_address(packed: bytes) -> Address:
    return ip_address(packed)


def _pack_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _parse_mac(packed: bytes) -> str:
    return packed.hex(":")
