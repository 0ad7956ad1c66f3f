"""The contract of a data plane, with two bodies: `_pure` (Python, the specification) and `_native` (Rust, fast).

The data plane owns everything that happens once per packet: receiver index → keypair, the three key slots, counters
and replay windows, staged packets, padding, longest-prefix match, the check of inner sources, ECN, offloads. The
tunnel (one floor up) owns handshakes, timers, cookies, rate limits and the choice of endpoints. Mutators go down,
events come up; both are ordered.

Ownership: one event loop drives a body, and every method is called on that loop's thread. Mutators called without
returning to the loop in between look like one change to packets. Exception: a native body may pump on a thread of
its own while the loop is held up for milliseconds, and then each mutator is atomic by itself only.

A body opens and closes no descriptor that packets pass, reads no clock but the one handed in, and raises no
exception because of a packet's content.
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

# Identifies a node, not a static key: a node may have two keys for a while and keeps its id through a key rotation.
# Small positive integers, chosen by the tunnel, never reused during the life of a data plane.
PeerId = NewType("PeerId", int)


class Endpoint(NamedTuple):
    """The UDP address of a peer on the underlay; IPv6 if `host` contains a colon."""

    host: str  # numeric, without zone
    port: int  # 1 to 65535
    scope_id: int = 0  # interface index; for link-local IPv6 addresses only, 0 otherwise

    def __str__(self) -> str:
        host = f"{self.host}%{self.scope_id}" if self.scope_id else self.host
        return f"[{host}]:{self.port}" if ":" in self.host else f"{host}:{self.port}"


class Source(NamedTuple):
    """The local address and interface that a datagram arrived at (IP_PKTINFO). Answers leave from that address.

    Routing chooses the interface of answers, so that an operator's source-based rules for several uplinks apply; only
    a link-local address is bound to its interface.
    """

    host: str  # numeric, without zone
    ifindex: int


class Role(enum.IntEnum):
    """Our role in the handshake that made a keypair: it decides the slot of the keypair, and which end rekeys by age.

    The values are part of the hand-over format.
    """

    INITIATOR = 0
    RESPONDER = 1


@dataclass(frozen=True, slots=True)
class NewKeypair:
    """The transport keys that a finished handshake derives (whitepaper §5.4.5), ready for `install_keypair`."""

    suite: Suite
    role: Role
    local_index: int  # u32, chosen by us: the receiver field of messages we get
    remote_index: int  # u32, chosen by the peer: the receiver field of messages we send
    send_key: bytes = field(repr=False)  # 32 bytes
    receive_key: bytes = field(repr=False)  # 32 bytes
    birth: float  # seconds on the body's clock at which the handshake ended


@dataclass(frozen=True, slots=True)
class Timing:
    """WireGuard's time constants (whitepaper §6.1) in one value, so that tests can shorten them. All in seconds."""

    rekey_after_time: float = 120.0  # age at which the initiator of a keypair begins a new handshake
    reject_after_time: float = 180.0  # age from which a keypair neither sends nor receives
    rekey_attempt_time: float = 90.0  # how long a handshake is retried before it is given up
    rekey_timeout: float = 5.0  # between two initiations to one peer
    keepalive_timeout: float = 10.0  # after receiving data without sending any, a keepalive is sent
    # The reference implementations add up to a third of a second, so that the retries of both ends do not collide.
    max_jitter: float = 0.333
    cookie_refresh_time: float = 120.0  # age at which the secret behind cookies is replaced
    cookie_latency: float = 5.0  # a cookie is used this much shorter than that, because it travels


class Drop(enum.IntEnum):
    """The reason why a packet or datagram was dropped: a closed list, each with one counter. Values are stable."""

    # Outbound: from the TUN to the sockets.
    NOT_IP = 0  # neither IPv4 nor IPv6, or shorter than its header
    BAD_OFFLOAD = 1  # a virtio-net header or a superpacket that contradicts itself
    NO_ROUTE = 2  # no prefix with a peer contains the destination
    NO_ENDPOINT = 3  # the peer has no endpoint
    STAGED_OVERFLOW = 4  # more than MAX_STAGED_PACKETS waited for a handshake; the oldest was dropped
    STAGED_EXPIRED = 5  # the handshake the packet waited for was given up
    SEND_FAILED = 6  # the kernel refused the datagram, and every other way of sending it
    # Inbound: from the sockets to the TUN.
    MALFORMED = 7  # wrong type, reserved bits or length; or from UDP port 0, which can not be answered
    UNKNOWN_INDEX = 8  # no keypair has the receiver index
    EXPIRED_KEYPAIR = 9  # the keypair is older than reject-after-time, or its counter is used up
    BAD_TAG = 10  # authentication failed
    REPLAYED = 11  # the counter was received before, or is older than the replay window
    MALFORMED_INNER = 12  # authenticated, but its content is no IP packet
    SOURCE_NOT_ACCEPTED = 13  # the inner source is not accepted from this peer
    CONGESTION_UNMARKABLE = 14  # outer CE over an inner packet that is not ECN-capable (RFC 6040 §4.2)
    TUN_WRITE_FAILED = 15  # the TUN refused the packet, for example because it is full
    HANDSHAKE_QUEUE_FULL = 16  # too many datagrams or probe packets wait for the tunnel
    SOCKET_OVERFLOW = 17  # dropped by the kernel before the body could read it (SO_RXQ_OVFL)
    NO_TUN = 18  # a packet for the TUN, received by a body without one


# Events, from the body to the tunnel.


class Datagram(NamedTuple):
    """A datagram that is not a transport message (type 4), unchecked. At most MAX_DATAGRAMS wait; more are dropped.

    Initiations without mac2 (148 bytes, type 1, the last 16 bytes zero) wait in a queue of their own, of at most
    MAX_WAITING_INITIATIONS. They are all that a flood from spoofed sources can send, so the tunnel takes only as many
    as it has room for.
    """

    data: bytes
    endpoint: Endpoint  # the sender, not authenticated
    source: Source | None  # None if the kernel gave no IP_PKTINFO


class InnerPacket(NamedTuple):
    """A UDP packet to our own tunnel address and probe port, from an authenticated peer whose source is accepted."""

    peer: PeerId
    packet: bytes  # whole: the IP header comes first
    outer_ce: bool  # the outer packet was marked "congestion experienced" (RFC 3168)


class HandshakeNeeded(NamedTuple):
    """Packets are staged without a usable keypair, or the current keypair of the initiator is due for renewal.

    Posted once per cause: again only after `install_keypair`, `purge_staged` or `drop_keypairs`, or when a packet is
    staged at least rekey-timeout later. The tunnel limits the rate of handshakes in any case.
    """

    peer: PeerId


class KeyPromoted(NamedTuple):
    """The first authenticated packet under `next` arrived, so the responder made it `current` (key confirmation)."""

    peer: PeerId
    local_index: int


class KeypairRetired(NamedTuple):
    """A keypair left its slot for good (rotation, drop, removal of the peer); its local index is free again."""

    peer: PeerId
    local_index: int


class EndpointMoved(NamedTuple):
    """An authenticated data packet came from a new endpoint, and the body now sends there (roaming, whitepaper §2.1).

    With roaming off the body posts the event once per endpoint and keeps sending to the configured one.
    """

    peer: PeerId
    endpoint: Endpoint
    source: Source | None


class Traffic(NamedTuple):
    """The times behind a peer's timers (whitepaper §6.5) at the moment of the report.

    Seconds on the body's clock; 0.0 means never. `on_events` is called for a report only if the tunnel may have to
    arm a timer it has not armed: `unanswered_since` or `unacknowledged_since` is set and was 0.0 in the last report.
    The call may come a tenth of a second late, because busy peers set and clear both all the time. `drain_events`
    returns a report of every peer whose times changed, so a timer that is due drains the events before it decides.

    `install_keypair` and `purge_staged` clear both: a handshake answers and acknowledges all traffic before it, and
    giving a handshake up starts the count anew.
    """

    peer: PeerId
    data_sent: float  # last data packet (not a keepalive) that left
    any_sent: float  # last authenticated packet that left
    data_received: float  # last data packet that passed every check of the session (key, replay)
    any_received: float  # last authenticated packet that arrived
    unanswered_since: float  # first data packet sent since anything authenticated arrived; 0.0 if none
    unacknowledged_since: float  # first data packet received since anything authenticated left; 0.0 if none


Event = Datagram | InnerPacket | HandshakeNeeded | KeyPromoted | KeypairRetired | EndpointMoved | Traffic

# Datagrams in the queue, and InnerPackets as well. The Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
MAX_DATAGRAMS = 4096
# Initiations without mac2 in their queue. During a flood the queue is always full, and an honest peer waits through
# all of it for its cookie: short enough that the cookie comes before the peer's next try (rekey-timeout), and long
# enough for a thousand peers that start at once.
MAX_WAITING_INITIATIONS = 1024
MAX_STAGED_PACKETS = 128  # per peer while a handshake runs: the Linux kernel's MAX_STAGED_PACKETS
REPLAY_WINDOW = 8192 - 64  # messages a counter may be late: RFC 6479 with 128 words of 64 bits


# Counters.


@dataclass(slots=True)
class PeerCounters:
    """Counters of one peer since `add_peer`, and its state. Bytes are whole transport messages, as in `wg show`."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0  # transport messages, keepalives among them
    tx_packets: int = 0
    endpoint: Endpoint | None = None
    source: Source | None = None  # of the last authenticated packet; None lets the kernel choose
    suite: Suite | None = None  # of the current keypair
    keypair_birth: float = 0.0  # of the current keypair; 0.0 if there is none
    staged: int = 0  # packets that wait for a handshake


@dataclass(slots=True)
class Counters:
    """A snapshot of all counters since the body was made. Packets per system call show the effect of batching."""

    drops: Mapping[Drop, int]  # every member of Drop
    peers: Mapping[PeerId, PeerCounters]
    fallbacks: Mapping[str, int]  # how often an offload was given up, by its name in Offloads
    tun_rx_packets: int = 0  # read from the TUN, counted after segmentation
    tun_tx_packets: int = 0  # written to the TUN, counted before coalescing
    udp_rx_datagrams: int = 0
    udp_tx_datagrams: int = 0
    tun_reads: int = 0  # system calls, here and below
    tun_writes: int = 0
    udp_reads: int = 0
    udp_writes: int = 0


class DataPlane(Protocol):
    """One data plane. See the module docstring for ownership and threads.

    `ravenvpn.dataplane.create(...)` makes a body with: `tun` (a non-blocking descriptor whose frames start with a
    10-byte virtio-net header, or None: sessions and probes only), `offloads` (what the TUN was set up for and the
    sockets may use), `timing`, `clock` (seconds, CLOCK_BOOTTIME unless a test hands in another), and `boot_id` (marks
    hand-over blobs; this boot's unless a test hands in another).

    Errors: a mutator raises KeyError for a peer id that `add_peer` did not add, and ValueError for anything else that
    is wrong with its arguments. It changes nothing then.
    """

    name: str  # "pure" or "native"

    # Life.
    def start(self, loop: asyncio.AbstractEventLoop, on_events: Callable[[], None]) -> None:
        """Pump the descriptors on `loop` from now on, and call `on_events` on it once when events wait.

        The next call of `on_events` comes after `drain_events`. Raises ValueError after `freeze`.
        """

    def stop(self) -> None:
        """Stop pumping and calling back. Safe to call twice; `start` may follow."""

    def set_sockets(self, v4: int | None, v6: int | None) -> None:
        """Use these bound, non-blocking UDP descriptors (v6 with IPV6_V6ONLY). Clears the source of every peer.

        Datagrams that wait for a full socket are dropped as SEND_FAILED. A body holds descriptor numbers, also while
        it is stopped: pass None before closing a descriptor, because its number may be reused for another file.
        """

    def pump_replaced_socket(self, fd: int, ipv6: bool) -> None:
        """Process a budget of the datagrams that wait in a UDP socket which `set_sockets` replaced.

        For a change of the listen port: peers send to the old port until they received a packet from the new one. The
        caller keeps the old socket open for that time and calls this whenever it is readable. Replies are sent from
        the socket in use. Datagrams that the kernel dropped at the old socket are not counted. No effect once frozen.
        """

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of the TUN, 0 to 65535; 0 means unknown. Padding does not exceed it (whitepaper §5.4.6)."""

    def set_offloads(self, offloads: Offloads) -> None:
        """Change which offloads are allowed. No packet in hand is lost, and none is reordered within its flow.

        What the kernel refused once stays off; `offloads()` returns what is in force. The TUN device's own setting
        (TUNSETOFFLOAD) is the caller's: set it first and pass what the kernel granted as `tun_tso` and `tun_uso`.
        Superpackets that the TUN held before are segmented all the same. Batches that wait for a full socket are
        sent datagram by datagram once `udp_gso` is off. To switch `udp_gro` off, the body first reads the sockets
        until they are empty, because the kernel delivers a coalesced datagram without its segment size afterwards.
        """

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        """Post UDP to this inner address and port as InnerPacket instead of writing it to the TUN; None for never."""

    # Peers.
    def add_peer(self, peer: PeerId) -> None:
        """Add a peer without endpoint, prefixes and keypairs; no effect if it exists."""

    def remove_peer(self, peer: PeerId) -> None:
        """Remove a peer with its prefixes, keypairs (KeypairRetired is posted), staged packets and counters."""

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        """Send to `endpoint` from now on. A new endpoint clears the source; a given `source` replaces it.

        None drops packets to the peer as NO_ENDPOINT until it has an endpoint again.
        """

    def set_roaming(self, peer: PeerId, roaming: bool) -> None:
        """Set whether authenticated data from another endpoint moves the peer's endpoint. On for a new peer."""

    def clear_source(self, peer: PeerId) -> None:
        """Let the kernel choose the source address again, as implementations do when they retry a handshake."""

    # Prefixes. Routes and acceptance are apart because two ends of a change never switch at the same instant.
    def route(self, prefix: Prefix, peers: Sequence[PeerId]) -> None:
        """Route `prefix` to these peers and no others, in one step; remove the route if `peers` is empty.

        The first peer carries the traffic. The others are for sharing load between gateways; no caller yet.
        """

    def accept(self, peer: PeerId, add: Sequence[Prefix] = (), remove: Sequence[Prefix] = ()) -> None:
        """Accept inner sources in `add` from this peer, and those in `remove` no more.

        An inner packet passes if its sender is among the peers of the longest accepted prefix, over all peers, that
        contains its source. Removing a prefix that is not accepted has no effect.
        """

    # Keypairs.
    def install_keypair(self, peer: PeerId, keypair: NewKeypair) -> None:
        """Put a new keypair into its slot: an initiator's becomes `current`, a responder's `next` (as wireguard-go).

        An initiator's sends the staged packets, or a keepalive if there are none (key confirmation, §5.4.4).
        Raises ValueError if the local index is in use, and after `freeze`.
        """

    def expire_keypairs(self, peer: PeerId) -> None:
        """Stop sending under all keypairs of the peer; receiving goes on (our static key changed)."""

    def drop_keypairs(self, peer: PeerId) -> None:
        """Wipe all keypairs of the peer (whitepaper §6.3: three times reject-after-time without a new session)."""

    def purge_staged(self, peer: PeerId) -> None:
        """Drop the packets that wait for a handshake that was given up, counted as STAGED_EXPIRED."""

    # Sending. All three raise ValueError after `freeze`.
    def send_keepalive(self, peer: PeerId) -> None:
        """Send an empty transport message. Without a usable keypair send nothing and post HandshakeNeeded."""

    def send_inner(self, peer: PeerId, packet: bytes, outer_df: bool = False) -> None:
        """Send a whole inner IP packet of our own making to this peer, past the routes.

        `outer_df` sets DF on the outer packet (path-MTU probes). The packet is staged if no keypair is usable.
        Raises ValueError unless it has 20 to 65455 bytes.
        """

    def send_datagram(self, data: bytes, endpoint: Endpoint, source: Source | None = None) -> None:
        """Send a raw datagram (handshake message, cookie reply) from the socket of its family, DS field AF41."""

    # Observation.
    def drain_events(self, max_initiations: int = MAX_DATAGRAMS) -> list[Event]:
        """Return and remove the events since the last call, in order; then at most `max_initiations` initiations
        without mac2 (see Datagram), the oldest first; then Traffic of every peer whose times changed.

        `on_events` is not called again for initiations that stay in the queue.
        """

    def waiting_initiations(self) -> int:
        """Return the number of initiations without mac2 in the queue."""

    def counters(self) -> Counters:
        """Return a snapshot of all counters."""

    def offloads(self) -> Offloads:
        """Return the offloads in force: allowed, supported by this body, and not refused by the kernel."""

    # For session hand-over on restart.
    def freeze(self) -> bytes:
        """Stop for good and return the sessions as a blob (format: `dataplane.handover`), as secret as the keys.

        Nothing is sent afterwards, so that no counter repeats: `start`, `thaw`, `install_keypair` and everything that
        sends raise ValueError. The descriptors stay open and belong to the caller.
        """

    def thaw(self, blob: bytes) -> None:
        """Take over the sessions of a frozen body. Counters skip ahead; Traffic of each peer is posted.

        Raises ValueError, and changes nothing, if the blob is damaged or of another version or boot, or if a peer id
        or local index in it exists already.
        """
