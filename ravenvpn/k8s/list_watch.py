"""List or watch: which request comes next to keep up with a collection of the API, and when.

Pure: callers report events, randomness is injected, `now` is seconds of a clock that only goes forward.

The server counts changes in resourceVersions. A list has one, and so has each event and each bookmark of a watch. A
watch can be resumed from any of them until the server has compacted that far and answers 410 Expired (Kubernetes API
concepts, "Efficient detection of changes"). Then only a list shows what was missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.resource import ApiError

STABLE_AFTER = 10.0  # seconds; a watch that lasted as long as this resets the back-off
# Consecutive answers "resourceVersion too large" after which to list. A server that was just restarted catches up
# with etcd within the first delays; one restored from an old backup never reaches our version.
MAX_TOO_LARGE = 3


@dataclass(frozen=True, slots=True)
class NextRequest:
    """Next request: wait, then watch from `version`, or list if it is empty."""

    after: float  # seconds
    version: str  # resourceVersion


class ListWatch:
    """State of following one collection. Methods are named by what happened."""

    def __init__(self, random: Callable[[], float], version: str = "") -> None:
        """`random` draws evenly from 0.0 to 1.0. `version`: resourceVersion that an earlier process had reached."""
        self._backoff = Backoff(random)
        self._version = version
        self._after = 0.0
        self._accepted_at: float | None = None  # when the server accepted the watch that runs; None: none runs
        self._too_large = 0  # consecutive answers of this kind
        self._expired = False  # the server answered 410 since the last stable watch

    def next_request(self) -> NextRequest:
        """Return the next request and the delay before it."""
        return NextRequest(self._after, self._version)

    def list_completed(self, version: str) -> None:
        """All pages of a list were received; `version` is its resourceVersion."""
        self._version, self._after, self._too_large = version, 0.0, 0

    def watch_accepted(self, now: float) -> None:
        """The server answered a watch with status 200."""
        self._accepted_at, self._after, self._too_large = now, 0.0, 0

    def event_received(self, version: str) -> None:
        """An event or a bookmark came with the watch; `version` may be empty."""
        if version:
            self._version = version

    def watch_ended(self, now: float) -> None:
        """The server ended the watch in good order, as it does after timeoutSeconds.

        A watch that ends too early is resumed with back-off: some proxies end each one at once.
        """
        self._after = 0.0 if self._was_stable(now) else self._backoff.delay()

    def request_failed(self, error: ApiError, now: float) -> None:
        """A list or watch was refused or not answered, or the watch broke off."""
        self._was_stable(now)
        self._too_large = self._too_large + 1 if error.reason == "ResourceVersionTooLarge" else 0
        # 410: compacted. 400: the server cannot parse it as a version of its own.
        if error.status in (400, 410) or self._too_large >= MAX_TOO_LARGE:
            self._version, self._too_large = "", 0
            if not self._expired:
                # The server answers, and the back-off until it did has spread the clients: list without the long
                # delay that the failures before have built up. Only once, in case it answers 410 again and again.
                self._expired = True
                self._backoff.reset()
        self._after = self._backoff.delay(error.retry_after or 0.0)

    def _was_stable(self, now: float) -> bool:
        """Whether the watch that ends now lasted for `STABLE_AFTER`; if so, reset the back-off."""
        accepted_at, self._accepted_at = self._accepted_at, None
        if accepted_at is None or now - accepted_at < STABLE_AFTER:
            return False
        self._backoff.reset()
        self._expired = False
        return True
