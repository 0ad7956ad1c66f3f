"""A peer: its settings, the state of its handshakes, and its status for people and programs.

Values and state only; `handshake.exchange` and `peer_rules` act on them. A `Peer` is changed only inside
`PeerTable.change`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.handshake import PendingInitiation
from ravenvpn.crypto.keys import PresharedKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint, PeerCounters, PeerId, Role, Source, Timing
from ravenvpn.tunnel.handshake.own_keys import OwnKey
from ravenvpn.tunnel.handshake.states import HandshakeEvent, HandshakeState, next_state
from ravenvpn.tunnel.roaming import PeerEndpoints
from ravenvpn.tunnel.timers import NEVER, Timers

WIREGUARD_ONLY = frozenset({Suite.CHACHA20POLY1305})


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The configuration of one peer. `name` identifies it: a node's name, or the key where peers have no name."""

    name: str
    # Initiations go to the first; those from all of them are answered. A key belongs to one peer only.
    public_keys: tuple[PublicKey, ...]
    preshared_key: PresharedKey | None = None  # used from the next handshake on
    endpoints: tuple[Endpoint, ...] = ()  # best first; empty: only the peer can initiate
    persistent_keepalive: float = 0.0  # seconds, 0 for none
    suites: frozenset[Suite] = WIREGUARD_ONLY  # announced by the peer
    roaming: bool = True  # follow the peer to any endpoint, not only to those configured
    warm: bool = False  # keep a session up even without traffic

    def __post_init__(self) -> None:
        """Raise ValueError for a field out of range. Endpoints are numeric: there is no name resolution here."""
        if not self.public_keys:
            raise ValueError(f"peer {self.name!r} has no public key")
        if not 0 <= self.persistent_keepalive < math.inf:
            raise ValueError(f"peer {self.name!r}: keepalive interval {self.persistent_keepalive} is out of range")
        for endpoint in self.endpoints:
            # Check all of them now: the second is used in the middle of a retry, where no caller gets an error.
            if not (0 < endpoint.port < 1 << 16 and 0 <= endpoint.scope_id < 1 << 32) or "%" in endpoint.host:
                raise ValueError(f"peer {self.name!r}: {endpoint} is not a numeric endpoint")
            ip_address(endpoint.host)


class HandshakeFailure(enum.Enum):
    """Why there is no session, as far as known; the value is a line for a person."""

    NO_ANSWER = "no answer to our initiations"
    NO_ENDPOINT = "no endpoint is known, only the peer can initiate"
    NO_PRIVATE_KEY = "no private key of our own is set"
    UNUSABLE_KEY = "the peer's public key is a point of low order"
    OWN_KEY = "the peer's public key is our own"
    BAD_RESPONSE = "a response did not authenticate: do the preshared keys match?"
    REPLAYED = "the peer's initiations carry old timestamps: a replay, or its clock went back"
    SUITE_REFUSED = "the peer asked for a suite that is not agreed"
    COOKIE_DEMANDED = "the peer is under load and asked for a cookie"


# Whether there is a session after an event; events that are missing change nothing.
_HAS_SESSION_AFTER = {
    HandshakeEvent.RESPONSE_ACCEPTED: True,
    HandshakeEvent.KEY_CONFIRMED: True,
    HandshakeEvent.GIVEN_UP: False,
    HandshakeEvent.KEYS_RETIRED: False,
    HandshakeEvent.WIPED: False,
}


@dataclass(slots=True, eq=False)
class PendingHandshake:
    """An initiation of ours that waits for its response."""

    index: int  # ours, in the IndexTable
    initiation: PendingInitiation  # the Noise state; wiped when the handshake ends
    own: OwnKey  # our key that it was made with
    remote_key: PublicKey  # the peer's key that it was made for
    stamper: CookieStamper


@dataclass(slots=True, eq=False)
class Peer:
    """The state of one peer. Owned by `PeerTable`; changed only inside `PeerTable.change`."""

    id: PeerId
    settings: PeerSettings
    timing: Timing
    timers: Timers
    endpoints: PeerEndpoints = field(default_factory=PeerEndpoints)
    state: HandshakeState = HandshakeState.IDLE
    pending: PendingHandshake | None = None
    keypairs: set[int] = field(default_factory=set)  # local indices of its keypairs in the data plane
    session_key: PublicKey | None = None  # the peer's key that the newest session was made with
    timestamps: dict[PublicKey, bytes] = field(default_factory=dict)  # newest TAI64N accepted from each key (§5.1)
    initiation_accepted_at: float = NEVER  # seconds
    last_timestamp_ns: int = 0  # of our last initiation; the next one is greater, even if the wall clock went back
    stampers: dict[PublicKey, CookieStamper] = field(default_factory=dict)  # by key of the peer
    response_stamper: CookieStamper | None = None  # of our last response
    last_handshake_ns: int = 0  # Unix time of the last completed handshake; 0 = never
    rx_bytes: int = 0  # of handshake messages; the data plane counts the rest
    tx_bytes: int = 0
    failure: HandshakeFailure | None = None  # why there is no session
    has_session: bool = False  # the last handshake that ended was completed, and its keys are not gone
    session_reported: bool = False  # `has_session` as of the last SessionUp or SessionLost

    def transition(self, event: HandshakeEvent) -> None:
        """Apply an event to the handshake state. Raises UnexpectedEvent, and changes nothing, if it is not
        possible."""
        self.state = next_state(self.state, event)
        self.has_session = _HAS_SESSION_AFTER.get(event, self.has_session)

    def record_failure(self, failure: HandshakeFailure) -> None:
        """Record why there is no session. No effect while there is one: late or forged messages do not matter
        then."""
        if not self.has_session:
            self.failure = failure

    def cookie_stamper(self, key: PublicKey) -> CookieStamper:
        """Return the stamper for messages to this key of the peer; it is kept for the cookies it receives."""
        stamper = self.stampers.get(key)
        if stamper is None:
            stamper = CookieStamper(key, self.timing.cookie_refresh_time, self.timing.cookie_latency)
            self.stampers[key] = stamper
        return stamper

    def remove_key(self, key: PublicKey) -> None:
        """Delete the state kept for a key that is no longer the peer's."""
        self.timestamps.pop(key, None)
        self.stampers.pop(key, None)


class TimersView(Protocol):
    """The readable part of `Timers`."""

    @property
    def attempts(self) -> int:
        """Initiations sent since the last completed handshake."""

    @property
    def handshake_sent(self) -> float:
        """Instant of the last initiation, seconds; NEVER if none was sent."""

    @property
    def session(self) -> tuple[Role, float] | None:
        """This node's role in the newest session and the instant it was derived; None without one."""


class EndpointsView(Protocol):
    """The readable part of `PeerEndpoints`."""

    @property
    def confirmed(self) -> Endpoint | None:
        """Outer address of the last authenticated packet; None if there was none."""

    @property
    def source(self) -> Source | None:
        """Local address and interface that packet arrived at, for replies from the same address."""

    def current(self) -> Endpoint | None:
        """Return the endpoint for the next initiation; None if no endpoint is known."""


class PeerView(Protocol):
    """A `Peer` as `PeerTable` lends it for reading. The type checker refuses every change through it."""

    @property
    def id(self) -> PeerId:
        """Id of the peer in the data plane."""

    @property
    def settings(self) -> PeerSettings:
        """Configuration of the peer."""

    @property
    def timers(self) -> TimersView:
        """Timer state, for status."""

    @property
    def endpoints(self) -> EndpointsView:
        """Candidate outer addresses, and the one in use."""

    @property
    def state(self) -> HandshakeState:
        """State of the handshakes with the peer."""

    @property
    def keypairs(self) -> Set[int]:
        """Local indices of keypairs that the data plane holds for the peer."""

    @property
    def session_key(self) -> PublicKey | None:
        """Static key of the peer in the newest session; None without one."""

    @property
    def timestamps(self) -> Mapping[PublicKey, bytes]:
        """Greatest TAI64N timestamp received, by static key: an initiation with an older one is a replay."""

    @property
    def last_timestamp_ns(self) -> int:
        """Timestamp of the last initiation sent, nanoseconds since the Unix epoch; they never repeat."""

    @property
    def last_handshake_ns(self) -> int:
        """Wall clock of the last completed handshake, nanoseconds since the Unix epoch; 0 if none."""

    @property
    def rx_bytes(self) -> int:
        """Bytes of handshake messages received."""

    @property
    def tx_bytes(self) -> int:
        """Bytes of handshake messages sent."""

    @property
    def failure(self) -> HandshakeFailure | None:
        """Why the last handshake failed; None after a success."""

    @property
    def has_session(self) -> bool:
        """Whether a session can carry data."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A snapshot of one peer for people and programs. Bytes include handshake messages, as `wg show` counts them."""

    id: PeerId
    settings: PeerSettings
    state: HandshakeState
    endpoint: Endpoint | None  # in use for data; before the first session the one for the next initiation
    suite: Suite | None  # of the session in use
    session_age: float | None  # seconds; None without a session young enough to use
    last_handshake_ns: int  # Unix time in nanoseconds; 0 = never
    attempts: int  # initiations sent since the last completed handshake
    failure: HandshakeFailure | None  # why there is no session
    rx_bytes: int
    tx_bytes: int
    rx_packets: int  # data only
    tx_packets: int
    staged: int  # packets that wait for a handshake


def status_of(peer: PeerView, counters: PeerCounters | None, timing: Timing, now: float) -> PeerStatus:
    """Return the status of a peer from its state and the data plane's counters (None if it does not know the
    peer)."""
    counted = counters or PeerCounters()
    age = now - counted.keypair_birth
    usable = counted.keypair_birth > 0 and age < timing.reject_after_time
    return PeerStatus(
        id=peer.id,
        settings=peer.settings,
        state=peer.state,
        endpoint=counted.endpoint or peer.endpoints.current(),
        suite=counted.suite if usable else None,
        session_age=age if usable else None,
        last_handshake_ns=peer.last_handshake_ns,
        attempts=peer.timers.attempts,
        failure=peer.failure,
        rx_bytes=counted.rx_bytes + peer.rx_bytes,
        tx_bytes=counted.tx_bytes + peer.tx_bytes,
        rx_packets=counted.rx_packets,
        tx_packets=counted.tx_packets,
        staged=counted.staged,
    )
