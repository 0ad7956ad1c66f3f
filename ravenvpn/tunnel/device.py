"""One WireGuard device with all its peers, without I/O: fed with data-plane events and instants by a driver.

    device.poll(now, unix_ns)                    whenever the data plane has events
    device.tick(now, unix_ns)                    after that, and at `deadline()`
    arm the one timer at device.deadline()       after any call

The device acts through the data plane it was given, and returns nothing but events for the driver. It reads no clock
and draws no random numbers: `now` is CLOCK_BOOTTIME in seconds, `unix_ns` the wall clock in nanoseconds, `random(n)`
returns n bytes. Handshakes cost a millisecond, so they are queued and worked off a few per call; while work waits,
`deadline()` lies in the past, or in the near future once others have used up their share of time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import (
    Datagram,
    DataPlane,
    Endpoint,
    Event,
    InnerPacket,
    KeypairRetired,
    PeerId,
    Timing,
)
from ravenvpn.token_bucket import TokenBucket
from ravenvpn.tunnel import handover
from ravenvpn.tunnel.admission.handshake_filter import AdmissionQueue, HandshakeDrop
from ravenvpn.tunnel.admission.load_monitor import handshake_budget
from ravenvpn.tunnel.admission.unknown_keys import UnknownKeys
from ravenvpn.tunnel.handshake.exchange import HandshakeExchange
from ravenvpn.tunnel.handshake.indices import IndexTable
from ravenvpn.tunnel.handshake.own_keys import OwnKeys
from ravenvpn.tunnel.handshake_worker import HandshakeWorker
from ravenvpn.tunnel.peer import WIREGUARD_ONLY, Peer, PeerSettings, PeerStatus, status_of
from ravenvpn.tunnel.peer_rules import PeerRules
from ravenvpn.tunnel.peer_schedule import PeerSchedule
from ravenvpn.tunnel.peer_table import PeerTable
from ravenvpn.tunnel.session_events import DeviceEvent, SessionLost, SessionUp
from ravenvpn.tunnel.timers import Timers

__all__ = ["Device", "DeviceEvent", "PeerSettings", "PeerStatus", "SessionLost", "SessionUp"]


class Device:
    """See the module's docstring. The interface is down until `set_up`.

    Peers are named by PeerSettings.name; an unknown name raises KeyError. Everything runs on one thread.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        random: Callable[[int], bytes],
        timing: Timing | None = None,
        suites: frozenset[Suite] = WIREGUARD_ONLY,
        budget: TokenBucket | None = None,
    ) -> None:
        """`suites` is what we offer and accept. `budget` limits the handshake work that others can cause; one token
        is one handshake."""
        self._dataplane = dataplane
        self._timing = timing or Timing()
        self._jitter = functools.partial(_draw_jitter, random, self._timing)
        self._own_keys = OwnKeys(random, self._timing)
        self._schedule = PeerSchedule()
        self._peers = PeerTable(self._schedule)
        self._indices = IndexTable(random)
        self._admission = AdmissionQueue(
            self._own_keys,
            self._indices.lookup,
            lambda reply, to: dataplane.send_datagram(reply, to.endpoint, to.source),
            dataplane.waiting_initiations,
        )
        self._unknown_keys = UnknownKeys(self._timing.rekey_timeout)
        self._exchange = HandshakeExchange(
            dataplane, self._own_keys, self._peers, self._indices, self._unknown_keys, random=random, suites=suites
        )
        self._rules = PeerRules(dataplane, self._exchange, self._schedule)
        self.worker = HandshakeWorker(
            self._admission,
            self._exchange,
            self._rules,
            self._peers,
            self._schedule,
            budget=budget or handshake_budget(),
        )
        self._sessions_made_with: PublicKey | None = None  # our key that the sessions in force were made with

    # Own keys and suites.

    @property
    def public_key(self) -> PublicKey | None:
        """Our current public key, None without a private key."""
        return self._own_keys.current.public if self._own_keys.current else None

    def set_private_key(self, key: PrivateKey | None, now: float) -> None:
        """Set our static key; None removes it. Sessions of another key stop sending, as with `wg set private-key`.

        They go on if `key` was the next key, which the peers know already. Pending handshakes start again.
        """
        own = self._own_keys.with_checker(key)
        if own is self._own_keys.current:
            return
        known_to_peers = own is not None and own is self._own_keys.next
        if known_to_peers:
            self._own_keys.next = None
        self._own_keys.current = own
        public = own.public if own is not None else None
        expire = self._sessions_made_with not in (None, public) and not known_to_peers
        self._sessions_made_with = public or self._sessions_made_with
        self._admission.clear()
        self._unknown_keys.clear()
        for one in self._peers:
            with self._peers.change(one.id) as peer:
                self._rules.own_key_changed(peer, now, expire=expire)

    def set_next_private_key(self, key: PrivateKey | None) -> None:
        """Answer initiations to this key too: the one to come, or, after the change, the previous one.

        For key rotation; no caller in the agent yet.
        """
        own = self._own_keys.with_checker(key)
        self._own_keys.next = own if own is not self._own_keys.current else None

    def set_suites(self, suites: frozenset[Suite]) -> None:
        """Set the suites that we offer and accept in new handshakes. Sessions in force and an initiation that waits
        for its response keep their suite."""
        self._exchange.suites = suites

    # Peers.

    def set_peer(self, settings: PeerSettings, now: float) -> PeerId:
        """Add the peer of that name or change its settings; the same settings again change nothing.

        ValueError if another peer owns one of its public keys. A peer with our own key is kept, but gets no messages.
        """
        known = self._peers.lookup_name(settings.name)
        if known is None:
            added = Peer(self._peers.new_id(), settings, self._timing, Timers(self._timing, self._jitter))
            self._peers.add(added)
            self._dataplane.add_peer(added.id)
            if not settings.roaming:
                self._dataplane.set_roaming(added.id, False)
            with self._peers.change(added.id) as peer:
                self._rules.peer_added(peer, now)
        elif known.settings != settings:
            before = known.settings
            with self._peers.change(known.id) as peer:
                self._peers.replace_settings(peer, settings)
                if before.roaming != settings.roaming:
                    self._dataplane.set_roaming(peer.id, settings.roaming)
                for key in set(before.public_keys) - set(settings.public_keys):
                    self._own_keys.clear_shared_secrets(key)
                self._rules.settings_changed(peer, before, now)
        for queued in self._unknown_keys.pop(settings.public_keys, now):
            self._admission.readmit(queued)
        return self._peers.id_of(settings.name)

    def set_endpoint(self, name: str, endpoint: Endpoint) -> None:
        """Move the peer to this endpoint by configuration, as `wg set … endpoint`, wherever it was seen before.

        ValueError, and no change, if the endpoint is not numeric.
        """
        with self._peers.change(self._peers.id_of(name)) as peer:
            self._dataplane.set_endpoint(peer.id, endpoint)
            peer.endpoints.set_current(endpoint)

    def remove_peer(self, name: str) -> None:
        """Remove the peer with its keys, sessions and prefixes."""
        with self._peers.change(self._peers.id_of(name)) as peer:
            self._rules.discard_handshakes(peer)
        self._peers.remove(peer.id)
        for key in peer.settings.public_keys:
            self._own_keys.clear_shared_secrets(key)
        self._dataplane.remove_peer(peer.id)

    def initiate(self, name: str, now: float) -> None:
        """Start a handshake with the peer as soon as the limit of one per REKEY_TIMEOUT allows."""
        with self._peers.change(self._peers.id_of(name)) as peer:
            self._rules.request_handshake(peer, now)

    # Up and down.

    def set_up(self, now: float) -> None:
        """Start to send and to accept handshakes. Peers with a persistent keepalive get one at once, warm ones a
        handshake."""
        if not self._schedule.up:
            self._schedule.set_up(True)
            for one in self._peers:
                with self._peers.change(one.id) as peer:
                    self._rules.interface_up(peer, now)

    def set_down(self) -> None:
        """Stop sending. Keys and handshakes are wiped; settings and the newest timestamps are kept."""
        self._schedule.set_up(False)
        self._admission.clear()
        self._unknown_keys.clear()
        for one in self._peers:
            with self._peers.change(one.id) as peer:
                self._rules.interface_down(peer)

    # Events and time.

    def poll(self, now: float, unix_ns: int) -> None:
        """Process the data plane's events, and as many initiations without mac2 as there is room for."""
        self.receive(self._dataplane.drain_events(self._admission.room), now, unix_ns)

    def receive(self, events: Sequence[Event], now: float, unix_ns: int) -> None:
        """Process these events. Never raises for the content of a datagram; each costs at most a hash."""
        accepting = self._schedule.up and self._own_keys.current is not None
        for event in events:
            if isinstance(event, Datagram):
                if accepting:
                    self._admission.admit(event, now)
                else:
                    self._admission.count_drop(HandshakeDrop.NOT_LISTENING)
            elif isinstance(event, InnerPacket):
                self._schedule.add_inner_packet(event)
            else:
                if isinstance(event, KeypairRetired):
                    self._indices.release(event.local_index, event.peer)
                try:
                    change = self._peers.change(event.peer)
                except KeyError:  # the peer was removed after the event was queued
                    continue
                with change as peer:
                    self._rules.on_event(peer, event, now, unix_ns)

    def tick(self, now: float, unix_ns: int) -> None:
        """Act on the deadlines that have come, then do a portion of handshake work."""
        due = self._schedule.next_due()
        if due is not None and due <= now:
            # The data plane reports unasked only what can arm a timer, so get the current facts before a timer fires.
            self.poll(now, unix_ns)
            for peer_id in self._schedule.pop_due(now):
                with self._peers.change(peer_id) as peer:
                    self._rules.on_timers(peer, now)
            # And again afterwards: after a keepalive was sent, the next packet is news to the data plane again.
            self.poll(now, unix_ns)
        self.worker.work(now, unix_ns)

    def deadline(self) -> float | None:
        """Return when to call `tick` at the latest: in the past while work may be done, None if nothing is due."""
        work = self.worker.due_at(self._dataplane.waiting_initiations())
        due = self._schedule.next_due()
        if work is None or due is None:
            return due if work is None else work
        return min(due, work)

    # Observation.

    def peers(self, now: float) -> list[PeerStatus]:
        """Return the status of all peers, oldest first."""
        counters = self._dataplane.counters().peers
        return [status_of(peer, counters.get(peer.id), self._timing, now) for peer in self._peers]

    def drops(self) -> Mapping[HandshakeDrop, int]:
        """Return how many handshake messages were dropped, by reason."""
        return dict(self._admission.drops)

    def drain_events(self) -> list[DeviceEvent]:
        """Return and remove the session events and inner packets to the probe port since the last call."""
        return self._schedule.drain_events()

    # For session hand-over on restart; no caller in the agent yet.

    def freeze(self, now: float) -> bytes:
        """Return the state that must survive a restart beside the data plane's blob. It holds preshared keys, so it
        is as secret. Pending handshakes and cookies are not part of it; they are made anew."""
        return handover.pack(self._peers, self.public_key, self._schedule.up, now)

    def thaw(self, blob: bytes, now: float) -> None:
        """Take over the state of a frozen device, in a new device on a thawed data plane, before `set_private_key`.

        ValueError, and no change, if the blob is not one of ours, of another version, or from the future of this
        clock, or if this device has peers.
        """
        if len(self._peers):
            raise ValueError("only a device without peers can take over")
        image = handover.parse(blob, now)
        self._schedule.set_up(image.up)
        self._sessions_made_with = PublicKey(image.public_key) if image.public_key else None
        for restored in image.peers(self._timing, self._jitter):
            self._peers.add(restored)
            for index in restored.keypairs:
                self._indices.adopt(index, restored.id)


def _draw_jitter(random: Callable[[int], bytes], timing: Timing) -> float:
    """Return 0 to `timing.max_jitter` seconds."""
    return int.from_bytes(random(2), "little") / 65536 * timing.max_jitter
