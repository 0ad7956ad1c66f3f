"""One peer as the data plane knows it: where it is, its slots, what waits for a key, and the facts of its traffic."""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Final, NamedTuple

from ravenvpn.dataplane.contract import Endpoint, PeerCounters, PeerId, Source, Traffic
from ravenvpn.dataplane.keypairs import Keypair

NO_LIMIT: Final = 1 << 16  # bytes, more than any datagram has

IP_PKTINFO: Final = 8  # socket.IP_PKTINFO appears in Python 3.14 only
_IN_PKTINFO: Final = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, local address, header destination
_IN6_PKTINFO: Final = struct.Struct("=16sI")

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Ancillary = list[tuple[int, int, bytes]]


class Staged(NamedTuple):
    """A packet to send, now or once there is a key; empty for a keepalive."""

    packet: bytes
    outer_df: bool = False


class DataPlanePeer:
    """State of one peer. Mutated by the pumps and the body; nothing here does I/O."""

    __slots__ = (
        "address", "ancillary", "any_received", "any_sent", "asked", "current", "data_received", "data_sent",
        "family", "gso_limit", "id", "next", "pktinfo", "previous", "reported_elsewhere", "roaming",
        "rx_bytes", "rx_packets", "source", "staged", "told_received", "told_sent", "told_unacknowledged",
        "told_unanswered", "tx_bytes", "tx_packets", "unacknowledged_since", "unanswered_since",
    )  # fmt: skip

    def __init__(self, peer: PeerId) -> None:
        self.id = peer
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None
        self.staged: deque[Staged] = deque()
        self.asked = -1.0  # when a handshake was asked for; negative if nothing is pending
        # Where it is, in the form sendmsg takes.
        self.address: SockAddr | None = None
        self.family = 0
        self.roaming = True
        self.reported_elsewhere: SockAddr | None = None
        # How we answer: the control message, and the raw one received that it was made of.
        self.source: Source | None = None
        self.ancillary: Ancillary = []
        self.pktinfo = b""
        # Datagrams of this size or more were refused as UDP GSO segments on the present path (EMSGSIZE).
        self.gso_limit = NO_LIMIT
        # Facts for timers, as in Traffic.
        self.data_sent = self.any_sent = self.data_received = self.any_received = 0.0
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.told_sent = self.told_received = False
        self.told_unanswered = self.told_unacknowledged = False
        self.rx_bytes = self.tx_bytes = self.rx_packets = self.tx_packets = 0

    # Where it is.

    @property
    def endpoint(self) -> Endpoint | None:
        return None if self.address is None else endpoint_of(self.address)

    def move(self, address: SockAddr | None, family: int) -> None:
        """Send there from now on, from whatever address the kernel chooses."""
        self.address, self.family = address, family
        self.reported_elsewhere = None
        self.gso_limit = NO_LIMIT
        self.set_source(None)

    def set_source(self, source: Source | None, pktinfo: bytes = b"") -> None:
        self.source, self.pktinfo = source, pktinfo
        self.ancillary = [] if source is None else source_ancillary(source, self.family)

    # What happened, for timers. `sent` and `received` say whether it is news for the next report.

    def handshake_ended(self) -> None:
        """Well or not: nothing is owed for what came before it, and what comes after it is news."""
        self.asked = -1.0
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.told_unanswered = self.told_unacknowledged = False

    def sent(self, now: float, *, data: bool) -> bool:
        """An authenticated message left; `data` unless it was a keepalive."""
        self.any_sent = now
        self.unacknowledged_since = 0.0
        news = not self.told_sent
        self.told_sent = True
        if data:
            self.data_sent = now
            if not self.unanswered_since:
                self.unanswered_since = now
                news = True
        return news

    def received(self, now: float, *, data: bool) -> bool:
        self.any_received = now
        self.unanswered_since = 0.0
        news = not self.told_received
        self.told_received = True
        if data:
            self.data_received = now
            if not self.unacknowledged_since:
                self.unacknowledged_since = now
                news = True
        return news

    def ask(self, now: float, again_after: float = float("inf")) -> bool:
        """Whether a handshake has to be asked for: not if one was, unless that is `again_after` seconds ago."""
        if self.asked >= 0 and now - self.asked < again_after:
            return False
        self.asked = now
        return True

    @property
    def arms_timer(self) -> bool:
        """Whether the tunnel has to hear now: a timer starts that the last report did not start."""
        return bool(
            (self.unanswered_since and not self.told_unanswered)
            or (self.unacknowledged_since and not self.told_unacknowledged)
        )

    def report(self) -> Traffic:
        self.told_sent = self.told_received = False
        self.told_unanswered = bool(self.unanswered_since)
        self.told_unacknowledged = bool(self.unacknowledged_since)
        return Traffic(
            self.id,
            self.data_sent,
            self.any_sent,
            self.data_received,
            self.any_received,
            self.unanswered_since,
            self.unacknowledged_since,
        )

    def counters(self) -> PeerCounters:
        keypair = None if self.current is None else self.current.keypair
        return PeerCounters(
            self.rx_bytes,
            self.tx_bytes,
            self.rx_packets,
            self.tx_packets,
            self.endpoint,
            self.source,
            None if keypair is None else keypair.suite,
            0.0 if keypair is None else keypair.birth,
            len(self.staged),
        )


# Addresses: between the contract's words and the socket's.


def socket_address(endpoint: Endpoint) -> tuple[SockAddr, int]:
    """(address for sendmsg, family), spelt as the kernel's answers are; ValueError if it is no numeric endpoint."""
    if not 0 < endpoint.port < 1 << 16:
        raise ValueError(f"no UDP port: {endpoint.port}")
    if not 0 <= endpoint.scope_id < 1 << 32:
        raise ValueError(f"no interface index: {endpoint.scope_id}")
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    host = socket.inet_ntop(family, _packed(family, endpoint.host))
    if family == socket.AF_INET:
        return (host, endpoint.port), family
    return (host, endpoint.port, 0, endpoint.scope_id), family


def endpoint_of(address: SockAddr) -> Endpoint:
    return Endpoint(address[0], address[1], address[3] if len(address) == 4 else 0)


def source_of(pktinfo: bytes, family: int) -> Source | None:
    """What a received IP_PKTINFO or IPV6_PKTINFO says; None if there was none."""
    if family == socket.AF_INET and len(pktinfo) == _IN_PKTINFO.size:
        interface, local, _ = _IN_PKTINFO.unpack(pktinfo)
        return Source(socket.inet_ntop(socket.AF_INET, local), interface)
    if family == socket.AF_INET6 and len(pktinfo) == _IN6_PKTINFO.size:
        local, interface = _IN6_PKTINFO.unpack(pktinfo)
        return Source(socket.inet_ntop(socket.AF_INET6, local), interface)
    return None


def source_ancillary(source: Source, family: int) -> Ancillary:
    """The control message that makes a datagram leave from `source`; none if the families differ. ValueError if it
    is no numeric address.

    The address alone, and the routing chooses the interface, as in the Linux kernel's WireGuard: a forced interface
    without a route for the peer would have the kernel look for it on that link, in vain and without an error. Only a
    link-local address means nothing without its interface.
    """
    if (":" in source.host) != (family == socket.AF_INET6):
        return []
    local = _packed(family, source.host)
    if family == socket.AF_INET:
        return [(socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local, bytes(4)))]
    link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local, source.ifindex if link_local else 0))]


def _packed(family: int, host: str) -> bytes:
    try:
        return socket.inet_pton(family, host)
    except OSError as error:
        raise ValueError(f"not a numeric address: {host}") from error
