"""Which prefixes go to whom and are accepted from whom, by the names of peers.

The data plane looks addresses up; this remembers what it was told, so that people can be shown it and the next change
can be worked out. WireGuard's allowed IPs are the case in which one peer has a prefix in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

from ravenvpn.prefixes import Prefix


class AllowedIPs:
    """Every method is O(1) in the number of prefixes, or in those of the one peer it is about."""

    def __init__(self) -> None:
        self._routes: dict[Prefix, tuple[str, ...]] = {}
        self._accepters: dict[Prefix, set[str]] = {}
        self._of: dict[str, set[Prefix]] = {}  # routed to or accepted from

    def route(self, prefix: Prefix, names: Sequence[str]) -> None:
        """`prefix` goes to these peers and no others; empty: to nobody."""
        before = self._routes.pop(prefix, ())
        if names:
            self._routes[prefix] = tuple(names)
        self._settle(prefix, {*before, *names})

    def accept(self, name: str, add: Iterable[Prefix], remove: Iterable[Prefix]) -> None:
        for prefix in remove:
            accepters = self._accepters.get(prefix, set())
            accepters.discard(name)
            if not accepters:
                self._accepters.pop(prefix, None)
            self._settle(prefix, {name})
        for prefix in add:
            self._accepters.setdefault(prefix, set()).add(name)
            self._settle(prefix, {name})

    def forget(self, name: str) -> None:
        """The peer is gone."""
        for prefix in self._of.get(name, set()).copy():
            if name in (names := self._routes.get(prefix, ())):
                self.route(prefix, tuple(other for other in names if other != name))
            self.accept(name, (), (prefix,))

    def of(self, name: str) -> list[Prefix]:
        """All prefixes routed to this peer or accepted from it; IPv4 first, in order."""
        return sorted(self._of.get(name, ()), key=_order)

    def routed_to(self, prefix: Prefix) -> tuple[str, ...]:
        return self._routes.get(prefix, ())

    def accepted_from(self, prefix: Prefix) -> frozenset[str]:
        return frozenset(self._accepters.get(prefix, ()))

    def _settle(self, prefix: Prefix, names: set[str]) -> None:
        routes, accepters = self._routes.get(prefix, ()), self._accepters.get(prefix, set())
        for name in names:
            if name in routes or name in accepters:
                self._of.setdefault(name, set()).add(prefix)
            elif name in self._of:
                self._of[name].discard(prefix)
                if not self._of[name]:
                    del self._of[name]


def _order(prefix: Prefix) -> tuple[bool, int, int]:
    return not isinstance(prefix, IPv4Network), int(prefix.network_address), prefix.prefixlen
