"""The handshake itself (whitepaper §5.4): making, answering and finishing it, and what each step leaves behind.

Every message arrives here with a valid mac1. A message that does not fit is refused with
its reason and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ravenvpn.crypto import tai64n
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.handshake import initiate, receive_initiation
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Datagram, DataPlane, Endpoint, NewKeypair, Role, Source
from ravenvpn.errors import ConfigError, MalformedMessage
from ravenvpn.tunnel.admission.queue import AdmissionRefused, HandshakeDrop, Waiting
from ravenvpn.tunnel.admission.unknown_keys import UnknownKeys
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.indices import IndexTable
from ravenvpn.tunnel.handshake.own_keys import OwnKey, OwnKeys
from ravenvpn.tunnel.handshake.states import HandshakeEvent, UnexpectedEvent, after
from ravenvpn.tunnel.peer import HandshakeFailure, Peer, Pending
from ravenvpn.tunnel.peer_table import PeerTable

INITIATIONS_PER_SECOND: Final = 50  # accepted per peer, as the reference implementations have it
STAMP_GRAIN_NS: Final = 1 << 24  # two initiations within one grain carry equal timestamps (crypto.tai64n)

# What is no longer true once an initiation could be made.
CURED_BY_CALLING: Final = (
    HandshakeFailure.NO_PRIVATE_KEY,
    HandshakeFailure.NO_ENDPOINT,
    HandshakeFailure.OWN_KEY,
    HandshakeFailure.UNUSABLE_KEY,
)


class HandshakeExchange:
    """Does handshakes for all peers of a device, with the data plane as its mouth and the keeper of its keys."""

    def __init__(
        self,
        dataplane: DataPlane,
        identity: OwnKeys,
        peers: PeerTable,
        indices: IndexTable,
        strangers: UnknownKeys,
        *,
        random: Callable[[int], bytes],
        suites: frozenset[Suite],
    ) -> None:
        self._dataplane = dataplane
        self._identity = identity
        self._peers = peers
        self._indices = indices
        self._strangers = strangers
        self._random = random
        self._suites = suites

    # The initiator.

    def initiate(self, peer: Peer, now: float, unix_ns: int) -> HandshakeFailure | None:
        """Send an initiation to where the peer may be, replacing one that waits. Says why if it cannot."""
        own = self._identity.current
        if own is None:
            return HandshakeFailure.NO_PRIVATE_KEY
        theirs = peer.settings.public_keys[0]
        if self._identity.is_ours(theirs):
            return HandshakeFailure.OWN_KEY
        endpoint = peer.where.current()
        if endpoint is None:
            return HandshakeFailure.NO_ENDPOINT
        # §5.1: the timestamp must grow, whatever the wall clock does.
        stamped_ns = max(unix_ns, peer.stamped_ns + STAMP_GRAIN_NS)
        suite = self._suite_for(peer)
        ephemeral = PrivateKey.generate(self._random)
        try:
            body, initiation = initiate(own.private, theirs, suite, tai64n.stamp(stamped_ns), ephemeral)
        except ConfigError:
            return HandshakeFailure.UNUSABLE_KEY
        self.drop_pending(peer)
        peer.stamped_ns = stamped_ns
        index = self._indices.allocate(peer.id)
        stamper = peer.stamper(theirs)
        peer.pending = Pending(index, initiation, own, theirs, stamper)
        peer.happened(HandshakeEvent.INITIATION_SENT)
        if peer.failure in CURED_BY_CALLING:
            peer.failure = None
        peer.timers.handshake_initiated(now)
        message = stamper.stamp(messages.Initiation(index, suite, body).pack(), now)
        self._send(peer, message, endpoint, peer.where.source)
        return None

    def give_up(self, peer: Peer, now: float) -> None:
        """§6.4: nothing answered for REKEY_ATTEMPT_TIME."""
        self.drop_pending(peer)
        peer.happened(HandshakeEvent.GIVEN_UP)
        peer.timers.handshake_given_up(now)
        peer.failed(peer.failure or HandshakeFailure.NO_ANSWER)
        self._dataplane.purge_staged(peer.id)

    def drop_pending(self, peer: Peer) -> None:
        """Wipe the initiation that waits, if one does, and free its index. The phase is the caller's to step."""
        if peer.pending is not None:
            peer.pending.initiation.wipe()
            self._indices.release(peer.pending.index, peer.id)
            peer.pending = None

    # What comes in.

    def receive(self, waiting: Waiting, now: float, unix_ns: int) -> Peer:
        """Act on one message that passed the gate; the peer it changed. Refused if it may not."""
        message, own, datagram = waiting
        if isinstance(message, messages.CookieReply):
            return self._on_cookie_reply(message, datagram, now)
        if own is None or not self._identity.has(own):
            raise AdmissionRefused(HandshakeDrop.BAD_MAC1)
        if isinstance(message, messages.Initiation):
            return self._on_initiation(message, own, waiting, now)
        return self._on_response(message, own, datagram, now, unix_ns)

    def _on_initiation(self, message: messages.Initiation, own: OwnKey, waiting: Waiting, now: float) -> Peer:
        datagram = waiting.datagram
        try:
            received = receive_initiation(own.private, message.body, message.suite)
        except MalformedMessage:
            raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC) from None
        if self._identity.is_ours(received.static):
            raise AdmissionRefused(HandshakeDrop.OWN_STATIC)
        peer = self._peers.with_key(received.static)
        if peer is None:
            self._strangers.keep(received.static, received.timestamp, waiting, now)
            raise AdmissionRefused(HandshakeDrop.UNKNOWN_STATIC)
        # §5.1: a timestamp not greater than the last one is a replay.
        if received.timestamp <= peer.greatest.get(received.static, b""):
            peer.failed(HandshakeFailure.REPLAYED)
            raise AdmissionRefused(HandshakeDrop.REPLAYED_TIMESTAMP)
        if now < peer.initiation_accepted + 1 / INITIATIONS_PER_SECOND:
            raise AdmissionRefused(HandshakeDrop.FLOOD)
        if message.suite not in self._suites or message.suite not in peer.settings.suites:
            peer.failed(HandshakeFailure.SUITE_REFUSED)
            raise AdmissionRefused(HandshakeDrop.SUITE_REFUSED)
        try:
            body, keys = received.respond(peer.settings.preshared_key, PrivateKey.generate(self._random))
        except MalformedMessage:
            peer.failed(HandshakeFailure.UNUSABLE_KEY)
            raise AdmissionRefused(HandshakeDrop.UNUSABLE_KEY) from None
        peer.greatest[received.static] = received.timestamp
        peer.initiation_accepted = now
        peer.rx_bytes += len(datagram.data)
        peer.happened(HandshakeEvent.INITIATION_ACCEPTED)
        peer.timers.handshake_answered(now)
        self._heard_from(peer, datagram)
        index = self._indices.allocate(peer.id)
        keypair = NewKeypair(message.suite, Role.RESPONDER, index, message.sender, keys.send, keys.receive, birth=now)
        self._install(peer, keypair, received.static)
        peer.answered_with = peer.stamper(received.static)
        response = peer.answered_with.stamp(messages.Response(index, message.sender, body).pack(), now)
        # To where the initiation came from and from where it was sent to, which with roaming off may not be where
        # we send data.
        self._send(peer, response, datagram.endpoint, datagram.source)
        return peer

    def _on_response(
        self, message: messages.Response, own: OwnKey, datagram: Datagram, now: float, unix_ns: int
    ) -> Peer:
        entry = self._indices.find(message.receiver)
        peer = self._peers.get(entry.peer) if entry is not None and not entry.keypair else None
        if peer is None or (pending := peer.pending) is None or pending.index != message.receiver:
            raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE)
        try:
            after(peer.phase, HandshakeEvent.RESPONSE_ACCEPTED)
        except UnexpectedEvent:
            raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE) from None
        if own is not pending.own:
            raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC)
        try:
            keys = pending.initiation.finish(message.body, peer.settings.preshared_key)
        except MalformedMessage:
            peer.failed(HandshakeFailure.BAD_RESPONSE)
            raise AdmissionRefused(HandshakeDrop.NOT_AUTHENTIC) from None
        peer.pending = None
        peer.rx_bytes += len(datagram.data)
        peer.happened(HandshakeEvent.RESPONSE_ACCEPTED)
        peer.timers.response_received(now)
        peer.timers.handshake_completed()
        peer.last_handshake_ns = unix_ns
        peer.failure = None
        self._heard_from(peer, datagram)
        suite, index = pending.initiation.suite, pending.index
        keypair = NewKeypair(suite, Role.INITIATOR, index, message.sender, keys.send, keys.receive, birth=now)
        self._install(peer, keypair, pending.theirs)
        return peer

    def _on_cookie_reply(self, message: messages.CookieReply, datagram: Datagram, now: float) -> Peer:
        # Not authenticated as coming from the peer's address, so it must not move the endpoint (§6.6 sends nothing
        # at once either: the retransmission carries mac2).
        entry = self._indices.find(message.receiver)
        peer = self._peers.get(entry.peer) if entry is not None else None
        if peer is None or entry is None:
            raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
        ours = peer.answered_with if entry.keypair else peer.pending
        stamper = ours.stamper if isinstance(ours, Pending) else ours
        if stamper is None:
            raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
        try:
            stamper.receive_reply(datagram.data, now)
        except MalformedMessage:
            raise AdmissionRefused(HandshakeDrop.BAD_COOKIE) from None
        peer.failed(HandshakeFailure.COOKIE_DEMANDED)
        return peer

    def _suite_for(self, peer: Peer) -> Suite:
        """The initiator chooses from what the responder announced: AES where both ends have it."""
        common = self._suites & peer.settings.suites
        return Suite.AES256GCM if Suite.AES256GCM in common else Suite.CHACHA20POLY1305

    def _heard_from(self, peer: Peer, datagram: Datagram) -> None:
        if peer.where.heard_from(datagram.endpoint, datagram.source, peer.settings.roaming):
            self._dataplane.set_endpoint(peer.id, datagram.endpoint, datagram.source)

    def _install(self, peer: Peer, keypair: NewKeypair, theirs: PublicKey) -> None:
        peer.keyed_with = theirs
        self._indices.promote(keypair.local_index)
        peer.keypairs.add(keypair.local_index)
        peer.timers.session_derived(keypair.role, keypair.birth)
        self._dataplane.install_keypair(peer.id, keypair)

    def _send(self, peer: Peer, message: bytes, endpoint: Endpoint, source: Source | None) -> None:
        peer.tx_bytes += len(message)
        self._dataplane.send_datagram(message, endpoint, source)
