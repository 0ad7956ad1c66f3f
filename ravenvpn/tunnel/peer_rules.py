"""What a device does about one peer when something happened or a deadline came: the rules of the whitepaper's §6.

`Timers` decides when, `HandshakeExchange` knows how, the data plane acts; here they meet. Whoever changes a peer here
or in `HandshakeExchange` ends with `settle`, which reports what changed for a person and expects the peer's next
deadline.
"""

from __future__ import annotations

from collections import deque

from ravenvpn.dataplane.contract import (
    DataPlane,
    EndpointMoved,
    HandshakeNeeded,
    KeypairRetired,
    KeyPromoted,
    PeerId,
    Traffic,
)
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.handshake.exchange import HandshakeExchange
from ravenvpn.tunnel.handshake.states import HandshakeEvent, UnexpectedEvent
from ravenvpn.tunnel.peer import HandshakeFailure, Peer, PeerSettings
from ravenvpn.tunnel.session_events import MAX_REPORTS, Report, SessionLost, SessionUp
from ravenvpn.tunnel.timers import Timer

PeerEvent = HandshakeNeeded | KeyPromoted | KeypairRetired | EndpointMoved | Traffic


class PeerRules:
    """`up` says whether the interface is; while it is down nothing is wanted and nothing expected."""

    def __init__(self, dataplane: DataPlane, handshakes: HandshakeExchange) -> None:
        self._dataplane = dataplane
        self._handshakes = handshakes
        self.deadlines = Deadlines()
        self.to_call: dict[PeerId, None] = {}  # peers that want a handshake now, in order: a dict as an ordered set
        self.reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self.up = False

    def settle(self, peer: Peer) -> None:
        if peer.alive != peer.reported_alive:
            peer.reported_alive = peer.alive
            name = peer.settings.name
            self.reports.append(
                SessionUp(name, peer.where.confirmed) if peer.alive else SessionLost(name, peer.failure)
            )
        due = peer.timers.due()
        if due is not None and self.up:
            self.deadlines.expect(peer.id, due)

    # Configuration.

    def configured(self, peer: Peer, before: PeerSettings | None, now: float) -> None:
        """The peer is new (`before` is None) or has new settings."""
        settings = peer.settings
        moved = peer.where.configure(settings.endpoints)
        if moved:
            self._dataplane.set_endpoint(peer.id, peer.where.current())
        peer.timers.configured(settings.persistent_keepalive, settings.warm, now)
        if before is None:
            self.interface_up(peer, now)
        else:
            self._keys_changed(peer, before, now)
            if self.up and settings.persistent_keepalive and not before.persistent_keepalive:
                self._dataplane.send_keepalive(peer.id)
            if (settings.warm and not peer.alive) or (moved and peer.failure is HandshakeFailure.NO_ENDPOINT):
                self.want_handshake(peer, now)
        self.settle(peer)

    def _keys_changed(self, peer: Peer, before: PeerSettings, now: float) -> None:
        """A key that is no longer the peer's ends what was made with it; a new first key is called from now on."""
        keys = peer.settings.public_keys
        for key in set(before.public_keys) - set(keys):
            peer.forget_key(key)
            if key == peer.keyed_with:
                self.wipe(peer)
                self.want_handshake(peer, now)
        if before.public_keys[0] != keys[0] and peer.phase.pending:
            self._handshakes.drop_pending(peer)
            peer.happened(HandshakeEvent.GIVEN_UP)
            peer.timers.handshake_completed()
            self.want_handshake(peer, now)

    def interface_up(self, peer: Peer, now: float) -> None:
        """§6.5's practice: a persistent keepalive opens the way at once, without waiting for its interval."""
        if self.up:
            if peer.settings.persistent_keepalive:
                self._dataplane.send_keepalive(peer.id)
            if peer.settings.warm:
                self.want_handshake(peer, now)
            self.settle(peer)

    def interface_down(self, peer: Peer) -> None:
        self.wipe(peer)
        self._dataplane.purge_staged(peer.id)
        peer.timers.stopped()
        self.settle(peer)
        self.forget(peer)

    def identity_changed(self, peer: Peer, now: float, expire: bool) -> None:
        """Our key is another. `expire`: nothing more is sent under sessions of the old one."""
        pending = peer.phase.pending
        self._handshakes.drop_pending(peer)
        if pending:
            peer.happened(HandshakeEvent.GIVEN_UP)
            peer.timers.handshake_completed()
        peer.timers.own_key_changed()
        if expire:
            self._dataplane.expire_keypairs(peer.id)
        keyless = peer.failure is HandshakeFailure.NO_PRIVATE_KEY
        if pending or keyless or (peer.settings.warm and (expire or not peer.alive)):
            self.want_handshake(peer, now)
        self.settle(peer)

    def forget(self, peer: Peer) -> None:
        self.deadlines.forget(peer.id)
        self.to_call.pop(peer.id, None)

    # Handshakes.

    def want_handshake(self, peer: Peer, now: float) -> None:
        """Call the peer with the next work, or as soon as one initiation per REKEY_TIMEOUT allows it (§6.2)."""
        if not self.up:
            return
        if peer.timers.may_initiate(now):
            self.to_call[peer.id] = None
        else:
            peer.timers.handshake_wanted_early()

    def call(self, peer: Peer, now: float, unix_ns: int) -> None:
        if peer.timers.may_initiate(now):
            failure = self._handshakes.initiate(peer, now, unix_ns)
            if failure is not None:
                peer.failed(failure)
                if peer.phase.pending:
                    self._handshakes.give_up(peer, now)
        else:
            peer.timers.handshake_wanted_early()
        self.settle(peer)

    def wipe(self, peer: Peer) -> None:
        """§6.3: handshakes and keys go; the data plane reports each index as it becomes free."""
        self._handshakes.drop_pending(peer)
        peer.happened(HandshakeEvent.WIPED)
        peer.timers.keys_wiped()
        self._dataplane.drop_keypairs(peer.id)

    # What the data plane reports.

    def on_event(self, peer: Peer, event: PeerEvent, now: float, unix_ns: int) -> None:
        match event:
            case HandshakeNeeded():
                if peer.phase.pending:
                    peer.timers.attempt_prolonged(now)
                else:
                    self.want_handshake(peer, now)
            case KeyPromoted():
                self._on_key_confirmed(peer, unix_ns)
            case KeypairRetired(local_index=index):
                peer.keypairs.discard(index)
                if not peer.keypairs:
                    peer.happened(HandshakeEvent.KEYS_RETIRED)
            case EndpointMoved(endpoint=endpoint, source=source):
                roaming = peer.settings.roaming
                if peer.where.heard_from(endpoint, source, roaming) and not roaming:
                    # The body only told; a candidate of ours may be followed.
                    self._dataplane.set_endpoint(peer.id, endpoint, source)
            case Traffic():
                peer.timers.traffic(event)
        self.settle(peer)

    def _on_key_confirmed(self, peer: Peer, unix_ns: int) -> None:
        try:
            peer.happened(HandshakeEvent.KEY_CONFIRMED)
        except UnexpectedEvent:
            return  # confirmed keys were wiped before the report reached us
        self._handshakes.drop_pending(peer)
        peer.timers.handshake_completed()
        peer.last_handshake_ns = unix_ns
        peer.failure = None

    # What is due.

    def on_expired(self, peer: Peer, timer: Timer, now: float) -> None:
        match timer:
            case Timer.RETRANSMIT_HANDSHAKE:
                self._retry(peer, now)
            case Timer.NEW_HANDSHAKE:
                peer.where.source = None
                self._dataplane.clear_source(peer.id)
                self.want_handshake(peer, now)
            case Timer.DEFERRED_HANDSHAKE | Timer.RENEW_SESSION:
                self.want_handshake(peer, now)
            case Timer.SEND_KEEPALIVE | Timer.PERSISTENT_KEEPALIVE:
                self._dataplane.send_keepalive(peer.id)
            case Timer.ZERO_KEY_MATERIAL:
                calling = peer.phase.pending or peer.settings.warm
                self.wipe(peer)
                if calling:
                    self.want_handshake(peer, now)

    def _retry(self, peer: Peer, now: float) -> None:
        """§6.4: REKEY_TIMEOUT passed without a response. The address that did not work may be theirs or ours."""
        if not peer.phase.pending:
            return
        if peer.timers.given_up(now):
            self._handshakes.give_up(peer, now)
            if not peer.settings.warm:
                return
        peer.where.retry()
        self._dataplane.clear_source(peer.id)
        if not peer.keypairs:
            # Nothing has been heard from anywhere yet: data goes where the handshake goes.
            self._dataplane.set_endpoint(peer.id, peer.where.current())
        self.to_call[peer.id] = None
