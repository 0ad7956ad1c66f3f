"""Endpoints of one peer: the configured candidates, and the confirmed one that the peer roamed to (whitepaper §2.1).

Only authenticated packets move a peer; callers of `observe` guarantee that. Cookie replies never move a peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravenvpn.dataplane.contract import Endpoint, Source


class PeerEndpoints:
    """The order of endpoints to try: the confirmed one first, then the candidates, best first. Retries go round."""

    __slots__ = ("_attempt", "_candidates", "confirmed", "source")

    def __init__(self) -> None:
        self._candidates: tuple[Endpoint, ...] = ()
        self._attempt = 0  # position in the order, modulo its length
        self.confirmed: Endpoint | None = None  # the last authenticated packet came from here
        # Our address that this packet was sent to; None: the kernel chooses. Set only while `current` is `confirmed`.
        self.source: Source | None = None

    @property
    def candidates(self) -> tuple[Endpoint, ...]:
        """The configured endpoints, best first."""
        return self._candidates

    def current(self) -> Endpoint | None:
        """Return the endpoint for the next initiation; None if no endpoint is known."""
        order = self._order()
        return order[self._attempt % len(order)] if order else None

    def try_next(self) -> None:
        """Go on to the next endpoint after an initiation without an answer; the kernel chooses the source again."""
        self.source = None
        self._attempt += 1

    def observe(self, endpoint: Endpoint, source: Source | None, roaming: bool) -> bool:
        """Record that an authenticated packet came from `endpoint` to `source`; return whether the peer is now there.

        With roaming off only a candidate is accepted, or any endpoint while none is known.
        """
        if not roaming and endpoint not in self._candidates and self._order():
            return False
        self.confirmed, self.source, self._attempt = endpoint, source, 0
        return True

    def configure(self, candidates: Sequence[Endpoint]) -> bool:
        """Replace the candidates; return whether the current endpoint was reset to the best candidate.

        The confirmed endpoint stays unless it was a candidate and is none any more, or another best candidate was
        configured that is not the confirmed endpoint.
        """
        before, self._candidates = self._candidates, tuple(candidates)
        if self._candidates == before:
            return False
        withdrawn = self.confirmed in before and self.confirmed not in self._candidates
        displaced = bool(self._candidates) and self._candidates[0] not in (self.confirmed, *before[:1])
        if self.confirmed is None or withdrawn or displaced:
            self.set_current(None)
            return True
        return False

    def set_current(self, endpoint: Endpoint | None) -> None:
        """Set the confirmed endpoint by configuration, as `wg set … endpoint` does; None goes back to the
        candidates."""
        self.confirmed, self.source, self._attempt = endpoint, None, 0

    def _order(self) -> tuple[Endpoint, ...]:
        if self.confirmed is None:
            return self._candidates
        return (self.confirmed, *(one for one in self._candidates if one != self.confirmed))
