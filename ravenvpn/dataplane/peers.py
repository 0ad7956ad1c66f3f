"""One peer in the Python body: endpoint, keypair slots, staged packets, and the times that timers are made of."""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Final, NamedTuple

from ravenvpn.dataplane.contract import Endpoint, PeerCounters, PeerId, Source, Traffic
from ravenvpn.dataplane.keypairs import Keypair

NO_LIMIT: Final = 1 << 16  # bytes, more than any datagram has

IP_PKTINFO: Final = 8  # socket.IP_PKTINFO is in Python 3.14 and later only
_IN_PKTINFO: Final = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, local address, header destination
_IN6_PKTINFO: Final = struct.Struct("=16sI")  # struct in6_pktinfo: address, interface

# An address as the socket module has it: (host, port), for IPv6 with flow label and scope id.
SockAddr = tuple[str, int] | tuple[str, int, int, int]
Ancillary = list[tuple[int, int, bytes]]  # control messages as sendmsg takes them: (level, type, data)


class Staged(NamedTuple):
    """A packet to send at once, or after the handshake if there is no usable keypair."""

    packet: bytes  # a whole inner IP packet; empty for a keepalive
    outer_df: bool = False  # set DF on the outer packet


class DataPlanePeer:
    """The state of one peer. The pumps and the body change it; no method here does I/O."""

    __slots__ = (
        "address", "ancillary", "any_received", "any_sent", "current", "data_received", "data_sent", "family",
        "gso_limit", "handshake_requested_at", "id", "next", "pktinfo", "previous", "reported_endpoint",
        "reported_receiving", "reported_sending", "reported_unacknowledged", "reported_unanswered", "roaming",
        "rx_bytes", "rx_packets", "source", "staged", "tx_bytes", "tx_packets", "unacknowledged_since",
        "unanswered_since",
    )  # fmt: skip

    def __init__(self, peer: PeerId) -> None:
        self.id = peer
        # The three slots; see `keypairs`.
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None
        self.staged: deque[Staged] = deque()  # oldest first
        self.handshake_requested_at = -1.0  # seconds; negative if no request is pending
        # The endpoint, in the form sendmsg takes.
        self.address: SockAddr | None = None
        self.family = 0  # AF_INET or AF_INET6; 0 without an address
        self.roaming = True
        self.reported_endpoint: SockAddr | None = None  # with roaming off: the last foreign endpoint that was posted
        # The source of answers: as the contract has it, as control message, and as received (to compare cheaply).
        self.source: Source | None = None
        self.ancillary: Ancillary = []
        self.pktinfo = b""
        # Datagrams of this size or more were refused as UDP GSO segments on the present path (EMSGSIZE).
        self.gso_limit = NO_LIMIT
        # Times as in Traffic, and what of them the last report contained.
        self.data_sent = self.any_sent = self.data_received = self.any_received = 0.0
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.reported_sending = self.reported_receiving = False
        self.reported_unanswered = self.reported_unacknowledged = False
        self.rx_bytes = self.tx_bytes = self.rx_packets = self.tx_packets = 0

    # Endpoint and source.

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint in the contract's form."""
        return None if self.address is None else endpoint_of(self.address)

    def set_address(self, address: SockAddr | None, family: int) -> None:
        """Send there from now on, from the source address that the kernel chooses. The path MTU is unknown again."""
        self.address, self.family = address, family
        self.reported_endpoint = None
        self.gso_limit = NO_LIMIT
        self.set_source(None)

    def set_source(self, source: Source | None, pktinfo: bytes = b"") -> None:
        """Send from this address; None lets the kernel choose. `pktinfo` is the control message it was read from."""
        self.source, self.pktinfo = source, pktinfo
        self.ancillary = [] if source is None else source_ancillary(source, self.family)

    # Times for timers. `note_sent` and `note_received` return True if the next report differs from the last one.

    def handshake_ended(self) -> None:
        """Reset what a handshake answers or gives up: the request for it, and both `…_since` times."""
        self.handshake_requested_at = -1.0
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.reported_unanswered = self.reported_unacknowledged = False

    def note_sent(self, now: float, *, data: bool) -> bool:
        """Record that an authenticated message left; `data` unless it was a keepalive."""
        self.any_sent = now
        self.unacknowledged_since = 0.0
        news = not self.reported_sending
        self.reported_sending = True
        if data:
            self.data_sent = now
            if not self.unanswered_since:
                self.unanswered_since = now
                news = True
        return news

    def note_received(self, now: float, *, data: bool) -> bool:
        """Record that an authenticated message arrived; `data` unless it was a keepalive."""
        self.any_received = now
        self.unanswered_since = 0.0
        news = not self.reported_receiving
        self.reported_receiving = True
        if data:
            self.data_received = now
            if not self.unacknowledged_since:
                self.unacknowledged_since = now
                news = True
        return news

    def request_handshake(self, now: float, again_after: float = float("inf")) -> bool:
        """Return True if HandshakeNeeded is to be posted:

        no request is pending, or it is `again_after` seconds old.
        """
        if self.handshake_requested_at >= 0 and now - self.handshake_requested_at < again_after:
            return False
        self.handshake_requested_at = now
        return True

    @property
    def arms_timer(self) -> bool:
        """True if the next report sets a `…_since` time that was 0.0 in the last report."""
        return bool(
            (self.unanswered_since and not self.reported_unanswered)
            or (self.unacknowledged_since and not self.reported_unacknowledged)
        )

    def report(self) -> Traffic:
        """Return the times, which count as reported from now on."""
        self.reported_sending = self.reported_receiving = False
        self.reported_unanswered = bool(self.unanswered_since)
        self.reported_unacknowledged = bool(self.unacknowledged_since)
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
        """Return a snapshot of the counters."""
        keys = None if self.current is None else self.current.keys
        return PeerCounters(
            self.rx_bytes,
            self.tx_bytes,
            self.rx_packets,
            self.tx_packets,
            self.endpoint,
            self.source,
            None if keys is None else keys.suite,
            0.0 if keys is None else keys.birth,
            len(self.staged),
        )


# Conversions between the contract's addresses and the socket module's.


def socket_address(endpoint: Endpoint) -> tuple[SockAddr, int]:
    """Return (address for sendmsg, address family), spelt as recvmsg returns it, so that the two compare equal.

    Raises ValueError unless host, port and scope id are numeric and in range.
    """
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
    """Return the endpoint of an address from recvmsg."""
    return Endpoint(address[0], address[1], address[3] if len(address) == 4 else 0)


def source_of(pktinfo: bytes, family: int) -> Source | None:
    """Return the source in the data of a received IP_PKTINFO or IPV6_PKTINFO; None if `pktinfo` is empty."""
    if family == socket.AF_INET and len(pktinfo) == _IN_PKTINFO.size:
        interface, local, _ = _IN_PKTINFO.unpack(pktinfo)
        return Source(socket.inet_ntop(socket.AF_INET, local), interface)
    if family == socket.AF_INET6 and len(pktinfo) == _IN6_PKTINFO.size:
        local, interface = _IN6_PKTINFO.unpack(pktinfo)
        return Source(socket.inet_ntop(socket.AF_INET6, local), interface)
    return None


def source_ancillary(source: Source, family: int) -> Ancillary:
    """Return the control message that makes a datagram leave from `source`; none if the families differ.

    It carries the address only, and routing chooses the interface, as in the Linux kernel's WireGuard: with a forced
    interface that has no route to the peer, the kernel would look for the peer on that link, without success and
    without an error. A link-local address is the exception: it has no meaning without its interface.
    Raises ValueError if the address is not numeric.
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
