"""Classic BPF program that drops irrelevant rtnetlink notifications before the kernel queues them.

A host has many changes that do not concern us: our own 40,000 routes while we add them, a routing daemon's routes in
tables of its own, neighbours that come and go on other devices. Reading and discarding them in Python would cost more
than the work they announce. Numbers: linux/bpf_common.h, linux/filter.h, asm-generic/socket.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from ravenvpn.mesh.hoststate import PROTOCOL
from ravenvpn.node.neighbours import RTM_DELNEIGH, RTM_NEWNEIGH
from ravenvpn.node.netlink import NLMSGHDR
from ravenvpn.node.rtnetlink import RT_TABLE_COMPAT, RTM_DELROUTE, RTM_DELRULE, RTM_NEWROUTE, RTM_NEWRULE

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS | BPF_W, _H, _B
_JUMP_EQUAL, _RETURN = 0x15, 0x06  # BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
_SO_ATTACH_FILTER = 26
_WHOLE = 0xFFFFFFFF  # return value: keep all bytes
_NO_INDEX = 0xFFFFFFFF  # matches no device
# Byte offsets in a notification. The kernel sends notifications one by one, so each filter run sees one.
_TYPE, _PORT = 4, 12  # in nlmsghdr
_RTM_TABLE, _RTM_PROTOCOL = NLMSGHDR.size + 4, NLMSGHDR.size + 5  # in rtmsg
_NDM_INDEX = NLMSGHDR.size + 4  # in ndmsg

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def notification_filter(own_port: int, vxlan_index: int) -> list[Instruction]:
    """Return the program for a socket that watches routes, rules, neighbours, devices and addresses.

    It drops routes of tables below 256 without our protocol, changes by our netlink port `own_port`, and neighbours
    of any device but the VXLAN (`vxlan_index`, 0 if there is none). Devices and addresses are kept.
    """
    route, neighbour, owner, drop, keep = 8, 12, 14, 16, 17  # positions of the parts below

    def when(at: int, value: int, then: int, otherwise: int = -1) -> Instruction:
        """Return the jump at position `at`: to `then` if the loaded value is `value`, else on or to `otherwise`.

        Jumps are relative to the following instruction."""
        return _JUMP_EQUAL, then - at - 1, 0 if otherwise < 0 else otherwise - at - 1, value

    # Loads read big-endian, netlink is in host byte order: the constants are swapped instead.
    return [
        (_LOAD_HALF, 0, 0, _TYPE),
        when(1, socket.htons(RTM_NEWROUTE), route),
        when(2, socket.htons(RTM_DELROUTE), route),
        when(3, socket.htons(RTM_NEWRULE), owner),
        when(4, socket.htons(RTM_DELRULE), owner),
        when(5, socket.htons(RTM_NEWNEIGH), neighbour),
        when(6, socket.htons(RTM_DELNEIGH), neighbour),
        (_RETURN, 0, 0, _WHOLE),
        (_LOAD_BYTE, 0, 0, _RTM_PROTOCOL),  # route
        when(9, PROTOCOL, owner),
        (_LOAD_BYTE, 0, 0, _RTM_TABLE),
        when(11, RT_TABLE_COMPAT, owner, drop),  # a table above 255, as ours are
        (_LOAD_WORD, 0, 0, _NDM_INDEX),  # neighbour
        when(13, socket.htonl(vxlan_index) if vxlan_index else _NO_INDEX, owner, drop),
        (_LOAD_WORD, 0, 0, _PORT),  # owner
        when(15, socket.htonl(own_port), drop, keep),
        (_RETURN, 0, 0, 0),  # drop
        (_RETURN, 0, 0, _WHOLE),  # keep
    ]


def attach_filter(sock: socket.socket, program: list[Instruction]) -> None:
    """Attach a program to a socket, in place of an earlier one.

    A kernel that refuses it only costs time: `watch` discards the same notifications itself.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    with contextlib.suppress(OSError):
        sock.setsockopt(  # struct sock_fprog: length, pointer
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )
