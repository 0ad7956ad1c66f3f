"""A fake data plane for tests of the tunnel alone: it satisfies the contract without descriptors and encryption.

Tests pass packets to `send`. A packet travels as a type 4 message with a plain payload under a tag that only a holder
of the key can compute. Slots, counters, staging and traffic facts follow the contract.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ravenvpn.dataplane.contract import (
    MAX_DATAGRAMS,
    MAX_STAGED_PACKETS,
    MAX_WAITING_INITIATIONS,
    Counters,
    Datagram,
    Drop,
    Endpoint,
    EndpointMoved,
    Event,
    HandshakeNeeded,
    KeypairRetired,
    KeyPromoted,
    NewKeypair,
    PeerCounters,
    PeerId,
    Role,
    Source,
    Timing,
    Traffic,
)
from ravenvpn.dataplane.events import is_initiation_without_mac2
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix


@dataclass
class Session:
    keypair: NewKeypair
    counter: int = 0
    seen: set[int] = field(default_factory=set)
    sending: bool = True
    asked: bool = False  # a rekey was requested


@dataclass
class FakePeer:
    id: PeerId
    endpoint: Endpoint | None = None
    source: Source | None = None
    roaming: bool = True
    previous: Session | None = None
    current: Session | None = None
    next: Session | None = None
    staged: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_STAGED_PACKETS))
    asked_at: float | None = None
    data_sent: float = 0.0
    any_sent: float = 0.0
    data_received: float = 0.0
    any_received: float = 0.0
    unanswered_since: float = 0.0
    unacknowledged_since: float = 0.0
    told_unanswered: bool = False
    told_unacknowledged: bool = False
    moved: bool = False
    rx_bytes: int = 0
    tx_bytes: int = 0
    keepalives_sent: int = 0

    @property
    def arms_timer(self) -> bool:
        """Whether there are facts that the data plane reports by itself (contract.Traffic)."""
        return bool(
            (self.unanswered_since and not self.told_unanswered)
            or (self.unacknowledged_since and not self.told_unacknowledged)
        )

    def handshake_ended(self) -> None:
        self.asked_at = None
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.told_unanswered = self.told_unacknowledged = False


class FakeDataPlane:
    """`transmit(data, to, source)` puts a datagram on the wire; received datagrams are passed to `receive`."""

    name = "fake"

    def __init__(
        self,
        clock: Callable[[], float],
        transmit: Callable[[bytes, Endpoint, Source | None], None],
        timing: Timing | None = None,
    ) -> None:
        self.timing = timing or Timing()
        self.clock = clock
        self.transmit = transmit
        self.known: dict[PeerId, FakePeer] = {}
        self.sessions: dict[int, tuple[FakePeer, Session]] = {}
        self.events: list[Event] = []
        self.first_calls: list[Datagram] = []  # initiations without mac2
        self.delivered: list[bytes] = []
        self.drops = dict.fromkeys(Drop, 0)
        self.nonces: list[tuple[bytes, int]] = []  # every (key, counter) ever used to send
        self.calls: list[str] = []
        self.allowed = Offloads()
        self.frozen = False

    # Life cycle: there are no descriptors to pump.
    def start(self, loop: object, on_events: object) -> None: ...
    def stop(self) -> None: ...
    def set_sockets(self, v4: int | None, v6: int | None) -> None: ...
    def set_mtu(self, mtu: int) -> None: ...
    def set_own_address(self, address: object, probe_port: int) -> None: ...
    def route(self, prefix: Prefix, peers: Sequence[PeerId]) -> None: ...
    def accept(self, peer: PeerId, add: Sequence[Prefix] = (), remove: Sequence[Prefix] = ()) -> None: ...

    def set_offloads(self, offloads: Offloads) -> None:
        self.allowed = offloads

    def offloads(self) -> Offloads:
        return self.allowed

    def freeze(self) -> bytes:
        self.frozen = True
        return b"fake"

    def thaw(self, blob: bytes) -> None:
        raise NotImplementedError("a test hands the object over instead")

    # Peers.
    def add_peer(self, peer: PeerId) -> None:
        self.known.setdefault(peer, FakePeer(peer))

    def remove_peer(self, peer: PeerId) -> None:
        self.drop_keypairs(peer)
        del self.known[peer]

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        one = self.known[peer]
        one.endpoint, one.source = endpoint, source

    def set_roaming(self, peer: PeerId, roaming: bool) -> None:
        self.known[peer].roaming = roaming

    def clear_source(self, peer: PeerId) -> None:
        self.known[peer].source = None

    # Sessions.
    def install_keypair(self, peer: PeerId, keypair: NewKeypair) -> None:
        if keypair.local_index in self.sessions:
            raise ValueError("index in use")
        one = self.known[peer]
        session = Session(keypair)
        self.sessions[keypair.local_index] = (one, session)
        one.handshake_ended()
        if keypair.role is Role.INITIATOR:
            if one.next is not None:
                self._retire(one, one.previous)
                self._retire(one, one.current)
                one.previous, one.next = one.next, None
            else:
                self._retire(one, one.previous)
                one.previous = one.current
            one.current = session
            if not self._flush(one):
                self.send_keepalive(peer)
        else:
            self._retire(one, one.next)
            self._retire(one, one.previous)
            one.next, one.previous = session, None

    def expire_keypairs(self, peer: PeerId) -> None:
        one = self.known[peer]
        for session in (one.current, one.next):
            if session is not None:
                session.sending = False

    def drop_keypairs(self, peer: PeerId) -> None:
        one = self.known[peer]
        for session in (one.previous, one.current, one.next):
            self._retire(one, session)
        one.previous = one.current = one.next = None
        one.asked_at = None

    def purge_staged(self, peer: PeerId) -> None:
        one = self.known[peer]
        self.drops[Drop.STAGED_EXPIRED] += len(one.staged)
        one.staged.clear()
        one.handshake_ended()

    # Sending.
    def send(self, peer: PeerId, packet: bytes) -> None:
        """Send a packet as if the TUN device had delivered it for this peer."""
        one = self.known[peer]
        if one.endpoint is None:
            self.drops[Drop.NO_ENDPOINT] += 1
            return
        one.staged.append(packet)
        self._flush(one)

    def send_keepalive(self, peer: PeerId) -> None:
        one = self.known[peer]
        if self._usable(one):
            one.keepalives_sent += 1
            self._transmit(one, b"")
        elif one.endpoint is not None:
            self._ask(one)

    def send_inner(self, peer: PeerId, packet: bytes, outer_df: bool = False) -> None:
        self.send(peer, packet)

    def send_datagram(self, data: bytes, endpoint: Endpoint, source: Source | None = None) -> None:
        self.transmit(data, endpoint, source)

    # Receiving.
    def receive(self, data: bytes, endpoint: Endpoint, source: Source | None) -> None:
        if data[:1] != b"\x04":
            first = is_initiation_without_mac2(data)
            lane = self.first_calls if first else self.events
            if first and len(lane) >= MAX_WAITING_INITIATIONS:
                self.drops[Drop.HANDSHAKE_QUEUE_FULL] += 1
            else:
                lane.append(Datagram(data, endpoint, source))
            return
        found = self.sessions.get(int.from_bytes(data[4:8], "little"))
        if found is None:
            self.drops[Drop.UNKNOWN_INDEX] += 1
            return
        one, session = found
        now = self.clock()
        if now - session.keypair.birth >= self.timing.reject_after_time:
            self.drops[Drop.EXPIRED_KEYPAIR] += 1
            return
        counter, payload, tag = int.from_bytes(data[8:16], "little"), data[16:-16], data[-16:]
        if tag != _tag(session.keypair.receive_key, data[:-16]):
            self.drops[Drop.BAD_TAG] += 1
            return
        if counter in session.seen:
            self.drops[Drop.REPLAYED] += 1
            return
        session.seen.add(counter)
        one.moved = True
        one.rx_bytes += len(data)
        if endpoint != one.endpoint:
            self.events.append(EndpointMoved(one.id, endpoint, source))
        if one.roaming:
            one.endpoint, one.source = endpoint, source
        if session is one.next:
            self._retire(one, one.previous)
            one.previous, one.current, one.next = one.current, session, None
            one.asked_at = None
            self.events.append(KeyPromoted(one.id, session.keypair.local_index))
            self._flush(one)
        one.any_received, one.unanswered_since = now, 0.0
        if payload:
            one.data_received = now
            one.unacknowledged_since = one.unacknowledged_since or now
            self.delivered.append(payload)
        late = self.timing.reject_after_time - self.timing.keepalive_timeout - self.timing.rekey_timeout
        self._renew(one, late)

    # Queries.
    @property
    def has_news(self) -> bool:
        """Whether a data plane would wake the tunnel now; other facts are reported only when drained."""
        waiting = self.events or self.first_calls
        return bool(waiting) or any(one.moved and one.arms_timer for one in self.known.values())

    def waiting_initiations(self) -> int:
        return len(self.first_calls)

    def drain_events(self, max_initiations: int = MAX_DATAGRAMS) -> list[Event]:
        events, self.events = [*self.events, *self.first_calls[:max_initiations]], []
        del self.first_calls[:max_initiations]
        for one in self.known.values():
            if one.moved:
                one.moved = False
                one.told_unanswered = bool(one.unanswered_since)
                one.told_unacknowledged = bool(one.unacknowledged_since)
                events.append(self.report(one))
        return events

    @staticmethod
    def report(one: FakePeer) -> Traffic:
        return Traffic(
            one.id,
            one.data_sent,
            one.any_sent,
            one.data_received,
            one.any_received,
            one.unanswered_since,
            one.unacknowledged_since,
        )

    def counters(self) -> Counters:
        peers = {}
        for one in self.known.values():
            keypair = one.current.keypair if one.current else None
            peers[one.id] = PeerCounters(
                rx_bytes=one.rx_bytes,
                tx_bytes=one.tx_bytes,
                endpoint=one.endpoint,
                source=one.source,
                suite=keypair.suite if keypair else None,
                keypair_birth=keypair.birth if keypair else 0.0,
                staged=len(one.staged),
            )
        return Counters(dict(self.drops), peers, {})

    # Internals.
    def _usable(self, one: FakePeer) -> bool:
        session = one.current
        return (
            session is not None
            and session.sending
            and self.clock() - session.keypair.birth < self.timing.reject_after_time
        )

    def _flush(self, one: FakePeer) -> bool:
        if not one.staged:
            return False
        if not self._usable(one):
            self._ask(one)
            return False
        while one.staged:
            self._transmit(one, one.staged.popleft())
        return True

    def _ask(self, one: FakePeer) -> None:
        now = self.clock()
        if one.asked_at is None or now - one.asked_at >= self.timing.rekey_timeout:
            one.asked_at = now
            self.events.append(HandshakeNeeded(one.id))

    def _renew(self, one: FakePeer, age: float) -> None:
        session = one.current
        if session is None or session.asked or session.keypair.role is not Role.INITIATOR:
            return
        if self.clock() - session.keypair.birth >= age:
            session.asked = True
            self.events.append(HandshakeNeeded(one.id))

    def _transmit(self, one: FakePeer, payload: bytes) -> None:
        session, now = one.current, self.clock()
        assert session is not None
        assert one.endpoint is not None
        assert not self.frozen
        head = b"\x04\0\0\0" + session.keypair.remote_index.to_bytes(4, "little")
        head += session.counter.to_bytes(8, "little") + payload
        self.nonces.append((session.keypair.send_key, session.counter))
        session.counter += 1
        one.any_sent, one.unacknowledged_since, one.moved = now, 0.0, True
        if payload:
            one.data_sent = now
            one.unanswered_since = one.unanswered_since or now
        one.tx_bytes += len(head) + 16
        self.transmit(head + _tag(session.keypair.send_key, head), one.endpoint, one.source)
        self._renew(one, self.timing.rekey_after_time)

    def _retire(self, one: FakePeer, session: Session | None) -> None:
        if session is not None:
            del self.sessions[session.keypair.local_index]
            self.events.append(KeypairRetired(one.id, session.keypair.local_index))


def _tag(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def deterministic_random(seed: str) -> Callable[[int], bytes]:
    """Return a source of random bytes that depend on the seed only."""
    blocks = itertools.count()

    def draw(size: int) -> bytes:
        return hashlib.shake_128(f"{seed} {next(blocks)}".encode()).digest(size)

    return draw
