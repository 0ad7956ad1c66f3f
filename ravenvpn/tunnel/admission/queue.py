"""What a handshake message must pass before it costs us anything (whitepaper §5.3).

In this order: form, room in the queue, mac1 (a hash); and, while under load, mac2 or it gets a cookie reply instead,
then the limit of its source. Only what is left may cause a Diffie-Hellman.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ravenvpn.crypto.cookie import MAC_BYTES, packed_source
from ravenvpn.dataplane.contract import MAX_DATAGRAMS, Datagram
from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.admission.load import UnderLoad
from ravenvpn.tunnel.admission.source_limit import SourceLimiter
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.indices import IndexEntry
from ravenvpn.tunnel.handshake.own_keys import OwnKey, OwnKeys

MAX_PROVEN = MAX_DATAGRAMS // 8
# Of initiations that prove nothing so many are taken from the data plane, where the others wait: it drops those
# there is no room for, in a flood nearly all, without the interpreter. What the pace lets us refuse in 16 ms.
ROOM = 64
_NO_MAC = bytes(MAC_BYTES)


class HandshakeDrop(enum.IntEnum):
    """Why a handshake message went no further: a closed list, each with one counter. Values are stable."""

    MALFORMED = 0  # wrong type, reserved bytes or length
    BAD_MAC1 = 1  # whoever sent it does not know our public key
    QUEUE_FULL = 2
    COOKIE_SENT = 3  # under load without a valid mac2: answered with a cookie
    RATE_LIMITED = 4  # under load, and its source asked too often
    NOT_AUTHENTIC = 5  # an initiation or response that does not decrypt
    UNKNOWN_STATIC = 6  # authentic, from a key that is no peer's
    OWN_STATIC = 7  # authentic, and made with a key of our own
    REPLAYED_TIMESTAMP = 8  # not newer than the peer's last (§5.1)
    FLOOD = 9  # the peer's initiations come faster than one per 20 ms
    SUITE_REFUSED = 10  # a suite not agreed with this peer
    STALE_RESPONSE = 11  # no initiation of ours waits for it
    BAD_COOKIE = 12  # a cookie reply to nothing of ours, or that does not decrypt
    NOT_LISTENING = 13  # the interface is down, or we have no key
    UNUSABLE_KEY = 14  # the peer's key is a point of low order


class AdmissionRefused(Exception):
    """A message may not pass, for this reason. It changed nothing."""

    def __init__(self, reason: HandshakeDrop) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Waiting(NamedTuple):
    """A message in the queue. `own` is the key of ours it is addressed to (None for cookie replies)."""

    message: messages.Message
    own: OwnKey | None
    datagram: Datagram


class AdmissionQueue:
    """Two queues of handshake messages and their guards.

    A message that proved itself waits apart, so that a flood fills only the other queue: one with a cookie of ours,
    while we are under load, and one that names an index of ours (32 random bits, known only on the path).
    """

    def __init__(
        self,
        identity: OwnKeys,
        find: Callable[[int], IndexEntry | None],
        reply: Callable[[bytes, Datagram], None],
        backlog: Callable[[], int],
    ) -> None:
        self._identity = identity
        self._find = find  # whose an index of ours is
        self._reply = reply  # sends a cookie reply to where a datagram came from
        self._backlog = backlog  # how many initiations wait before us
        self._queue: deque[Waiting] = deque()
        self._proven: deque[Waiting] = deque()
        self._load = UnderLoad()
        self._limiter = SourceLimiter()
        self.drops = dict.fromkeys(HandshakeDrop, 0)

    def __len__(self) -> int:
        return len(self._queue) + len(self._proven)

    @property
    def proven(self) -> int:
        """How many of those that wait proved themselves; they are taken first."""
        return len(self._proven)

    @property
    def room(self) -> int:
        """For how many more initiations that prove nothing."""
        return max(0, ROOM - len(self._queue))

    def drop(self, reason: HandshakeDrop) -> None:
        self.drops[reason] += 1

    def loaded(self, now: float) -> bool:
        return self._load.observe(len(self._queue) + self._backlog(), now)

    def admit(self, datagram: Datagram, now: float) -> None:
        """Queue it, or count why not."""
        try:
            self._admit(datagram, now)
        except AdmissionRefused as refused:
            self.drop(refused.reason)

    def readmit(self, waiting: Waiting) -> None:
        """Queue once more what has been taken and found authentic."""
        if len(self._proven) < MAX_PROVEN:
            self._proven.append(waiting)

    def take(self, now: float) -> Waiting:
        """The next message, if it may cost something; Refused if it may not. IndexError if none waits."""
        if self._proven:
            return self._proven.popleft()
        loaded = self.loaded(now)
        waiting = self._queue.popleft()
        if loaded and waiting.own is not None:
            checker, datagram = waiting.own.checker, waiting.datagram
            source = packed_source(datagram.endpoint.host, datagram.endpoint.port)
            if not self._is_proven(waiting, source, now):
                self._reply(checker.reply(datagram.data, source, now), datagram)
                raise AdmissionRefused(HandshakeDrop.COOKIE_SENT)
        return waiting

    def clear(self) -> None:
        """Forget what waits: it was addressed to who we were."""
        self._queue.clear()
        self._proven.clear()

    def _admit(self, datagram: Datagram, now: float) -> None:
        try:
            message = messages.parse(datagram.data)
        except MalformedMessage:
            raise AdmissionRefused(HandshakeDrop.MALFORMED) from None
        if isinstance(message, messages.CookieReply):
            # It has no mac1; what it has is an index of ours, or it is nothing.
            if self._find(message.receiver) is None:
                raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
            return self._append(Waiting(message, None, datagram), proven=True)
        proven = False
        if isinstance(message, messages.Response):
            entry = self._find(message.receiver)
            if entry is None or entry.keypair:
                raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE)
            proven = True
        tries_to_prove = not proven and datagram.data[-MAC_BYTES:] != _NO_MAC and self.loaded(now)
        if not proven and not tries_to_prove and len(self._queue) >= MAX_DATAGRAMS:
            raise AdmissionRefused(HandshakeDrop.QUEUE_FULL)  # before the hash: a flood makes this the common case
        own = self._identity.addressee(datagram.data)
        if own is None:
            raise AdmissionRefused(HandshakeDrop.BAD_MAC1)
        waiting = Waiting(message, own, datagram)
        if tries_to_prove:
            proven = self._is_proven(waiting, packed_source(datagram.endpoint.host, datagram.endpoint.port), now)
        return self._append(waiting, proven=proven)

    def _append(self, waiting: Waiting, *, proven: bool) -> None:
        queue, room = (self._proven, MAX_PROVEN) if proven else (self._queue, MAX_DATAGRAMS)
        if len(queue) >= room:
            raise AdmissionRefused(HandshakeDrop.QUEUE_FULL)
        queue.append(waiting)

    def _is_proven(self, waiting: Waiting, source: bytes, now: float) -> bool:
        """Whether mac2 shows that the source is where it says; Refused if it is, and asks too often."""
        own, datagram = waiting.own, waiting.datagram
        if own is None or datagram.data[-MAC_BYTES:] == _NO_MAC:
            return False
        if not own.checker.mac2_is_valid(datagram.data, source, now):
            return False
        if not self._limiter.allow(datagram.endpoint.host, now):
            raise AdmissionRefused(HandshakeDrop.RATE_LIMITED)
        return True
