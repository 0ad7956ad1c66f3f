"""Keypairs in use: the table by local index, the three slots of each peer, and how keypairs move between the slots.

A keypair is found by its local index, whatever its slot. Packets leave under `current` only. A responder's new
keypair waits in `next` until the first message under it shows that the initiator has it too. The moves are those of
wireguard-go (`BeginSymmetricSession`) and the Linux kernel (`add_new_keypair`); whitepaper §5.4.6 and §6.2 give the
reasons.
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

HEADER: Final = struct.Struct("<IIQ")  # type 4 with its reserved bytes, receiver index, counter (whitepaper §5.4.6)
HEADER_BYTES: Final = HEADER.size
OVERHEAD: Final = TRANSPORT_OVERHEAD  # of a transport message, header and tag; the whole length of a keepalive
TRANSPORT: Final = 4  # the message type

# Suite.nonce as one C call, because a nonce is made for every packet.
_NONCE: Final = {Suite.CHACHA20POLY1305: struct.Struct("<4xQ").pack, Suite.AES256GCM: struct.Struct(">4xQ").pack}
assert all(nonce(1 << 40) == suite.nonce(1 << 40) for suite, nonce in _NONCE.items())


class Keypair:
    """One keypair in use, with its ciphers, counters and replay window.

    Times are instants on the body's clock, so that packets need a comparison and no subtraction. Only the initiator
    of a keypair rekeys by age (whitepaper §6.2), so for a responder those instants are infinite.
    """

    __slots__ = (
        "counter", "decrypt_into", "encrypt_into", "keys", "nonce", "peer", "reject_after", "reject_at",
        "rekey_after", "rekey_at", "rekey_on_receive_at", "rekey_requested", "sends", "window",
    )  # fmt: skip

    def __init__(self, peer: DataPlanePeer, keys: NewKeypair, timing: Timing) -> None:
        self.peer = peer
        self.keys = keys
        suite = keys.suite
        self.encrypt_into = cipher(suite, keys.send_key).encrypt_into
        self.decrypt_into = cipher(suite, keys.receive_key).decrypt_into
        self.nonce = _NONCE[suite]
        self.rekey_after = suite.rekey_after_messages
        self.reject_after = suite.reject_after_messages
        self.counter = 0  # of the next message to send
        self.window = ReplayWindow()
        self.sends = True  # False once the keypair may only receive
        self.rekey_requested = False  # by `rekey_on_receive_at`, which happens once per keypair
        self.reject_at = keys.birth + timing.reject_after_time
        initiator = keys.role is Role.INITIATOR
        never = float("inf")
        self.rekey_at = keys.birth + timing.rekey_after_time if initiator else never
        # An initiator that only receives rekeys this late, in time for the handshake to end before reject_at.
        late = timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout
        self.rekey_on_receive_at = keys.birth + late if initiator else never

    def may_send(self, now: float, packets: int = 1) -> bool:
        """Return True if so many more packets may be sent under this keypair (age and counter, whitepaper §6.1)."""
        return self.sends and now < self.reject_at and self.counter + packets <= self.reject_after


class KeypairTable:
    """The keypairs of all peers by local index. Only this class changes slots; it posts what leaves one.

    Invariant: a keypair is in `by_index` exactly as long as it is in a slot of its peer (between `register` and the
    caller's assignment of a slot excepted).
    """

    def __init__(self, events: EventQueue, timing: Timing) -> None:
        self.by_index: dict[int, Keypair] = {}
        self._events = events
        self._timing = timing

    def install(self, peer: DataPlanePeer, keys: NewKeypair) -> None:
        """Put a new keypair into its slot.

        Raises ValueError if its local index is in use or a field's size is wrong.
        """
        keypair = self.register(peer, keys)
        if keys.role is Role.INITIATOR:
            if peer.next is not None:
                # The peer initiated a session that it has not used yet. It has `next` too, so what it sends under it
                # must still be received; `current` is older and goes.
                self._retire(peer.previous, peer.current)
                peer.previous = peer.next
            else:
                self._retire(peer.previous)
                peer.previous = peer.current
            peer.current, peer.next = keypair, None
        else:
            self._retire(peer.previous, peer.next)
            peer.previous, peer.next = None, keypair

    def register(self, peer: DataPlanePeer, keys: NewKeypair) -> Keypair:
        """Make a keypair receivable without a slot. Raises ValueError as `install` does."""
        if keys.local_index in self.by_index:
            raise ValueError(f"local index {keys.local_index:#010x} is in use")
        for index in (keys.local_index, keys.remote_index):
            if not 0 <= index < 1 << 32:
                raise ValueError(f"an index has 32 bits: {index:#x}")
        keypair = Keypair(peer, keys, self._timing)
        self.by_index[keys.local_index] = keypair
        return keypair

    def promote(self, keypair: Keypair) -> None:
        """Make `next` the `current` keypair: the first message under it arrived (key confirmation, §5.4.5)."""
        peer = keypair.peer
        self._retire(peer.previous)
        peer.previous, peer.current, peer.next = peer.current, keypair, None
        self._events.post(KeyPromoted(peer.id, keypair.keys.local_index))

    def drop_all(self, peer: DataPlanePeer) -> None:
        """Remove all keypairs of a peer."""
        self._retire(peer.previous, peer.current, peer.next)
        peer.previous = peer.current = peer.next = None

    def _retire(self, *keypairs: Keypair | None) -> None:
        """Free the local indices of keypairs that leave their slots. Python keeps the key bytes until collection."""
        for keypair in keypairs:
            if keypair is not None:
                index = keypair.keys.local_index
                del self.by_index[index]
                self._events.post(KeypairRetired(keypair.peer.id, index))
