"""What a handshake message must pass before it costs us anything (whitepaper §5.3).

In this order: form, mac1 (a hash), room in the queue; and, when its turn comes, while under load: mac2 or it gets a
cookie reply instead, then the limit of its source. Only what is left may cause a Diffie-Hellman.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ravenvpn.crypto.cookie import packed_source
from ravenvpn.dataplane.contract import MAX_DATAGRAMS, Datagram
from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel import wire
from ravenvpn.tunnel.identity import Identity, OwnKey
from ravenvpn.tunnel.load import Load
from ravenvpn.tunnel.ratelimit import SourceLimiter


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


class Refused(Exception):
    """A message may not pass, for this reason. It changed nothing."""

    def __init__(self, reason: HandshakeDrop) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Waiting(NamedTuple):
    """A message in the queue. `own` is the key of ours it is addressed to (None for cookie replies)."""

    message: wire.Message
    own: OwnKey | None
    datagram: Datagram


class Gate:
    """The queue of handshake messages and its guards."""

    def __init__(self, identity: Identity, reply: Callable[[bytes, Datagram], None]) -> None:
        self._identity = identity
        self._reply = reply  # sends a cookie reply to where a datagram came from
        self._queue: deque[Waiting] = deque()
        self._load = Load()
        self._limiter = SourceLimiter()
        self.drops = dict.fromkeys(HandshakeDrop, 0)

    def __len__(self) -> int:
        return len(self._queue)

    def drop(self, reason: HandshakeDrop) -> None:
        self.drops[reason] += 1

    def admit(self, datagram: Datagram) -> None:
        """Queue it, or count why not."""
        try:
            message = wire.parse(datagram.data)
        except MalformedMessage:
            self.drop(HandshakeDrop.MALFORMED)
            return
        own = None if isinstance(message, wire.CookieReply) else self._identity.addressee(datagram.data)
        if own is None and not isinstance(message, wire.CookieReply):
            self.drop(HandshakeDrop.BAD_MAC1)
        elif len(self._queue) >= MAX_DATAGRAMS:
            self.drop(HandshakeDrop.QUEUE_FULL)
        else:
            self._queue.append(Waiting(message, own, datagram))

    def take(self, now: float) -> Waiting:
        """The next message, if it may cost something; Refused if it may not. IndexError if none waits."""
        loaded = self._load.observe(len(self._queue), now)
        waiting = self._queue.popleft()
        if loaded and waiting.own is not None:
            datagram, checker = waiting.datagram, waiting.own.checker
            source = packed_source(datagram.endpoint.host, datagram.endpoint.port)
            if not checker.mac2_is_valid(datagram.data, source, now):
                self._reply(checker.reply(datagram.data, source, now), datagram)
                raise Refused(HandshakeDrop.COOKIE_SENT)
            if not self._limiter.allow(datagram.endpoint.host, now):
                raise Refused(HandshakeDrop.RATE_LIMITED)
        return waiting

    def clear(self) -> None:
        """Forget what waits: it was addressed to who we were."""
        self._queue.clear()
