"""Record of the prefixes routed to and accepted from each peer, by the names of peers.

The data plane does the look-ups per packet; this records what it was given, for status and for working out the next
change. WireGuard's allowed IPs are the case in which one peer has a prefix in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ravenvpn.prefixes import Prefix, sort_key


class AllowedIPs:
    """Every method is O(1) in the number of all prefixes, and linear in those of the one peer it is about.

    Exact prefixes only: nothing here looks for the longest match, so plain dictionaries are enough.
    """

    def __init__(self) -> None:
        self._routes: dict[Prefix, tuple[str, ...]] = {}
        self._accepters: dict[Prefix, set[str]] = {}
        self._by_peer: dict[str, set[Prefix]] = {}  # routed to or accepted from; no empty sets

    def route(self, prefix: Prefix, names: Sequence[str]) -> None:
        """Route `prefix` to these peers and to no others; an empty sequence removes the route."""
        before = self._routes.pop(prefix, ())
        if names:
            self._routes[prefix] = tuple(names)
        self._reindex(prefix, {*before, *names})

    def accept(self, name: str, add: Iterable[Prefix], remove: Iterable[Prefix]) -> None:
        """Remove, then add prefixes accepted from this peer."""
        for prefix in remove:
            accepters = self._accepters.get(prefix, set())
            accepters.discard(name)
            if not accepters:
                self._accepters.pop(prefix, None)
            self._reindex(prefix, {name})
        for prefix in add:
            self._accepters.setdefault(prefix, set()).add(name)
            self._reindex(prefix, {name})

    def remove_peer(self, name: str) -> None:
        """Remove every route to and every prefix accepted from this peer."""
        for prefix in self._by_peer.get(name, set()).copy():
            if name in (names := self._routes.get(prefix, ())):
                self.route(prefix, tuple(other for other in names if other != name))
            self.accept(name, (), (prefix,))

    def prefixes(self, name: str) -> list[Prefix]:
        """Return all prefixes routed to this peer or accepted from it; IPv4 first, in order."""
        return sorted(self._by_peer.get(name, ()), key=sort_key)

    def routed_to(self, prefix: Prefix) -> tuple[str, ...]:
        """Return the peers that exactly this prefix is routed to; empty if it is not."""
        return self._routes.get(prefix, ())

    def accepted_from(self, prefix: Prefix) -> frozenset[str]:
        """Return the peers that exactly this prefix is accepted from."""
        return frozenset(self._accepters.get(prefix, ()))

    def _reindex(self, prefix: Prefix, names: set[str]) -> None:
        """Enter the prefix for those of these peers that have it, and delete it for the others."""
        routes, accepters = self._routes.get(prefix, ()), self._accepters.get(prefix, set())
        for name in names:
            if name in routes or name in accepters:
                self._by_peer.setdefault(name, set()).add(prefix)
            elif name in self._by_peer:
                self._by_peer[name].discard(prefix)
                if not self._by_peer[name]:
                    del self._by_peer[name]
