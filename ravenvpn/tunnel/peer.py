"""A peer: what was configured about it, how its handshakes stand, and what a person may see of both.

Values and state only; what acts on them is in `handshakes` and `sessions`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from ipaddress import ip_address

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.handshake import PendingInitiation
from ravenvpn.crypto.keys import PresharedKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint, PeerCounters, PeerId, Timing
from ravenvpn.tunnel.handshake.own_keys import OwnKey
from ravenvpn.tunnel.handshake.states import HandshakeEvent, HandshakeState, after
from ravenvpn.tunnel.roaming import PeerEndpoints
from ravenvpn.tunnel.timers import NEVER, Timers

WIREGUARD_ONLY = frozenset({Suite.CHACHA20POLY1305})


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What is configured about one peer. `name` is its identity: a node's name, or its key where peers have none."""

    name: str
    public_keys: tuple[PublicKey, ...]  # the first is called; all are answered; no other peer may have them
    preshared_key: PresharedKey | None = None
    endpoints: tuple[Endpoint, ...] = ()  # best first; empty: only the peer can call
    persistent_keepalive: float = 0.0  # seconds, 0 for none
    suites: frozenset[Suite] = WIREGUARD_ONLY  # what the peer announces
    roaming: bool = True
    warm: bool = False  # keep a session up even without traffic

    def __post_init__(self) -> None:
        if not self.public_keys:
            raise ValueError(f"peer {self.name!r} has no public key")
        if not 0 <= self.persistent_keepalive < math.inf:
            raise ValueError(f"peer {self.name!r} has no keepalive interval, but {self.persistent_keepalive}")
        for endpoint in self.endpoints:
            # All of them now: the second one is tried in the middle of a retry, when nobody could be told.
            if not (0 < endpoint.port < 1 << 16 and 0 <= endpoint.scope_id < 1 << 32) or "%" in endpoint.host:
                raise ValueError(f"peer {self.name!r} has no endpoint, but {endpoint}")
            ip_address(endpoint.host)


class HandshakeFailure(enum.Enum):
    """Why there is no session, as far as we can tell; the value is a line for a person."""

    NO_ANSWER = "no answer to our initiations"
    NO_ENDPOINT = "no endpoint is known, only the peer can call"
    NO_PRIVATE_KEY = "no private key of our own is set"
    UNUSABLE_KEY = "the peer's public key is a point of low order"
    OWN_KEY = "the peer's public key is our own"
    BAD_RESPONSE = "a response did not authenticate: do the preshared keys match?"
    REPLAYED = "the peer's initiations carry old timestamps: a replay, or its clock went back"
    SUITE_REFUSED = "the peer asked for a suite that is not agreed"
    COOKIE_DEMANDED = "the peer is under load and asked for a cookie"


_ALIVE = {
    HandshakeEvent.RESPONSE_ACCEPTED: True,
    HandshakeEvent.KEY_CONFIRMED: True,
    HandshakeEvent.GIVEN_UP: False,
    HandshakeEvent.KEYS_RETIRED: False,
    HandshakeEvent.WIPED: False,
}


@dataclass(slots=True, eq=False)
class Pending:
    """An initiation of ours that waits for its response."""

    index: int
    initiation: PendingInitiation
    own: OwnKey
    theirs: PublicKey
    stamper: CookieStamper


@dataclass(slots=True, eq=False)
class Peer:
    """One peer's state. `greatest` holds the newest TAI64N accepted from each of its keys (§5.1)."""

    id: PeerId
    settings: PeerSettings
    timing: Timing
    timers: Timers
    where: PeerEndpoints = field(default_factory=PeerEndpoints)
    phase: HandshakeState = HandshakeState.IDLE
    pending: Pending | None = None
    keypairs: set[int] = field(default_factory=set)  # local indices the data plane holds for it
    keyed_with: PublicKey | None = None  # its key that the newest session was made with
    greatest: dict[PublicKey, bytes] = field(default_factory=dict)
    initiation_accepted: float = NEVER
    stamped_ns: int = 0  # of our last initiation; the next one is greater, even if the wall clock went back
    stampers: dict[PublicKey, CookieStamper] = field(default_factory=dict)
    answered_with: CookieStamper | None = None  # that of our last response
    last_handshake_ns: int = 0  # Unix time; 0 = never
    rx_bytes: int = 0  # of handshake messages; the data plane counts the rest
    tx_bytes: int = 0
    failure: HandshakeFailure | None = None
    alive: bool = False  # the last handshake that ended, ended well, and its keys are not gone
    reported_alive: bool = False

    def happened(self, what: HandshakeEvent) -> None:
        """Step through the table of phases; OutOfTurn if it has no such step, and nothing changes then."""
        self.phase = after(self.phase, what)
        self.alive = _ALIVE.get(what, self.alive)

    def failed(self, why: HandshakeFailure) -> None:
        """Remember why there is no session. While there is one, nobody's old or foreign messages matter."""
        if not self.alive:
            self.failure = why

    def stamper(self, key: PublicKey) -> CookieStamper:
        """The stamper for messages to one of its keys, kept for the cookies it learns."""
        stamper = self.stampers.get(key)
        if stamper is None:
            stamper = CookieStamper(key, self.timing.cookie_refresh_time, self.timing.cookie_latency)
            self.stampers[key] = stamper
        return stamper

    def forget_key(self, key: PublicKey) -> None:
        """A key that is no longer the peer's: nothing is kept for it."""
        self.greatest.pop(key, None)
        self.stampers.pop(key, None)


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A snapshot for people and programs. Bytes include handshake messages, as `wg show` counts them."""

    id: PeerId
    settings: PeerSettings
    phase: HandshakeState
    endpoint: Endpoint | None
    suite: Suite | None  # of the session in use
    session_age: float | None  # seconds; None without a session young enough to use
    last_handshake_ns: int  # Unix time in nanoseconds; 0 = never
    attempts: int  # initiations sent since the last handshake
    failure: HandshakeFailure | None
    rx_bytes: int
    tx_bytes: int
    rx_packets: int  # data only
    tx_packets: int
    staged: int  # packets that wait for a handshake


def status_of(peer: Peer, counters: PeerCounters | None, timing: Timing, now: float) -> PeerStatus:
    """The peer as it is, with what the data plane counted (None if it does not know the peer)."""
    seen = counters or PeerCounters()
    age = now - seen.keypair_birth
    usable = seen.keypair_birth > 0 and age < timing.reject_after_time
    return PeerStatus(
        id=peer.id,
        settings=peer.settings,
        phase=peer.phase,
        endpoint=seen.endpoint or peer.where.current(),
        suite=seen.suite if usable else None,
        session_age=age if usable else None,
        last_handshake_ns=peer.last_handshake_ns,
        attempts=peer.timers.attempts,
        failure=peer.failure,
        rx_bytes=seen.rx_bytes + peer.rx_bytes,
        tx_bytes=seen.tx_bytes + peer.tx_bytes,
        rx_packets=seen.rx_packets,
        tx_packets=seen.tx_packets,
        staged=seen.staged,
    )
