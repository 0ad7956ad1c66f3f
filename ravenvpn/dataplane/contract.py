"""What a data plane is: the one contract with two bodies, `_pure` (the specification) and `_native` (the fast one).

The data plane owns everything that happens once per packet: index → keypair, the three key slots, counters and
replay windows, staged packets, padding, longest-prefix match, the inner source check, ECN, offloads. The tunnel
(one floor up) owns handshakes, timers, cookies, limits and who is where. What passes between them is on this page:
mutators going down, events coming up, both ordered.

A body is driven by one event loop. Between two calls of its pump the mutators of one batch look atomic to packets. A
body may pump without the loop when that was held up for milliseconds; each mutator is atomic for itself even then.
It never opens or closes a descriptor that packets pass; it reads no clock but the one handed in; it never raises for
what a packet holds.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import NamedTuple, NewType, Protocol

from ravenvpn.crypto.aead import Suite
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix

# A peer is a node, not a key: it may have two static keys for a while, and keeps its id through a rotation.
# Small positive integers, chosen by the tunnel, never reused while the data plane lives.
PeerId = NewType("PeerId", int)


class Endpoint(NamedTuple):
    """Where a peer is in the outer world; IPv6 where `host` holds a colon. `scope_id` only for link-local."""

    host: str
    port: int
    scope_id: int = 0

    def __str__(self) -> str:
        host = f"{self.host}%{self.scope_id}" if self.scope_id else self.host
        return f"[{host}]:{self.port}" if ":" in self.host else f"{host}:{self.port}"


class Source(NamedTuple):
    """Which of our own addresses, on which interface, a datagram was addressed to; answers leave from that address.

    Routing chooses the interface, so that an operator's source rules for several uplinks apply; only a link-local
    address is bound to its own.
    """

    host: str
    ifindex: int


class Role(enum.IntEnum):
    """Who began the handshake that made a keypair. It decides the slot the keypair enters and who rekeys."""

    INITIATOR = 0
    RESPONDER = 1


@dataclass(frozen=True, slots=True)
class NewKeypair:
    """Transport keys of one session, as a handshake leaves them. Indices are u32, keys 32 bytes, `birth` seconds."""

    suite: Suite
    role: Role
    local_index: int
    remote_index: int
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    birth: float


@dataclass(frozen=True, slots=True)
class Timing:
    """WireGuard's constants (whitepaper §6.1), in one value so that tests can shorten them. Seconds."""

    rekey_after_time: float = 120.0
    reject_after_time: float = 180.0
    rekey_attempt_time: float = 90.0
    rekey_timeout: float = 5.0
    keepalive_timeout: float = 10.0
    # The reference implementations add up to a third of a second to spread retries of both ends.
    max_jitter: float = 0.333
    cookie_refresh_time: float = 120.0
    cookie_latency: float = 5.0


class Drop(enum.IntEnum):
    """Why a packet or datagram went no further: a closed list, each with one counter. Values are stable."""

    # From the TUN outwards.
    NOT_IP = 0  # neither IPv4 nor IPv6, or shorter than its header
    BAD_OFFLOAD = 1  # a virtio-net header or a superpacket that contradicts itself
    NO_ROUTE = 2  # no peer routes the destination
    NO_ENDPOINT = 3  # the peer is known, where it is is not
    STAGED_OVERFLOW = 4  # more waited for a handshake than may wait; the oldest went
    STAGED_EXPIRED = 5  # the handshake they waited for was given up
    SEND_FAILED = 6  # the kernel refused the datagram and a second try
    # From the outer world inwards.
    MALFORMED = 7  # wrong type, reserved bits or length; or from UDP port 0, where nothing can be answered
    UNKNOWN_INDEX = 8
    EXPIRED_KEYPAIR = 9  # older than reject-after-time, or its counter is spent
    BAD_TAG = 10  # authentication failed
    REPLAYED = 11
    MALFORMED_INNER = 12  # authenticated, but no IP packet inside
    SOURCE_NOT_ACCEPTED = 13  # the inner source is not accepted from this peer
    CONGESTION_UNMARKABLE = 14  # outer CE over an inner packet that is not ECN-capable (RFC 6040 §4.2)
    TUN_WRITE_FAILED = 15
    HANDSHAKE_QUEUE_FULL = 16
    SOCKET_OVERFLOW = 17  # the kernel dropped it before us (SO_RXQ_OVFL)
    NO_TUN = 18  # a body without a TUN received a packet for it


# Events, upwards.


class Datagram(NamedTuple):
    """A datagram that is not a transport message (type 4), unchecked. At most MAX_DATAGRAMS wait; more are dropped.

    Initiations without mac2 (148 bytes, type 1, the last 16 bytes zero) wait in a queue of their own, of at most
    MAX_WAITING_INITIATIONS. They are all that a flood from spoofed sources can send, so the tunnel takes only as many
    as it has room for.
    """

    data: bytes
    endpoint: Endpoint
    source: Source | None


class InnerPacket(NamedTuple):
    """A UDP packet to our own tunnel address and probe port, whole (IP header first), from an authenticated peer."""

    peer: PeerId
    packet: bytes
    outer_ce: bool


class HandshakeNeeded(NamedTuple):
    """Packets are staged without a usable keypair, or the initiator's current keypair is due for renewal.

    Said once per cause: again only after `install_keypair`, `purge_staged` or `drop_keypairs`, or when a packet
    is staged after at least rekey-timeout. The tunnel limits the rate in any case.
    """

    peer: PeerId


class KeyPromoted(NamedTuple):
    """The responder saw the first authenticated packet under `next`, which is `current` now: key confirmed."""

    peer: PeerId
    local_index: int


class KeypairRetired(NamedTuple):
    """A keypair left its slot for good (rotation, expiry, drop); its local index is free again."""

    peer: PeerId
    local_index: int


class EndpointMoved(NamedTuple):
    """An authenticated data packet came from a new endpoint, and the body now sends there (roaming on).

    With roaming off the body reports it (once per endpoint) and keeps sending where it was told.
    """

    peer: PeerId
    endpoint: Endpoint
    source: Source | None


class Traffic(NamedTuple):
    """Facts that timers are made of (whitepaper §6.5), as of this report. Seconds on the body's clock, 0.0 = never.

    A body reports unasked only what can arm a timer that the tunnel does not know of: `unanswered_since` or
    `unacknowledged_since` set where the last report had 0.0. It may hold that back for a tenth of a second, since
    busy peers set and clear them all the time. Every report taken covers all peers that
    moved since the last one, so a timer that is due asks for reports first and then decides on fresh facts.

    Both are cleared, and what follows is news again, by `install_keypair` and `purge_staged`: a handshake answers
    and acknowledges all that was before it, and giving it up begins the count anew.
    """

    peer: PeerId
    data_sent: float  # last data packet (not a keepalive) that left
    any_sent: float  # last authenticated packet that left
    data_received: float  # last data packet that passed every check of the session (key, replay)
    any_received: float  # last authenticated packet that arrived
    unanswered_since: float  # first data packet sent since anything authenticated arrived; 0.0 if none
    unacknowledged_since: float  # first data packet received since anything authenticated left; 0.0 if none


Event = Datagram | InnerPacket | HandshakeNeeded | KeyPromoted | KeypairRetired | EndpointMoved | Traffic

MAX_DATAGRAMS = 4096  # waiting handshake messages, as the Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES
# Initiations that prove nothing. In a flood their queue is always full, and who is in earnest waits through it for a
# cookie: so short that it comes before the next try, and long enough for a thousand peers that call at once.
MAX_WAITING_INITIATIONS = 1024
MAX_STAGED_PACKETS = 128  # per peer while a handshake runs, as the Linux kernel's MAX_STAGED_PACKETS
REPLAY_WINDOW = 8192 - 64  # messages a counter may be late, RFC 6479 with 128 words of 64 bits


# Counters.


@dataclass(slots=True)
class PeerCounters:
    """Of one peer since `add_peer`. Bytes are whole transport messages, as `wg show` counts them."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    endpoint: Endpoint | None = None
    source: Source | None = None
    suite: Suite | None = None  # of the current keypair
    keypair_birth: float = 0.0  # of the current keypair; 0.0 if there is none
    staged: int = 0


@dataclass(slots=True)
class Counters:
    """A snapshot: `drops` holds every member of Drop, `fallbacks` how often an offload was given up, by its name."""

    drops: Mapping[Drop, int]
    peers: Mapping[PeerId, PeerCounters]
    fallbacks: Mapping[str, int]
    tun_rx_packets: int = 0  # read from the TUN, after splitting
    tun_tx_packets: int = 0  # delivered to the TUN, before coalescing
    udp_rx_datagrams: int = 0
    udp_tx_datagrams: int = 0
    tun_reads: int = 0  # system calls, so that a reader sees what batching brings
    tun_writes: int = 0
    udp_reads: int = 0
    udp_writes: int = 0


# The body.


class DataPlane(Protocol):
    """One data plane. `name` is "pure" or "native". See the module docstring for who owns what.

    A body is made by `ravenvpn.dataplane.create(...)` with: `tun` (a non-blocking descriptor whose frames start with
    a 10-byte virtio-net header, or None: sessions and probes only), `offloads` (what the TUN was set up for and what
    the sockets may use), `timing`, `clock` (CLOCK_BOOTTIME seconds unless a test hands in another), and `boot_id`
    (marks hand-over blobs; this boot's unless a test hands in another).
    Unknown peer ids in mutators raise KeyError; everything else about arguments raises ValueError.
    """

    name: str

    # Life.
    def start(self, loop: asyncio.AbstractEventLoop, on_events: Callable[[], None]) -> None:
        """Begin to pump the descriptors on `loop`; `on_events` is called (on the loop) when events wait."""

    def stop(self) -> None:
        """Stop pumping. Safe to call twice; `start` may follow."""

    def set_sockets(self, v4: int | None, v6: int | None) -> None:
        """Use these bound, non-blocking UDP descriptors (v6 with IPV6_V6ONLY). Sticky sources are forgotten.

        A body holds numbers, also while it is stopped: take a descriptor away (None) before you close it, or the
        number may soon mean another file. `freeze` gives them back, and a body that is dropped closes nothing.
        """

    def pump_replaced_socket(self, fd: int, ipv6: bool) -> None:
        """Process a budget of the datagrams that wait in a UDP socket which `set_sockets` replaced.

        For a change of the listen port: peers send to the old port until they received a packet from the new one. The
        caller keeps the old socket open for that time and calls this whenever it is readable. Replies are sent from
        the socket in use. Datagrams that the kernel dropped at the old socket are not counted. No effect once frozen.
        """

    def set_mtu(self, mtu: int) -> None:
        """MTU of the TUN: padding stops there (whitepaper §5.4.6)."""

    def set_offloads(self, offloads: Offloads) -> None:
        """Change which offloads are allowed. No packet in hand is lost, and none is reordered within its flow.

        What the kernel refused once stays off; `offloads()` returns what is in force. The TUN device's own setting
        (TUNSETOFFLOAD) is the caller's: set it first and pass what the kernel granted as `tun_tso` and `tun_uso`.
        Superpackets that the TUN held before are segmented all the same. Batches that wait for a full socket are
        sent datagram by datagram once `udp_gso` is off. To switch `udp_gro` off, the body first reads the sockets
        until they are empty, because the kernel delivers a coalesced datagram without its segment size afterwards.
        """

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        """UDP to this inner address and port becomes an InnerPacket event instead of a packet on the TUN."""

    # Peers.
    def add_peer(self, peer: PeerId) -> None:
        """Make the peer known; nothing changes if it is."""

    def remove_peer(self, peer: PeerId) -> None:
        """Forget it: its routes, acceptances, keypairs (retired), staged packets, counters."""

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None: ...

    def set_roaming(self, peer: PeerId, roaming: bool) -> None:
        """Whether authenticated data from elsewhere moves the endpoint. On for a new peer."""

    def clear_source(self, peer: PeerId) -> None:
        """Let the kernel choose the source address again (a handshake retry, whitepaper §6.5's practice)."""

    # Prefixes. `route` and `accept` are apart because two ends of a change never switch at the same instant.
    def route(self, prefix: Prefix, peers: Sequence[PeerId]) -> None:
        """Egress: packets to `prefix` go to these peers, replacing who had it; empty removes. Moves are atomic.

        One peer per prefix until several active gateways share load: the first one carries it.
        """

    def accept(self, peer: PeerId, add: Sequence[Prefix] = (), remove: Sequence[Prefix] = ()) -> None:
        """Ingress: an inner packet passes when the longest accepted prefix over its source, across all peers,
        counts its sender among its accepters."""

    # Sessions.
    def install_keypair(self, peer: PeerId, keypair: NewKeypair) -> None:
        """Put a new keypair into its slot, as wireguard-go does: an initiator's becomes current, a responder's next.

        An initiator's sends what was staged, or a keepalive if nothing was (key confirmation).
        Raises ValueError if the local index is in use.
        """

    def expire_keypairs(self, peer: PeerId) -> None:
        """Stop sending under all keypairs; receiving goes on (our static key changed)."""

    def drop_keypairs(self, peer: PeerId) -> None:
        """Wipe all keypairs (§6.3: three times reject-after-time without a new session)."""

    def purge_staged(self, peer: PeerId) -> None:
        """Drop what waits for a handshake that was given up, counted as STAGED_EXPIRED."""

    # Sending.
    def send_keepalive(self, peer: PeerId) -> None:
        """An empty transport message, or, without a usable keypair, whatever is staged stays and HandshakeNeeded."""

    def send_inner(self, peer: PeerId, packet: bytes, outer_df: bool = False) -> None:
        """Send a whole inner IP packet of our own making to this peer, past the routes; `outer_df` forbids the
        outer packet to be fragmented (path-MTU probes). Staged like any other if no keypair is usable."""

    def send_datagram(self, data: bytes, endpoint: Endpoint, source: Source | None = None) -> None:
        """A raw datagram from the same socket, DS field AF41 (handshake messages, cookies)."""

    # Looking.
    def drain_events(self, max_initiations: int = MAX_DATAGRAMS) -> list[Event]:
        """Return and remove the events since the last call, in order; then at most `max_initiations` initiations
        without mac2 (see Datagram), the oldest first; then Traffic. `on_events` is not called again for initiations
        that stay in the queue."""

    def waiting_initiations(self) -> int:
        """Return the number of initiations without mac2 in the queue."""

    def counters(self) -> Counters: ...

    def offloads(self) -> Offloads:
        """What is in force right now."""

    # Hand-over.
    def freeze(self) -> bytes:
        """Stop, and give out sessions as a blob (docs/architecture). Nothing is sent after it, so no counter can
        repeat: `start`, `thaw`, `install_keypair` and everything that sends raise ValueError. Descriptors stay open
        and belong to the caller. The blob is as secret as the keys."""

    def thaw(self, blob: bytes) -> None:
        """Take over the sessions of a frozen body; each peer's Traffic is reported. Counters skip ahead. ValueError
        if the blob is not one of ours, of another version or boot, or if a peer or index of it is here already;
        nothing is changed then."""
