"""Where a peer is: the addresses it may have, and the one it was last heard from (whitepaper §2.1).

Only authenticated packets move a peer; whoever calls `heard_from` vouches for that. Cookie replies never do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravenvpn.dataplane.contract import Endpoint, Source


class PeerEndpoints:
    """Candidates, best first, and the confirmed endpoint, which comes before them. Retries go round."""

    __slots__ = ("_candidates", "_turn", "confirmed", "source")

    def __init__(self) -> None:
        self._candidates: tuple[Endpoint, ...] = ()
        self._turn = 0
        self.confirmed: Endpoint | None = None  # the last authenticated packet came from here
        # And to this address of ours; None lets the kernel choose. Set only while `current` is `confirmed`.
        self.source: Source | None = None

    @property
    def candidates(self) -> tuple[Endpoint, ...]:
        return self._candidates

    def current(self) -> Endpoint | None:
        """Where the next initiation goes; None if nothing is known."""
        order = self._order()
        return order[self._turn % len(order)] if order else None

    def retry(self) -> None:
        """No answer there: try the next one, and from any address of ours."""
        self.source = None
        self._turn += 1

    def heard_from(self, endpoint: Endpoint, source: Source | None, roaming: bool) -> bool:
        """An authenticated packet came from there; says whether it is where the peer is now.

        With roaming off only a candidate counts, or anything while nothing is known.
        """
        if not roaming and endpoint not in self._candidates and self._order():
            return False
        self.confirmed, self.source, self._turn = endpoint, source, 0
        return True

    def configure(self, candidates: Sequence[Endpoint]) -> bool:
        """Take new candidates; says whether the peer is now somewhere else.

        The confirmed endpoint holds unless it was a candidate and is none any more, or the best candidate changed
        to something else.
        """
        before, self._candidates = self._candidates, tuple(candidates)
        if self._candidates == before:
            return False
        withdrawn = self.confirmed in before and self.confirmed not in self._candidates
        displaced = bool(self._candidates) and self._candidates[0] not in (self.confirmed, *before[:1])
        if self.confirmed is None or withdrawn or displaced:
            self.move_to(None)
            return True
        return False

    def move_to(self, endpoint: Endpoint | None) -> None:
        """An operator's word: be there from now on; None goes back to the candidates."""
        self.confirmed, self.source, self._turn = endpoint, None, 0

    def _order(self) -> tuple[Endpoint, ...]:
        if self.confirmed is None:
            return self._candidates
        return (self.confirmed, *(one for one in self._candidates if one != self.confirmed))
