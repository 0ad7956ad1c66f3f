"""One end of all tunnels, without I/O: what a driver feeds with events and instants.

    device.hear(now, unix_ns)                whenever the data plane has events
    device.tick(now, unix_ns)                after that, and at `deadline()`
    arm the one timer at device.deadline()   after any call

The device speaks through the data plane it was given and returns nothing but reports. It reads no clock and rolls no
dice: `now` is CLOCK_BOOTTIME in seconds, `unix_ns` the wall clock in nanoseconds, `random(n)` gives n bytes.
Handshakes cost a millisecond, so they are queued and worked off within a budget per call; while work waits,
`deadline()` lies in the past, or, once strangers have used up their share of time, in the near future.
"""

from __future__ import annotations

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
from ravenvpn.tunnel.admission.load import REFUSAL, handshake_budget
from ravenvpn.tunnel.admission.queue import AdmissionQueue, AdmissionRefused, HandshakeDrop
from ravenvpn.tunnel.admission.unknown_keys import UnknownKeys
from ravenvpn.tunnel.handshake.exchange import HandshakeExchange
from ravenvpn.tunnel.handshake.indices import IndexTable
from ravenvpn.tunnel.handshake.own_keys import OwnKeys
from ravenvpn.tunnel.peer import WIREGUARD_ONLY, Peer, PeerSettings, PeerStatus, status_of
from ravenvpn.tunnel.peer_rules import PeerRules
from ravenvpn.tunnel.peer_table import PeerTable
from ravenvpn.tunnel.session_events import Report, SessionLost, SessionUp
from ravenvpn.tunnel.timers import Timers

__all__ = ["WORK_BUDGET", "Device", "PeerSettings", "PeerStatus", "Report", "SessionLost", "SessionUp"]

# Handshake messages and initiations per call: a millisecond of work or two, so that packets, timers and whoever asks
# for our health get their turn. A busy machine may make five of it, and a request takes some turns of the loop.
WORK_BUDGET = 2

DUE_NOW = 0.0  # an instant that has passed on any clock


class Device:
    """See the module's docstring. Down until `set_up`. Names are PeerSettings.name; unknown ones raise KeyError."""

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        random: Callable[[int], bytes],
        timing: Timing | None = None,
        suites: frozenset[Suite] = WIREGUARD_ONLY,
        budget: TokenBucket | None = None,
    ) -> None:
        """`budget` limits the handshake work that others may cause; one token is one handshake."""
        self._dataplane = dataplane
        self._random = random
        self._timing = timing or Timing()
        self._identity = OwnKeys(random, self._timing)
        self._peers = PeerTable()
        self._indices = IndexTable(random)
        self._gate = AdmissionQueue(
            self._identity, self._indices.find, self._send_cookie_reply, dataplane.waiting_initiations
        )
        self._budget = budget or handshake_budget()
        self._paced_until = DUE_NOW
        self._strangers = UnknownKeys(self._timing.rekey_timeout)
        self._handshakes = HandshakeExchange(
            dataplane, self._identity, self._peers, self._indices, self._strangers, random=random, suites=suites
        )
        self._sessions = PeerRules(dataplane, self._handshakes)
        self._sessions_of: PublicKey | None = None  # the key of ours that sessions in force were made with

    # Who we are.

    @property
    def public_key(self) -> PublicKey | None:
        return self._identity.current.public if self._identity.current else None

    def set_private_key(self, key: PrivateKey | None, now: float) -> None:
        """Be this key from now on. Sessions of another key stop sending, as with `wg set private-key`; not so when
        `key` was the next one, which peers already know. Handshakes in progress start again."""
        own = self._identity.own(key)
        if own is self._identity.current:
            return
        known_to_peers = own is not None and own is self._identity.next
        if known_to_peers:
            self._identity.next = None
        self._identity.current = own
        public = own.public if own is not None else None
        expire = self._sessions_of not in (None, public) and not known_to_peers
        self._sessions_of = public or self._sessions_of
        self._gate.clear()
        self._strangers.clear()
        for peer in self._peers:
            self._sessions.identity_changed(peer, now, expire=expire)

    def set_next_private_key(self, key: PrivateKey | None) -> None:
        """Answer initiations to this key too: the one to come, or, after the change, the one that goes."""
        own = self._identity.own(key)
        self._identity.next = own if own is not self._identity.current else None

    # Who the others are.

    def set_peer(self, settings: PeerSettings, now: float) -> PeerId:
        """Make or change the peer of that name; the same settings again change nothing.

        ValueError if another peer has one of its public keys. A peer with our own key is kept, but never spoken to.
        """
        peer = self._peers.named(settings.name)
        if peer is None:
            peer = Peer(self._peers.next_id(), settings, self._timing, Timers(self._timing, self._jitter))
            self._peers.add(peer)
            self._dataplane.add_peer(peer.id)
            if not settings.roaming:
                self._dataplane.set_roaming(peer.id, False)
            self._sessions.configured(peer, None, now)
        elif peer.settings != settings:
            before = peer.settings
            self._peers.change(peer, settings)
            if before.roaming != settings.roaming:
                self._dataplane.set_roaming(peer.id, settings.roaming)
            for key in set(before.public_keys) - set(settings.public_keys):
                self._identity.forget(key)
            self._sessions.configured(peer, before, now)
        for call in self._strangers.take(settings.public_keys, now):
            self._gate.readmit(call)
        return peer.id

    def set_endpoint(self, name: str, endpoint: Endpoint) -> None:
        """An operator's word, as `wg set … endpoint`: the peer is there now, wherever it was heard from before.

        ValueError, and no change, if it is no numeric endpoint.
        """
        peer = self._named(name)
        self._dataplane.set_endpoint(peer.id, endpoint)
        peer.where.move_to(endpoint)

    def remove_peer(self, name: str, now: float) -> None:
        peer = self._named(name)
        self._handshakes.drop_pending(peer)
        self._peers.remove(peer)
        for key in peer.settings.public_keys:
            self._identity.forget(key)
        self._sessions.forget(peer)
        self._dataplane.remove_peer(peer.id)

    # Up and down.

    def set_up(self, now: float) -> None:
        """Begin to speak and to listen. Peers with a persistent keepalive get one at once, warm ones a handshake."""
        if not self._sessions.up:
            self._sessions.up = True
            for peer in self._peers:
                self._sessions.interface_up(peer, now)

    def set_down(self, now: float) -> None:
        """Fall silent: keys and handshakes are wiped, settings and the newest timestamps kept."""
        self._sessions.up = False
        self._gate.clear()
        self._strangers.clear()
        for peer in self._peers:
            self._sessions.interface_down(peer)

    # What happens.

    def hear(self, now: float, unix_ns: int) -> None:
        """Take in what the data plane has to report, and of initiations that prove nothing what there is room for."""
        self.receive(self._dataplane.drain_events(self._gate.room), now, unix_ns)

    def receive(self, events: Sequence[Event], now: float, unix_ns: int) -> None:
        """Take in these events. Never raises for what a datagram holds; costs a hash for each."""
        up = self._sessions.up
        for event in events:
            if isinstance(event, Datagram):
                if up and self._identity.current is not None:
                    self._gate.admit(event, now)
                else:
                    self._gate.drop(HandshakeDrop.NOT_LISTENING)
            elif isinstance(event, InnerPacket):
                self._sessions.reports.append(event)
            else:
                if isinstance(event, KeypairRetired):
                    self._indices.release(event.local_index, event.peer)
                peer = self._peers.get(event.peer)
                if peer is not None:
                    self._sessions.on_event(peer, event, now, unix_ns)

    def tick(self, now: float, unix_ns: int) -> None:
        """Do what is due, then a budget of handshake work."""
        deadlines = self._sessions.deadlines
        due = deadlines.next()
        if due is not None and due <= now:
            # A body reports only what can arm a timer, so before one strikes: the facts as they are now.
            self.hear(now, unix_ns)
            for peer_id in deadlines.take_due(now):
                peer = self._peers.get(peer_id)
                if peer is not None:
                    for timer in peer.timers.expired(now):
                        self._sessions.on_expired(peer, timer, now)
                    self._sessions.settle(peer)
            # And after it: with a keepalive that left, what comes next is news to a body again.
            self.hear(now, unix_ns)
        self.work(now, unix_ns)

    def work(self, now: float, unix_ns: int, budget: int = WORK_BUDGET) -> bool:
        """Do up to `budget` handshakes' worth of messages and initiations; says whether more wait.

        Up to half of it goes to calling: a flood of incoming messages cannot keep us from it, nor the reverse. What
        strangers can cause gets a share of time (`load.handshake_budget`), whatever the budget; answers to our own
        calls do not wait for that unless we are under load.
        """
        calling = self._sessions.to_call
        calls = min(len(calling), max(1, budget // 2))
        for _ in range(calls):
            peer_id = next(iter(calling))
            del calling[peer_id]
            peer = self._peers.get(peer_id)
            if peer is not None:
                self._sessions.call(peer, now, unix_ns)
        loaded = self._gate.loaded(now)
        left = float(max(1, budget - calls))
        while len(self._gate) and left >= REFUSAL:
            paced = loaded or not self._gate.proven
            if paced and self._budget.tokens(now) < REFUSAL:
                break
            cost = self._handle_one(now, unix_ns)
            left -= cost
            if paced:
                self._budget.spend(cost)
        self._paced_until = self._budget.ready_at() if loaded or not self._gate.proven else DUE_NOW
        return bool(calling) or len(self._gate) > 0

    def deadline(self) -> float | None:
        """When to call `tick` at the latest; in the past while work may be done; None if nothing is expected."""
        if self._sessions.to_call:
            return DUE_NOW
        due = self._sessions.deadlines.next()
        if len(self._gate):
            return self._paced_until if due is None else min(due, self._paced_until)
        # What still waits before the gate is heard in the next turn.
        return DUE_NOW if self._dataplane.waiting_initiations() else due

    def initiate(self, name: str, now: float) -> None:
        """Begin a handshake with the peer as soon as the limit of one per REKEY_TIMEOUT lets us."""
        peer = self._named(name)
        if self._sessions.up:
            self._sessions.want_handshake(peer, now)
            self._sessions.settle(peer)

    # Looking.

    def peers(self, now: float) -> list[PeerStatus]:
        counters = self._dataplane.counters().peers
        return [status_of(peer, counters.get(peer.id), self._timing, now) for peer in self._peers]

    def peer(self, name: str, now: float) -> PeerStatus:
        peer = self._named(name)
        return status_of(peer, self._dataplane.counters().peers.get(peer.id), self._timing, now)

    def drops(self) -> Mapping[HandshakeDrop, int]:
        """How many handshake messages went no further, by reason."""
        return dict(self._gate.drops)

    def take_reports(self) -> list[Report]:
        """What is worth a line in a log, and inner packets to the probe port, since the last call."""
        reports = list(self._sessions.reports)
        self._sessions.reports.clear()
        return reports

    # Hand-over.

    def freeze(self, now: float) -> bytes:
        """What must survive a restart beside the data plane's blob, and is as secret: it holds preshared keys.
        Handshakes in progress and cookies are not part of it; they are made anew."""
        return handover.pack(self._peers, self.public_key, self._sessions.up, now)

    def thaw(self, blob: bytes, now: float) -> None:
        """Take over in a fresh device on a thawed data plane, before `set_private_key`. ValueError, and nothing
        changed, if the blob is not one of ours, of another version, or from the future of this clock."""
        if len(self._peers):
            raise ValueError("only a device without peers can take over")
        image = handover.parse(blob, now)
        self._sessions.up = image.up
        self._sessions_of = PublicKey(image.public_key) if image.public_key else None
        for peer in image.peers(self._timing, self._jitter):
            self._peers.add(peer)
            for index in peer.keypairs:
                self._indices.adopt(index, peer.id)
            self._sessions.settle(peer)

    # Inside.

    def _handle_one(self, now: float, unix_ns: int) -> float:
        """Take one message from the gate; what it cost, in handshakes."""
        try:
            waiting = self._gate.take(now)
        except AdmissionRefused as refused:
            self._gate.drop(refused.reason)
            return REFUSAL
        try:
            self._sessions.settle(self._handshakes.receive(waiting, now, unix_ns))
        except AdmissionRefused as refused:
            self._gate.drop(refused.reason)
        return 1.0

    def _jitter(self) -> float:
        return int.from_bytes(self._random(2), "little") / 65536 * self._timing.max_jitter

    def _send_cookie_reply(self, reply: bytes, to: Datagram) -> None:
        self._dataplane.send_datagram(reply, to.endpoint, to.source)

    def _named(self, name: str) -> Peer:
        peer = self._peers.named(name)
        if peer is None:
            raise KeyError(name)
        return peer
