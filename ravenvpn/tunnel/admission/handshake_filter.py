"""Admission of handshake messages: checks before a message may cost a Diffie-Hellman (whitepaper §5.3).

In this order: form, room in the queue, mac1 (one hash); and while under load mac2, without which a cookie reply is
sent instead, then the rate limit of the source. Only messages that passed may cause public-key operations.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ravenvpn.crypto.cookie import MAC_BYTES, packed_source
from ravenvpn.dataplane.contract import MAX_DATAGRAMS, Datagram
from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.admission.load_monitor import LoadMonitor
from ravenvpn.tunnel.admission.source_limit import SourceLimiter
from ravenvpn.tunnel.handshake import messages
from ravenvpn.tunnel.handshake.indices import IndexEntry
from ravenvpn.tunnel.handshake.own_keys import OwnKey, OwnKeys

MAX_VALIDATED = MAX_DATAGRAMS // 8  # messages
# Initiations without mac2 that are taken from the data plane; the others wait there, and the data plane drops those
# beyond its own limit (nearly all of a flood) without the interpreter. As many as the handshake budget can refuse in
# 16 ms.
MAX_INITIATIONS = 64
_NO_MAC2 = bytes(MAC_BYTES)


class HandshakeDrop(enum.IntEnum):
    """Why a handshake message was dropped: a closed list, each with one counter. Values are stable."""

    MALFORMED = 0  # wrong type, reserved bytes or length
    BAD_MAC1 = 1  # the sender does not know our public key
    QUEUE_FULL = 2
    COOKIE_SENT = 3  # under load without a valid mac2: answered with a cookie reply
    RATE_LIMITED = 4  # under load, and its source sent too many
    NOT_AUTHENTIC = 5  # an initiation or response that does not decrypt
    UNKNOWN_STATIC = 6  # authentic, from a key that no peer has
    OWN_STATIC = 7  # authentic, and made with a key of our own
    REPLAYED_TIMESTAMP = 8  # not newer than the peer's last (§5.1)
    FLOOD = 9  # the peer's initiations come faster than one per 20 ms
    SUITE_REFUSED = 10  # a suite not agreed with this peer
    STALE_RESPONSE = 11  # no initiation of ours waits for it
    BAD_COOKIE = 12  # a cookie reply to no message of ours, or one that does not decrypt
    NOT_LISTENING = 13  # the interface is down, or we have no key
    UNUSABLE_KEY = 14  # the peer's key is a point of low order


class AdmissionRefused(Exception):
    """A message failed a check for this reason. It changed nothing."""

    def __init__(self, reason: HandshakeDrop) -> None:
        super().__init__(reason.name)
        self.reason = reason


class QueuedMessage(NamedTuple):
    """A parsed message in the queue."""

    message: messages.Message
    own: OwnKey | None  # our key that it is addressed to by mac1; None for cookie replies
    datagram: Datagram


class AdmissionQueue:
    """Two queues of handshake messages. `len()` is the number of messages in both.

    Validated messages wait in a queue of their own, so that a flood fills only the other one. Validated are: a
    message whose mac2 carries a cookie of ours, while we are under load, and a message that names an index of ours
    (32 random bits, known only on the path).
    """

    def __init__(
        self,
        own_keys: OwnKeys,
        lookup: Callable[[int], IndexEntry | None],
        send_reply: Callable[[bytes, Datagram], None],
        backlog: Callable[[], int],
    ) -> None:
        """`lookup` returns the owner of a receiver index. `send_reply` sends a cookie reply to the source of a
        datagram. `backlog` returns the number of initiations that wait in the data plane."""
        self._own_keys = own_keys
        self._lookup = lookup
        self._send_reply = send_reply
        self._backlog = backlog
        self._unvalidated: deque[QueuedMessage] = deque()
        self._validated: deque[QueuedMessage] = deque()
        self._load = LoadMonitor()
        self._limiter = SourceLimiter()
        self.drops = dict.fromkeys(HandshakeDrop, 0)

    def __len__(self) -> int:
        return len(self._unvalidated) + len(self._validated)

    @property
    def validated(self) -> int:
        """Number of validated messages; they are popped first."""
        return len(self._validated)

    @property
    def room(self) -> int:
        """Number of initiations without mac2 that may be taken from the data plane now."""
        return max(0, MAX_INITIATIONS - len(self._unvalidated))

    def count_drop(self, reason: HandshakeDrop) -> None:
        """Count a message that was dropped for this reason."""
        self.drops[reason] += 1

    def under_load(self, now: float) -> bool:
        """Return whether we are under load, from the messages that wait here and in the data plane."""
        return self._load.observe(len(self._unvalidated) + self._backlog(), now)

    def admit(self, datagram: Datagram, now: float) -> None:
        """Append the message to a queue, or count why it was dropped. Never raises; costs a parse and a hash."""
        try:
            self._admit(datagram, now)
        except AdmissionRefused as refused:
            self.count_drop(refused.reason)

    def readmit(self, queued: QueuedMessage) -> None:
        """Append again a message that was popped and found authentic. Dropped silently if the queue is full."""
        if len(self._validated) < MAX_VALIDATED:
            self._validated.append(queued)

    def pop(self, now: float) -> QueuedMessage:
        """Remove and return the next message that may cost public-key operations.

        Raises AdmissionRefused if the next one may not: it is removed, and a cookie reply was sent if it lacked mac2.
        Raises IndexError if both queues are empty.
        """
        if self._validated:
            return self._validated.popleft()
        under_load = self.under_load(now)
        queued = self._unvalidated.popleft()
        if under_load and queued.own is not None:
            checker, datagram = queued.own.checker, queued.datagram
            source = packed_source(datagram.endpoint.host, datagram.endpoint.port)
            if not self._validate_source(queued, source, now):
                self._send_reply(checker.reply(datagram.data, source, now), datagram)
                raise AdmissionRefused(HandshakeDrop.COOKIE_SENT)
        return queued

    def clear(self) -> None:
        """Remove all messages: they were addressed to a key that is no longer ours, or the interface is down."""
        self._unvalidated.clear()
        self._validated.clear()

    def _admit(self, datagram: Datagram, now: float) -> None:
        try:
            message = messages.parse(datagram.data)
        except MalformedMessage:
            raise AdmissionRefused(HandshakeDrop.MALFORMED) from None
        if isinstance(message, messages.CookieReply):
            # It has no mac1. The receiver index must be one of ours.
            if self._lookup(message.receiver) is None:
                raise AdmissionRefused(HandshakeDrop.BAD_COOKIE)
            return self._append(QueuedMessage(message, None, datagram), validated=True)
        validated = False
        if isinstance(message, messages.Response):
            entry = self._lookup(message.receiver)
            if entry is None or entry.keypair:
                raise AdmissionRefused(HandshakeDrop.STALE_RESPONSE)
            validated = True
        checks_mac2 = not validated and datagram.data[-MAC_BYTES:] != _NO_MAC2 and self.under_load(now)
        if not validated and not checks_mac2 and len(self._unvalidated) >= MAX_DATAGRAMS:
            raise AdmissionRefused(HandshakeDrop.QUEUE_FULL)  # before the hash: in a flood this is the common case
        own = self._own_keys.lookup_mac1(datagram.data)
        if own is None:
            raise AdmissionRefused(HandshakeDrop.BAD_MAC1)
        queued = QueuedMessage(message, own, datagram)
        if checks_mac2:
            source = packed_source(datagram.endpoint.host, datagram.endpoint.port)
            validated = self._validate_source(queued, source, now)
        return self._append(queued, validated=validated)

    def _append(self, queued: QueuedMessage, *, validated: bool) -> None:
        queue, limit = (self._validated, MAX_VALIDATED) if validated else (self._unvalidated, MAX_DATAGRAMS)
        if len(queue) >= limit:
            raise AdmissionRefused(HandshakeDrop.QUEUE_FULL)
        queue.append(queued)

    def _validate_source(self, queued: QueuedMessage, source: bytes, now: float) -> bool:
        """Return whether mac2 proves that the sender receives at its source address. Raises AdmissionRefused if it
        does, but the source has sent too many."""
        own, datagram = queued.own, queued.datagram
        if own is None or datagram.data[-MAC_BYTES:] == _NO_MAC2:
            return False
        if not own.checker.mac2_is_valid(datagram.data, source, now):
            return False
        if not self._limiter.allow(datagram.endpoint.host, now):
            raise AdmissionRefused(HandshakeDrop.RATE_LIMITED)
        return True
