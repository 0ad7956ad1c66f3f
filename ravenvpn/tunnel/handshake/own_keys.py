"""Our static keys: the current one, and a second one while keys are rotated.

Initiations are made with the current key. Messages addressed to either key are accepted: the next key may be
announced before it becomes current, and the previous key is used by peers that have not seen the change yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ravenvpn.crypto.cookie import CookieChecker
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Timing


@dataclass(frozen=True, slots=True, eq=False)
class OwnKey:
    """One static key of ours. Compared by identity: a key that was removed and set again is another OwnKey."""

    private: PrivateKey
    checker: CookieChecker  # verifies mac1 and mac2 of messages to this key, and makes cookie replies

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to `private`."""
        return self.private.public


class OwnKeys:
    """At most two static keys. `current` and `next` are None where there is no such key."""

    def __init__(self, random: Callable[[int], bytes], timing: Timing) -> None:
        """`random(n)` returns n random bytes, for the secrets of the cookie checkers."""
        self._random = random
        self._timing = timing
        self.current: OwnKey | None = None
        # For key rotation: the key to come, or, after the change, the one before. No caller in the agent yet.
        self.next: OwnKey | None = None

    def __contains__(self, own: object) -> bool:
        """Return whether this OwnKey is still one of ours: it may have been replaced while a message was queued."""
        return own is not None and (own is self.current or own is self.next)

    def keys(self) -> list[OwnKey]:
        """Return the keys there are, the current one first."""
        return [own for own in (self.current, self.next) if own is not None]

    def clear_shared_secrets(self, remote_key: PublicKey) -> None:
        """Wipe the cached Diffie-Hellman results of our keys and this public key of a peer."""
        for own in self.keys():
            own.private.forget(remote_key)

    def is_own(self, key: PublicKey) -> bool:
        """Return whether this public key is one of ours."""
        return any(own.public == key for own in self.keys())

    def lookup_mac1(self, message: bytes) -> OwnKey | None:
        """Return the key that the mac1 of a whole initiation or response was made for; None if for none of ours."""
        for own in self.keys():
            if own.checker.mac1_is_valid(message):
                return own
        return None

    def with_checker(self, private: PrivateKey | None) -> OwnKey | None:
        """Return the OwnKey of a private key: the existing object if the key is already ours, else a new one that is
        not stored here. None for None."""
        if private is None:
            return None
        for own in self.keys():
            if own.public == private.public:
                return own
        return OwnKey(private, CookieChecker(private.public, self._random, self._timing.cookie_refresh_time))
