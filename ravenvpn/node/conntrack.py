"""Live flows that were bound to another source before our nft chain was there.

conntrack asks the nat chains once, for a flow's first packet. A flow that a CNI's MASQUERADE has bound stays bound,
whatever our chain says later, so its entry is deleted and the next packet is judged anew. Flows that are bound as
our chain would bind them are left alone: deleting those of a Service could send them to another backend.

The kernel has no index that would help: finding them is one walk over all flows, which takes it 10 ms for an empty
table of the usual 262,144 buckets. So it is done after a change, not as part of it.

Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from ravenvpn.node.netlink import NETLINK_NETFILTER, NLM_F_ACK, NetlinkSocket, attribute, attributes, message
from ravenvpn.prefixes import PrefixSet

_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE = 1, 2, 3, 12, 18
_TUPLE_IP = 1
_STATUS_DNAT = 1 << 5  # IPS_DST_NAT
_NFGEN = struct.Struct("=BBH")


class Flow(NamedTuple):
    """Where a flow came from and went to, and what its replies look like; addresses as packed bytes."""

    family: int
    source: bytes
    destination: bytes
    reply_source: bytes
    reply_destination: bytes
    dnat: bool
    handle: bytes  # attributes that name the entry for deletion


@dataclass(frozen=True, slots=True)
class Rebinding:
    """Whose live flows are to be judged anew: those with the prefixes in `remote`, by what `own_sources` are now, and
    whose sources are kept: `local`."""

    remote: PrefixSet
    own_sources: frozenset[bytes]
    local: PrefixSet = field(default_factory=PrefixSet)

    def after(self, earlier: Rebinding | None) -> Rebinding:
        """Both in one walk."""
        return self if earlier is None else Rebinding(earlier.remote | self.remote, self.own_sources, self.local)


def misbound(flow: Flow, remote: PrefixSet, own_sources: Collection[bytes], local: PrefixSet) -> bool:
    """Whether a flow with another region is bound to a source that our nft chain would not have given it."""
    if flow.reply_destination == flow.source:  # not translated
        return False
    if remote.covers_packed(flow.reply_source):
        # Our own source may be just what a CNI or an operator gave a pod's flow. It is right for what starts here,
        # and for what kube-proxy sent to a Service's endpoint.
        return flow.reply_destination not in own_sources or (local.covers_packed(flow.source) and not flow.dnat)
    # From another region to a Service here and masqueraded by kube-proxy: rightly so.
    return remote.covers_packed(flow.source) and not flow.dnat


def forget(rebinding: Rebinding) -> int:
    """Delete the misbound flows; how many there were. Blocking."""
    doomed: list[bytes] = []

    def judge(body: bytes) -> bool:
        flow = read_flow(body)
        if flow is not None and misbound(flow, rebinding.remote, rebinding.own_sources, rebinding.local):
            doomed.append(message(_CT_DELETE, NLM_F_ACK, _NFGEN.pack(flow.family, 0, 0) + flow.handle))
        return False  # a host may have a million flows: none is kept

    pipe = NetlinkSocket(NETLINK_NETFILTER)
    try:
        pipe.dump(_CT_GET, _NFGEN.pack(socket.AF_UNSPEC, 0, 0), judge)  # both families in one walk
        replies = pipe.request(doomed)
    finally:
        pipe.close()
    return sum(1 for reply in replies if reply.errno in (0, errno.ENOENT))


def read_flow(body: bytes) -> Flow | None:
    family = body[0]
    found = attributes(body, _NFGEN.size)
    if _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    original = attributes(attributes(found[_TUPLE_ORIG]).get(_TUPLE_IP, b""))
    reply = attributes(attributes(found[_TUPLE_REPLY]).get(_TUPLE_IP, b""))
    source, destination = (1, 2) if family == socket.AF_INET else (3, 4)
    if not {source, destination} <= set(original) & set(reply):
        return None
    handle = b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Flow(
        family,
        original[source],
        original[destination],
        reply[source],
        reply[destination],
        bool(struct.unpack("!I", found[_STATUS])[0] & _STATUS_DNAT) if _STATUS in found else False,
        attribute(_TUPLE_ORIG | 0x8000, found[_TUPLE_ORIG]) + handle,
    )
