"""The handshake of all peers (whitepaper §5.4): send, answer and complete it, and install what it derived.

Every received message arrives here with a valid mac1. A message that fails a check is refused with AdmissionRefused,
whose reason is counted; it changes nothing but the peer's `failure`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ravenvpn.crypto import tai64n
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.handshake import ReceivedInitiation, initiate, receive_initiation
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Datagram, DataPlane, Endpoint, NewKeypair, Role, Source
from ravenvpn.errors import ConfigError, MalformedMessage
from ravenvpn.tunnel.admission.handshake_filter import AdmissionRefused, HandshakeDrop, QueuedMessage
from ravenvpn.tunnel.admission.unknown_keys import UnknownKeys
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.indices import IndexTable
from ravenvpn.tunnel.handshake.own_keys import OwnKey, OwnKeys
from ravenvpn.tunnel.handshake.states import HandshakeEvent, UnexpectedEvent, next_state
from ravenvpn.tunnel.peer import HandshakeFailure, Peer, PendingHandshake
from ravenvpn.tunnel.peer_table import PeerTable

INITIATIONS_PER_SECOND: Final = 50  # accepted per peer, as in the reference implementations
TIMESTAMP_GRAIN_NS: Final = 1 << 24  # two initiations within one grain carry equal timestamps (crypto.tai64n)

# Failures that are cured once an initiation could be made.
CURED_BY_INITIATION: Final = (
    HandshakeFailure.NO_PRIVATE_KEY,
    HandshakeFailure.NO_ENDPOINT,
    HandshakeFailure.OWN_KEY,
    HandshakeFailure.UNUSABLE_KEY,
)


class HandshakeExchange:
    """Handshakes of a device's peers. Messages are sent, and keypairs installed, through the data plane.

    `suites` is what we offer as initiator and accept as responder; it may be replaced at any time.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        own_keys: OwnKeys,
        peers: PeerTable,
        indices: IndexTable,
        unknown_keys: UnknownKeys,
        *,
        random: Callable[[int], bytes],
        suites: frozenset[Suite],
    ) -> None:
        """`random(n)` returns n random bytes, for ephemeral keys."""
        self._dataplane = dataplane
        self._own_keys = own_keys
        self._peers = peers
        self._indices = indices
        self._unknown_keys = unknown_keys
        self._random = random
        self.suites = suites

    # Initiator.

    def initiate(self, peer: Peer, now: float, unix_ns: int) -> HandshakeFailure | None:
        """Send an initiation to the peer's current endpoint; it replaces a pending one. Return why if none was
        sent."""
        own = self._own_keys.current
        if own is None:
            return HandshakeFailure.NO_PRIVATE_KEY
        remote_key = peer.settings.public_keys[0]
        if self._own_keys.is_own(remote_key):
            return HandshakeFailure.OWN_KEY
        endpoint = peer.endpoints.current()
        if endpoint is None:
            return HandshakeFailure.NO_ENDPOINT
        # §5.1: the timestamp must grow, even if the wall clock goes back.
        timestamp_ns = max(unix_ns, peer.last_timestamp_ns + TIMESTAMP_GRAIN_NS)
        suite = self._choose_suite(peer)
        ephemeral = PrivateKey.generate(self._random)
        try:
            body, initiation = initiate(own.private, remote_key, suite, tai64n.stamp(timestamp_ns), ephemeral)
        except ConfigError:
            return HandshakeFailure.UNUSABLE_KEY
        self.drop_pending(peer)
        peer.last_timestamp_ns = timestamp_ns
        index = self._indices.allocate(peer.id)
        stamper = peer.cookie_stamper(remote_key)
        peer.pending = PendingHandshake(index, initiation, own, remote_key, stamper)
        peer.transition(HandshakeEvent.INITIATION_SENT)
        if peer.failure in CURED_BY_INITIATION:
            peer.failure = None
        peer.timers.handshake_initiated(now)
        message = stamper.stamp(messages.Initiation(index, suite, body).pack(), now)
        self._send(peer, message, endpoint, peer.endpoints.source)
        return None

    def give_up(self, peer: Peer, now: float) -> None:
        """End a pending initiation that nothing answered for REKEY_ATTEMPT_TIME (§6.4), and drop staged packets."""
        self.drop_pending(peer)
        peer.transition(HandshakeEvent.GIVEN_UP)
        peer.timers.handshake_given_up(now)
        peer.record_failure(peer.failure or HandshakeFailure.NO_ANSWER)
        self._dataplane.purge_staged(peer.id)

    def drop_pending(self, peer: Peer) -> None:
        """Wipe a pending initiation, if there is one, and free its index. The caller applies the state transition."""
        if peer.pending is not None:
            peer.pending.initiation.wipe()
            self._indices.release(peer.pending.index, peer.id)
            peer.pending = None

    # Received messages.

    def receive(self, queued: QueuedMessage, now: float, unix_ns: int) -> None:
        """Process one message that passed the admission queue. Raises AdmissionRefused if it fails a check."""
        message, own, datagram = queued
        if isinstance(message, messages.CookieReply):
            self._on_cookie_reply(message, datagram, now)
        elif own is None or own not in self._own_keys:
            raise AdmissionRefused(HandshakeDrop.BAD_MAC1)
        elif isinstance(message, messages.Initiation):
            self._on_initiation(message, own, queued, now)
        else:
            self._on_response(message, own, datagram, now, unix_ns)

    def _on_initiation(self, message: messages.Initiation, own: OwnKey, queued: QueuedMessage, now: float) -> None:
        """Decrypt an initiation (§5.4.2) and respond to it, or keep it if its static key is unknown.

        The first Diffie-Hellman results decide which peer it is; no state of a peer is touched before that.
        """
        try:
            received = receive_initiation(own.private, message.body, message.suite)
        except MalformedMessage:
            raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC) from None
        if self._own_keys.is_own(received.static):
            raise AdmissionRefused(HandshakeDrop.OWN_STATIC)
        known = self._peers.lookup_key(received.static)
        if known is None:
            self._unknown_keys.store(received.static, received.timestamp, queued, now)
            raise AdmissionRefused(HandshakeDrop.UNKNOWN_STATIC)
        with self._peers.change(known.id) as peer:
            self._respond(peer, message, received, queued.datagram, now)

    def _respond(
        self, peer: Peer, message: messages.Initiation, received: ReceivedInitiation, datagram: Datagram, now: float
    ) -> None:
        """Check an authentic initiation of this peer, install the responder's keypair and send the response (§5.4.3).

        The keypair waits in the data plane's `next` slot until a packet under it confirms that the response arrived.
        """
        # §5.1: a timestamp that is not greater than the last one is a replay.
        if received.timestamp <= peer.timestamps.get(received.static, b""):
            peer.record_failure(HandshakeFailure.REPLAYED)
            raise AdmissionRefused(HandshakeDrop.REPLAYED_TIMESTAMP)
        # Also bounds what a peer with a valid key can cost: each accepted initiation is a whole handshake.
        if now < peer.initiation_accepted_at + 1 / INITIATIONS_PER_SECOND:
            raise AdmissionRefused(HandshakeDrop.FLOOD)
        if message.suite not in self.suites or message.suite not in peer.settings.suites:
            peer.record_failure(HandshakeFailure.SUITE_REFUSED)
            raise AdmissionRefused(HandshakeDrop.SUITE_REFUSED)
        try:
            body, keys = received.respond(peer.settings.preshared_key, PrivateKey.generate(self._random))
        except MalformedMessage:
            peer.record_failure(HandshakeFailure.UNUSABLE_KEY)
            raise AdmissionRefused(HandshakeDrop.UNUSABLE_KEY) from None
        # Every check has passed: from here on state changes.
        peer.timestamps[received.static] = received.timestamp
        peer.initiation_accepted_at = now
        peer.rx_bytes += len(datagram.data)
        peer.transition(HandshakeEvent.INITIATION_ACCEPTED)
        peer.timers.handshake_answered(now)
        self._observe_endpoint(peer, datagram)
        index = self._indices.allocate(peer.id)
        keypair = NewKeypair(message.suite, Role.RESPONDER, index, message.sender, keys.send, keys.receive, birth=now)
        self._install(peer, keypair, received.static)
        peer.response_stamper = peer.cookie_stamper(received.static)
        response = peer.response_stamper.stamp(messages.Response(index, message.sender, body).pack(), now)
        # The response goes to where the initiation came from, and from the address it was sent to. With roaming off
        # that need not be the endpoint that data is sent to.
        self._send(peer, response, datagram.endpoint, datagram.source)

    def _on_response(
        self, message: messages.Response, own: OwnKey, datagram: Datagram, now: float, unix_ns: int
    ) -> None:
        """Complete the initiation that this response (§5.4.3) names, and install the initiator's keypair.

        The data plane then sends what was staged, or a keepalive, which confirms the keys to the responder (§5.4.4).
        """
        entry = self._indices.lookup(message.receiver)
        if entry is None or entry.keypair or entry.peer not in self._peers:
            raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE)
        with self._peers.change(entry.peer) as peer:
            pending = peer.pending
            if pending is None or pending.index != message.receiver:
                raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE)
            try:
                next_state(peer.state, HandshakeEvent.RESPONSE_ACCEPTED)
            except UnexpectedEvent:
                raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE) from None
            # mac1 was made for one of our keys, but not for the one that the initiation was made with.
            if own is not pending.own:
                raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC)
            try:
                keys = pending.initiation.finish(message.body, peer.settings.preshared_key)
            except MalformedMessage:
                peer.record_failure(HandshakeFailure.BAD_RESPONSE)
                raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC) from None
            peer.pending = None
            peer.rx_bytes += len(datagram.data)
            peer.transition(HandshakeEvent.RESPONSE_ACCEPTED)
            peer.timers.response_received(now)
            peer.timers.handshake_completed()
            peer.last_handshake_ns = unix_ns
            peer.failure = None
            self._observe_endpoint(peer, datagram)
            suite, index = pending.initiation.suite, pending.index
            keypair = NewKeypair(suite, Role.INITIATOR, index, message.sender, keys.send, keys.receive, birth=now)
            self._install(peer, keypair, pending.remote_key)

    def _on_cookie_reply(self, message: messages.CookieReply, datagram: Datagram, now: float) -> None:
        """Store the cookie for the next message. A cookie reply does not prove the peer's address, so it moves no
        endpoint, and §6.6 sends nothing at once: the retransmission carries mac2."""
        entry = self._indices.lookup(message.receiver)
        if entry is None or entry.peer not in self._peers:
            raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
        with self._peers.change(entry.peer) as peer:
            # The reply answers our last response (the index is a session's by now) or our pending initiation.
            if entry.keypair:
                stamper = peer.response_stamper
            else:
                stamper = peer.pending.stamper if peer.pending is not None else None
            if stamper is None:
                raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
            try:
                stamper.receive_reply(datagram.data, now)
            except MalformedMessage:
                raise AdmissionRefused(HandshakeDrop.BAD_COOKIE) from None
            peer.record_failure(HandshakeFailure.COOKIE_DEMANDED)

    def _choose_suite(self, peer: Peer) -> Suite:
        """Return the suite of an initiation: AES-GCM where both ends announce it (docs/protocol.md §1)."""
        common = self.suites & peer.settings.suites
        return Suite.AES256GCM if Suite.AES256GCM in common else Suite.CHACHA20POLY1305

    def _observe_endpoint(self, peer: Peer, datagram: Datagram) -> None:
        """Let the peer roam to the source of an authenticated message (§2.1), and answer from the address it used."""
        if peer.endpoints.observe(datagram.endpoint, datagram.source, peer.settings.roaming):
            self._dataplane.set_endpoint(peer.id, datagram.endpoint, datagram.source)

    def _install(self, peer: Peer, keypair: NewKeypair, remote_key: PublicKey) -> None:
        """Hand new transport keys to the data plane. The handshake's index becomes the session's."""
        peer.session_key = remote_key
        self._indices.promote(keypair.local_index)
        peer.keypairs.add(keypair.local_index)
        peer.timers.session_derived(keypair.role, keypair.birth)
        self._dataplane.install_keypair(peer.id, keypair)

    def _send(self, peer: Peer, message: bytes, endpoint: Endpoint, source: Source | None) -> None:
        # The data plane does not count handshake messages by peer.
        peer.tx_bytes += len(message)
        self._dataplane.send_datagram(message, endpoint, source)
