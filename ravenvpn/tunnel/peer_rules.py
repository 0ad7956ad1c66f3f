"""Per-peer protocol rules: what to do about one peer after an event or at a deadline (whitepaper §6).

`Timers` decides when, `HandshakeExchange` makes the messages, the data plane holds keys and sends. Every function
gets a `Peer` that the caller borrowed with `PeerTable.change`; that commits deadlines and session events afterwards.
"""

from __future__ import annotations

from ravenvpn.dataplane.contract import (
    DataPlane,
    EndpointMoved,
    HandshakeNeeded,
    KeypairRetired,
    KeyPromoted,
    Traffic,
)
from ravenvpn.tunnel.handshake.exchange import HandshakeExchange
from ravenvpn.tunnel.handshake.states import HandshakeEvent, UnexpectedEvent
from ravenvpn.tunnel.peer import HandshakeFailure, Peer, PeerSettings
from ravenvpn.tunnel.peer_schedule import PeerSchedule
from ravenvpn.tunnel.timers import Timer

PeerEvent = HandshakeNeeded | KeyPromoted | KeypairRetired | EndpointMoved | Traffic


class PeerRules:
    """Stateless: everything that lasts is in the peer, the schedule or the data plane."""

    def __init__(self, dataplane: DataPlane, exchange: HandshakeExchange, schedule: PeerSchedule) -> None:
        self._dataplane = dataplane
        self._exchange = exchange
        self._schedule = schedule

    # Configuration.

    def peer_added(self, peer: Peer, now: float) -> None:
        """Start a new peer; its settings are in place."""
        self._apply_endpoints(peer, now)
        self.interface_up(peer, now)

    def settings_changed(self, peer: Peer, before: PeerSettings, now: float) -> None:
        """Apply new settings, which are in place already; `before` are those they replaced.

        Another preshared key or other suites take effect with the next handshake: the session in force stays.
        """
        settings = peer.settings
        moved = self._apply_endpoints(peer, now)
        self._apply_keys(peer, before, now)
        if self._schedule.up and settings.persistent_keepalive and not before.persistent_keepalive:
            self._dataplane.send_keepalive(peer.id)
        if (settings.warm and not peer.has_session) or (moved and peer.failure is HandshakeFailure.NO_ENDPOINT):
            self.request_handshake(peer, now)

    def _apply_endpoints(self, peer: Peer, now: float) -> bool:
        """Hand candidates and keepalive interval to the peer's state; return whether the endpoint was reset."""
        settings = peer.settings
        moved = peer.endpoints.configure(settings.endpoints)
        if moved:
            self._dataplane.set_endpoint(peer.id, peer.endpoints.current())
        peer.timers.configured(settings.persistent_keepalive, settings.warm, now)
        return moved

    def _apply_keys(self, peer: Peer, before: PeerSettings, now: float) -> None:
        """End what was made with a key that is no longer the peer's. Initiate again if the first key is another."""
        keys = peer.settings.public_keys
        for key in set(before.public_keys) - set(keys):
            peer.remove_key(key)
            if key == peer.session_key:
                self._wipe(peer)
                self.request_handshake(peer, now)
        if before.public_keys[0] != keys[0] and peer.state.pending:
            self._abandon_initiation(peer)
            self.request_handshake(peer, now)

    def interface_up(self, peer: Peer, now: float) -> None:
        """Send a first persistent keepalive at once, which opens the path (practice of §6.5), and warm up a
        session."""
        if self._schedule.up:
            if peer.settings.persistent_keepalive:
                self._dataplane.send_keepalive(peer.id)
            if peer.settings.warm:
                self.request_handshake(peer, now)

    def interface_down(self, peer: Peer) -> None:
        """Wipe keys and handshakes, drop staged packets and disarm all timers."""
        self._wipe(peer)
        self._dataplane.purge_staged(peer.id)
        peer.timers.stopped()

    def own_key_changed(self, peer: Peer, now: float, expire: bool) -> None:
        """Handle a change of our static key. `expire`: send nothing more under sessions of the old one."""
        pending = peer.state.pending
        if pending:
            self._abandon_initiation(peer)
        peer.timers.own_key_changed()
        if expire:
            self._dataplane.expire_keypairs(peer.id)
        keyless = peer.failure is HandshakeFailure.NO_PRIVATE_KEY
        if pending or keyless or (peer.settings.warm and (expire or not peer.has_session)):
            self.request_handshake(peer, now)

    # Handshakes.

    def request_handshake(self, peer: Peer, now: float) -> None:
        """Queue an initiation, or defer it until the limit of one per REKEY_TIMEOUT allows it (§6.2)."""
        if not self._schedule.up:
            return
        if peer.timers.may_initiate(now):
            self._schedule.queue_initiation(peer.id)
        else:
            peer.timers.handshake_deferred()

    def send_initiation(self, peer: Peer, now: float, unix_ns: int) -> None:
        """Send a queued initiation, or defer it if a response of ours was sent meanwhile."""
        if not peer.timers.may_initiate(now):
            peer.timers.handshake_deferred()
            return
        failure = self._exchange.initiate(peer, now, unix_ns)
        if failure is not None:
            peer.record_failure(failure)
            if peer.state.pending:
                self._exchange.give_up(peer, now)

    def discard_handshakes(self, peer: Peer) -> None:
        """Free what a pending initiation holds, before the peer is removed."""
        self._exchange.drop_pending(peer)

    def _abandon_initiation(self, peer: Peer) -> None:
        """End a pending initiation as if it had been completed: whether to initiate again is the caller's
        decision."""
        self._exchange.drop_pending(peer)
        peer.transition(HandshakeEvent.GIVEN_UP)
        peer.timers.handshake_completed()

    def _wipe(self, peer: Peer) -> None:
        """Wipe handshakes and keys (§6.3). The data plane reports each index as it becomes free."""
        self._exchange.drop_pending(peer)
        peer.transition(HandshakeEvent.WIPED)
        peer.timers.keys_wiped()
        self._dataplane.drop_keypairs(peer.id)

    # Events of the data plane.

    def on_event(self, peer: Peer, event: PeerEvent, now: float, unix_ns: int) -> None:
        """Apply an event that the data plane reported."""
        match event:
            case HandshakeNeeded():
                if peer.state.pending:
                    peer.timers.attempt_prolonged(now)
                else:
                    self.request_handshake(peer, now)
            case KeyPromoted():
                self._on_key_confirmed(peer, unix_ns)
            case KeypairRetired(local_index=index):
                # The index was released by the device already.
                peer.keypairs.discard(index)
                if not peer.keypairs:
                    peer.transition(HandshakeEvent.KEYS_RETIRED)
            case EndpointMoved(endpoint=endpoint, source=source):
                roaming = peer.settings.roaming
                if peer.endpoints.observe(endpoint, source, roaming) and not roaming:
                    # With roaming off the data plane only reports; a configured candidate is followed.
                    self._dataplane.set_endpoint(peer.id, endpoint, source)
            case Traffic():
                peer.timers.traffic_reported(event)

    def _on_key_confirmed(self, peer: Peer, unix_ns: int) -> None:
        """Complete the handshake as responder: the first packet under the new keys arrived (§5.4.4)."""
        try:
            peer.transition(HandshakeEvent.KEY_CONFIRMED)
        except UnexpectedEvent:
            return  # the confirmed keys were wiped before the event was drained
        self._exchange.drop_pending(peer)
        peer.timers.handshake_completed()
        peer.last_handshake_ns = unix_ns
        peer.failure = None

    # Deadlines.

    def on_timers(self, peer: Peer, now: float) -> None:
        """Act on every timer of the peer that has expired."""
        for timer in peer.timers.pop_expired(now):
            self._on_timer(peer, timer, now)

    def _on_timer(self, peer: Peer, timer: Timer, now: float) -> None:
        """Act on one expired timer; `Timer` names the section of the whitepaper for each."""
        match timer:
            case Timer.RETRANSMIT_HANDSHAKE:
                self._retransmit(peer, now)
            case Timer.NEW_HANDSHAKE:
                # The session may be dead because our source address is: let the kernel choose it again.
                peer.endpoints.source = None
                self._dataplane.clear_source(peer.id)
                self.request_handshake(peer, now)
            case Timer.DEFERRED_HANDSHAKE | Timer.RENEW_SESSION:
                self.request_handshake(peer, now)
            case Timer.SEND_KEEPALIVE | Timer.PERSISTENT_KEEPALIVE:
                self._dataplane.send_keepalive(peer.id)
            case Timer.ZERO_KEY_MATERIAL:
                # A handshake that is under way goes too (§6.3), and starts again with fresh ephemeral keys.
                initiate_again = peer.state.pending or peer.settings.warm
                self._wipe(peer)
                if initiate_again:
                    self.request_handshake(peer, now)

    def _retransmit(self, peer: Peer, now: float) -> None:
        """Initiate again after REKEY_TIMEOUT without a response (§6.4), to the peer's next endpoint and from a source
        address that the kernel chooses: either may be the one that does not work."""
        if not peer.state.pending:
            return
        if peer.timers.attempt_time_is_over(now):
            self._exchange.give_up(peer, now)
            if not peer.settings.warm:
                return
        peer.endpoints.try_next()
        self._dataplane.clear_source(peer.id)
        if not peer.keypairs:
            # No packet of the peer has arrived from anywhere yet: data goes where the handshake goes.
            self._dataplane.set_endpoint(peer.id, peer.endpoints.current())
        self._schedule.queue_initiation(peer.id)
