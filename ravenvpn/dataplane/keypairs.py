"""Keypairs in use: the index they are found by, the three slots of each peer, and how keypairs move between them.

A keypair is found by its local index, whatever its slot. Packets leave under `current` alone; the responder's new
keypair waits in `next` until the initiator has shown that it has it too. The moves are those of wireguard-go and the
Linux kernel (`BeginSymmetricSession`, `add_new_keypair`); the whitepaper has the reason in §6.2 and §5.4.6.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ravenvpn.crypto.aead import Suite, cipher
from ravenvpn.dataplane.contract import KeypairRetired, KeyPromoted, NewKeypair, Role, Timing
from ravenvpn.dataplane.events import EventQueue
from ravenvpn.dataplane.replay import ReplayWindow
from ravenvpn.overhead import TRANSPORT_OVERHEAD

if TYPE_CHECKING:
    from ravenvpn.dataplane.peers import DataPlanePeer

SLOTS: Final = ("previous", "current", "next")

HEADER: Final = struct.Struct("<IIQ")  # type 4 with its reserved bytes, receiver's index, counter (whitepaper §5.4.6)
HEADER_BYTES: Final = HEADER.size
OVERHEAD: Final = TRANSPORT_OVERHEAD  # with the tag: a keepalive's length
TRANSPORT: Final = 4

# Suite.nonce, as one C call: it is made once per packet.
_NONCE: Final = {Suite.CHACHA20POLY1305: struct.Struct("<4xQ").pack, Suite.AES256GCM: struct.Struct(">4xQ").pack}
assert all(nonce(1 << 40) == suite.nonce(1 << 40) for suite, nonce in _NONCE.items())


class Keypair:
    """One keypair at work. `counter` is the next to send with; `sends` turns false when it may only receive."""

    __slots__ = (
        "counter", "decrypt_into", "dies", "encrypt_into", "keypair", "nonce", "peer", "reject_after", "rekey_after",
        "renewal_asked", "renews", "renews_late", "sends", "window",
    )  # fmt: skip

    def __init__(self, peer: DataPlanePeer, keypair: NewKeypair, timing: Timing) -> None:
        self.peer = peer
        self.keypair = keypair
        suite = keypair.suite
        self.encrypt_into = cipher(suite, keypair.send_key).encrypt_into
        self.decrypt_into = cipher(suite, keypair.receive_key).decrypt_into
        self.nonce = _NONCE[suite]
        self.rekey_after = suite.rekey_after_messages
        self.reject_after = suite.reject_after_messages
        self.counter = 0
        self.window = ReplayWindow()
        self.sends = True
        self.renewal_asked = False  # on receiving, once per keypair
        # Instants, so that packets compare and don't subtract. Only the initiator renews by age (§6.2).
        self.dies = keypair.birth + timing.reject_after_time
        begins = keypair.role is Role.INITIATOR
        never = float("inf")
        self.renews = keypair.birth + timing.rekey_after_time if begins else never
        late = timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout
        self.renews_late = keypair.birth + late if begins else never

    def may_send(self, now: float, packets: int = 1) -> bool:
        return self.sends and now < self.dies and self.counter + packets <= self.reject_after


class KeypairTable:
    """Every session of every peer, by local index. Slots change here only, and what leaves one is reported."""

    def __init__(self, events: EventQueue, timing: Timing) -> None:
        self.by_index: dict[int, Keypair] = {}
        self._events = events
        self._timing = timing

    def install(self, peer: DataPlanePeer, keypair: NewKeypair) -> None:
        """A fresh keypair enters its slot. ValueError if its local index is in use or a field has a wrong size."""
        session = self.open(peer, keypair)
        if keypair.role is Role.INITIATOR:
            if peer.next is not None:
                # The peer began a session that it never used: it holds ours as current by now, or will.
                self._retire(peer.previous, peer.current)
                peer.previous = peer.next
            else:
                self._retire(peer.previous)
                peer.previous = peer.current
            peer.current, peer.next = session, None
        else:
            self._retire(peer.previous, peer.next)
            peer.previous, peer.next = None, session

    def open(self, peer: DataPlanePeer, keypair: NewKeypair) -> Keypair:
        """Make a keypair receivable, in no slot yet."""
        if keypair.local_index in self.by_index:
            raise ValueError(f"local index {keypair.local_index:#010x} is in use")
        for index in (keypair.local_index, keypair.remote_index):
            if not 0 <= index < 1 << 32:
                raise ValueError(f"an index has 32 bits: {index:#x}")
        session = Keypair(peer, keypair, self._timing)
        self.by_index[keypair.local_index] = session
        return session

    def promote(self, session: Keypair) -> None:
        """The first authenticated message under `next` arrived: the initiator has the key (whitepaper §5.4.5)."""
        peer = session.peer
        self._retire(peer.previous)
        peer.previous, peer.current, peer.next = peer.current, session, None
        self._events.post(KeyPromoted(peer.id, session.keypair.local_index))

    def drop_all(self, peer: DataPlanePeer) -> None:
        self._retire(peer.previous, peer.current, peer.next)
        peer.previous = peer.current = peer.next = None

    def _retire(self, *sessions: Keypair | None) -> None:
        for session in sessions:
            if session is not None:
                index = session.keypair.local_index
                del self.by_index[index]
                self._events.post(KeypairRetired(session.peer.id, index))
