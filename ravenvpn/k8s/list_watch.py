"""What to do next to keep up with a collection of the API: list it, or watch it from where we were, and when.

Pure: what happened is told, randomness is handed in, `now` is seconds of a clock that only goes forward.

The server counts in resourceVersions. A list states one, each event and each bookmark another, and a watch may be
taken up at any of them until the server has forgotten that far back and says 410 Expired (Kubernetes API concepts,
"Efficient detection of changes"). A list is then the only way to learn what was missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.resource import ApiError

# Seconds.
SETTLED = 10.0  # a watch that held so long was no failure
PATIENCE = 3  # refusals in a row of a version the server has not reached yet


@dataclass(frozen=True, slots=True)
class Step:
    """Wait so many seconds, then watch from a version; an empty one: list."""

    after: float
    version: str


class ListWatch:
    """Of one collection. `version` is where an earlier process had come to."""

    def __init__(self, random: Callable[[], float], version: str = "") -> None:
        self._backoff = Backoff(random)
        self._version = version
        self._after = 0.0
        self._since: float | None = None  # when the server accepted the watch that is under way
        self._ahead = 0
        self._forgotten = False  # the server had forgotten our version, and no watch held since

    def step(self) -> Step:
        return Step(self._after, self._version)

    def listed(self, version: str) -> None:
        """Completely, as of this version."""
        self._version, self._after, self._ahead = version, 0.0, 0

    def accepted(self, now: float) -> None:
        """A watch has begun."""
        self._since, self._after, self._ahead = now, 0.0, 0

    def saw(self, version: str) -> None:
        """An event, or a bookmark."""
        if version:
            self._version = version

    def ended(self, now: float) -> None:
        """The server ended the watch, as it does after its time. One that ends at once is tried again ever later."""
        self._after = 0.0 if self._settle(now) else self._backoff.delay()

    def failed(self, error: ApiError, now: float) -> None:
        """Listing or watching came to nothing, or the watch broke off."""
        self._settle(now)
        self._ahead = self._ahead + 1 if error.reason == "ResourceVersionTooLarge" else 0
        if error.status in (400, 410) or self._ahead >= PATIENCE:  # too old, no version at all, or of another etcd
            self._version, self._ahead = "", 0
            if not self._forgotten:
                # It answers, as every server does that was started anew, and what it took to reach it has spread us:
                # the failures of before are no reason to wait for the list.
                self._forgotten = True
                self._backoff.reset()
        self._after = self._backoff.delay(error.retry_after or 0.0)

    def _settle(self, now: float) -> bool:
        since, self._since = self._since, None
        if since is None or now - since < SETTLED:
            return False
        self._backoff.reset()
        self._forgotten = False
        return True
