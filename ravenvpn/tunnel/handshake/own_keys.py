"""Who we are: our static key, and a second one while keys are rotated.

Initiations are made with the current key. Messages to either are answered: the key to come may already be announced,
and the key that goes is still dialled by peers that have not heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ravenvpn.crypto.cookie import CookieChecker
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Timing


@dataclass(frozen=True, slots=True, eq=False)
class OwnKey:
    private: PrivateKey
    checker: CookieChecker

    @property
    def public(self) -> PublicKey:
        return self.private.public


class OwnKeys:
    def __init__(self, random: Callable[[int], bytes], timing: Timing) -> None:
        self._random = random
        self._timing = timing
        self.current: OwnKey | None = None
        self.next: OwnKey | None = None

    def keys(self) -> list[OwnKey]:
        return [own for own in (self.current, self.next) if own is not None]

    def has(self, own: OwnKey) -> bool:
        return own is self.current or own is self.next

    def forget(self, theirs: PublicKey) -> None:
        """Wipe the secrets our keys share with a peer's key that is gone."""
        for own in self.keys():
            own.private.forget(theirs)

    def is_ours(self, key: PublicKey) -> bool:
        return any(own.public == key for own in self.keys())

    def addressee(self, message: bytes) -> OwnKey | None:
        """Which key of ours the mac1 of a whole initiation or response was made for; None if for none."""
        for own in self.keys():
            if own.checker.mac1_is_valid(message):
                return own
        return None

    def own(self, private: PrivateKey | None) -> OwnKey | None:
        """The key with what judges messages to it; the same object as before if it is already ours."""
        if private is None:
            return None
        for own in self.keys():
            if own.public == private.public:
                return own
        return OwnKey(private, CookieChecker(private.public, self._random, self._timing.cookie_refresh_time))
