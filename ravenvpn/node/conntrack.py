"""Find and delete live flows whose NAT binding predates our nft chain.

Netfilter evaluates nat chains once, for the first packet of a flow. A flow that a CNI's MASQUERADE has bound stays
bound whatever our chain says later, so its conntrack entry is deleted, and its next packet is evaluated again. Flows
whose binding our chain would have chosen too are left alone: deleting a Service's flow could move it to another
backend.

The kernel has no index for this. Finding the flows is a walk over the whole table, which takes 10 ms even for an
empty table of the usual 262,144 buckets. `flows` therefore runs it after a change, not as part of it.

Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from ravenvpn.node.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_ACK,
    NetlinkSocket,
    pack_attribute,
    pack_message,
    parse_attributes,
)
from ravenvpn.prefixes import PrefixSet

_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE = 1, 2, 3, 12, 18  # CTA_*
_TUPLE_IP = 1  # CTA_TUPLE_IP
_IP_V4, _IP_V6 = (1, 2), (3, 4)  # CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST
_STATUS_DNAT = 1 << 5  # IPS_DST_NAT
_NFGENMSG = struct.Struct("=BBH")  # family, version, resource id


class Flow(NamedTuple):
    """One conntrack entry. Addresses are 4 or 16 bytes in network byte order."""

    family: int  # AF_INET or AF_INET6
    source: bytes  # of the first packet, before any translation
    destination: bytes
    reply_source: bytes  # of the expected replies: where the flow really goes
    reply_destination: bytes  # where replies are sent: the source the flow is bound to
    dnat: bool  # the destination was translated (a Service)
    handle: bytes  # attributes that identify the entry for its deletion


@dataclass(frozen=True, slots=True)
class FlowCheck:
    """Which flows to check, and the facts to check them by."""

    remote: PrefixSet  # flows from or to these prefixes are checked
    own_sources: frozenset[bytes]  # our own source addresses, packed
    local: PrefixSet = field(default_factory=PrefixSet)  # prefixes of this region, whose addresses are kept

    def merge(self, earlier: FlowCheck | None) -> FlowCheck:
        """Return one check that covers this and an earlier one that has not run; the newer facts count."""
        if earlier is None:
            return self
        # `|` copies its left side cheaply and adds the right one element by element.
        larger, smaller = sorted((earlier.remote, self.remote), key=len, reverse=True)
        return FlowCheck(larger | smaller, self.own_sources, self.local)


def is_misbound(flow: Flow, remote: PrefixSet, own_sources: Collection[bytes], local: PrefixSet) -> bool:
    """Return whether a flow with another region is bound to a source that our nft chain would not have chosen."""
    if flow.reply_destination == flow.source:  # the source is not translated
        return False
    if remote.covers_packed(flow.reply_source):
        # Our own source is right for flows that start on this host, and for those that kube-proxy sent to a Service's
        # endpoint. A CNI or an operator may have given the same address to a pod's flow, where it is wrong.
        return flow.reply_destination not in own_sources or (local.covers_packed(flow.source) and not flow.dnat)
    # A flow from another region must keep its source, except to a Service here, where kube-proxy may masquerade.
    return remote.covers_packed(flow.source) and not flow.dnat


def delete_misbound_flows(check: FlowCheck) -> int:
    """Walk all flows, delete the misbound ones, and return their number. Blocks; raises HostError."""
    deletions: list[bytes] = []

    def collect(body: bytes) -> bool:
        flow = parse_flow(body)
        if flow is not None and is_misbound(flow, check.remote, check.own_sources, check.local):
            header = _NFGENMSG.pack(flow.family, 0, 0)
            deletions.append(pack_message(_CT_DELETE, NLM_F_ACK, header + flow.handle))
        return False  # a host may have a million flows: the dump keeps none

    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        netlink.dump(_CT_GET, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0), collect)  # both families in one walk
        replies = netlink.request(deletions)
    finally:
        netlink.close()
    return sum(1 for reply in replies if reply.errno in (0, errno.ENOENT))  # ENOENT: the flow ended meanwhile


def parse_flow(body: bytes) -> Flow | None:
    """Parse a dumped conntrack entry; None if it has no addresses of its family."""
    family = body[0]
    found = parse_attributes(body, _NFGENMSG.size)
    if _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    original = parse_attributes(parse_attributes(found[_TUPLE_ORIG]).get(_TUPLE_IP, b""))
    reply = parse_attributes(parse_attributes(found[_TUPLE_REPLY]).get(_TUPLE_IP, b""))
    source, destination = _IP_V4 if family == socket.AF_INET else _IP_V6
    if not {source, destination} <= set(original) & set(reply):
        return None
    # The id distinguishes the entry from a later one with the same addresses and ports.
    identity = b"".join(pack_attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Flow(
        family,
        original[source],
        original[destination],
        reply[source],
        reply[destination],
        bool(struct.unpack("!I", found[_STATUS])[0] & _STATUS_DNAT) if _STATUS in found else False,
        pack_attribute(_TUPLE_ORIG | NLA_F_NESTED, found[_TUPLE_ORIG]) + identity,
    )
