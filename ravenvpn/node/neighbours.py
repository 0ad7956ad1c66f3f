"""Permanent neighbours and forwarding entries of the VXLAN as netlink messages, packed by hand, and read back.

By the thousand in a large region; and pyroute2 can neither dump nor delete a forwarding entry bound to a device, as
the kernel makes one for a VXLAN with a default destination (`ip link add … remote …`), which floods.

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
    attribute,
    attributes,
    message,
)
from ravenvpn.node.rtnetlink import Stray

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_NDA_DST, _NDA_LLADDR, _NDA_VLAN, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_SRC_VNI, _NDA_NH_ID = (
    1,
    2,
    5,
    6,
    7,
    8,
    11,
    13,
)
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_SELF = 2  # the VXLAN's own forwarding table, not a bridge's above it
_AF_BRIDGE = 7
_NO_MAC = bytes(6)

NDMSG = struct.Struct("=BxxxiHBB")  # family, device index, state, flags, type


def put_neighbour(item: Neighbour, index: int) -> bytes:
    return _neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, item, index)


def delete_neighbour(item: Neighbour, index: int) -> bytes:
    return _neighbour(RTM_DELNEIGH, 0, item, index)


def put_forwarding(item: ForwardingEntry, index: int) -> bytes:
    """Add the entry, or put it in the place of the one of its MAC."""
    return _forwarding(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, item, index)


def delete_forwarding(item: ForwardingEntry, index: int) -> bytes:
    return _forwarding(RTM_DELNEIGH, 0, item, index)


def _neighbour(kind: int, flags: int, item: Neighbour, index: int) -> bytes:
    family = socket.AF_INET if item.address.version == 4 else socket.AF_INET6
    body = NDMSG.pack(family, index, _NUD_PERMANENT, 0, 0) + attribute(_NDA_DST, item.address.packed)
    if kind == RTM_NEWNEIGH:
        body += attribute(_NDA_LLADDR, _packed(item.mac))
    return message(kind, NLM_F_ACK | flags, body)


def _forwarding(kind: int, flags: int, item: ForwardingEntry, index: int) -> bytes:
    body = NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    body += attribute(_NDA_LLADDR, _packed(item.mac)) + attribute(_NDA_DST, item.destination.packed)
    return message(kind, NLM_F_ACK | flags, body)


def neighbours(pipe: NetlinkSocket, index: int, device: str) -> Iterator[Neighbour]:
    """Permanent entries of both families; what the kernel has learnt is its own."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for _, body in pipe.dump(RTM_GETNEIGH, NDMSG.pack(family, 0, 0, 0, 0)):
            found_family, found_index, state, _, _ = NDMSG.unpack_from(body)
            if (found_family, found_index) != (family, index) or not state & _NUD_PERMANENT:
                continue
            found = attributes(body, NDMSG.size)
            if _NDA_DST in found:
                yield Neighbour(device, _address(found[_NDA_DST]), _mac(found.get(_NDA_LLADDR, _NO_MAC)))


def forwarding(pipe: NetlinkSocket, index: int, device: str) -> Iterator[ForwardingEntry | Stray]:
    """The VXLAN's own entries. What no plan says (learnt ones, with a port, VNI or device) comes back as a stray, for
    it sends frames where nobody meant them to go. Entries without a destination belong to the kernel."""
    for _, body in pipe.dump(RTM_GETNEIGH, NDMSG.pack(_AF_BRIDGE, index, 0, 0, 0)):
        found_family, found_index, state, flags, _ = NDMSG.unpack_from(body)
        found = attributes(body, NDMSG.size)
        if (found_family, found_index) != (_AF_BRIDGE, index) or _NDA_DST not in found or _NDA_LLADDR not in found:
            continue
        mac, destination = _mac(found[_NDA_LLADDR]), _address(found[_NDA_DST])
        more = [
            kind for kind in (_NDA_VLAN, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_SRC_VNI, _NDA_NH_ID) if kind in found
        ]
        if more or not state & _NUD_PERMANENT:
            kinds = (_NDA_DST, _NDA_LLADDR, *more)
            head = NDMSG.pack(_AF_BRIDGE, index, state, flags, 0)
            again = head + b"".join(attribute(kind, found[kind]) for kind in kinds)
            yield Stray(f"forwarding entry {mac} to {destination} dev {device}", again, RTM_DELNEIGH)
        else:
            yield ForwardingEntry(device, mac, destination)


def _address(packed: bytes) -> Address:
    return ip_address(packed)


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac(packed: bytes) -> str:
    return packed.hex(":")
