"""The difference of two plans, gathered piece by piece from the pieces that changed.

A change often moves a thing from one piece to another: a node changes its region, a hub takes over. What one piece
gives up and another takes must cancel out, and a move must never pass through "gone".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from ravenvpn.mesh.hoststate import HostDelta, HostState, PacketFilter, Prefix, Route
from ravenvpn.mesh.nodeplan import AcceptChange, PeerPlan, TunnelDelta, TunnelPlan


class Piece(Protocol):
    """What the own part and a fragment have in common."""

    @property
    def peers(self) -> Mapping[str, PeerPlan]: ...
    @property
    def routes(self) -> Mapping[Prefix, tuple[str, ...]]: ...
    @property
    def accepts(self) -> frozenset[tuple[str, Prefix]]: ...
    @property
    def host_routes(self) -> tuple[Route, ...]: ...


def prefix_key(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def route_key(route: Route) -> tuple[Any, ...]:
    return (*prefix_key(route.prefix), route.table, route.metric, route.kind, str(route.via), str(route.device))


class Differences:
    """Gathers `before` → `after` of any number of pieces. Every piece is named at most once."""

    def __init__(self) -> None:
        self._peers_set: dict[str, PeerPlan] = {}
        self._peers_gone: dict[str, PeerPlan] = {}
        self._routes_set: dict[Prefix, tuple[str, ...]] = {}
        self._routes_gone: dict[Prefix, tuple[str, ...]] = {}
        self._accepts_added: set[tuple[str, Prefix]] = set()
        self._accepts_gone: set[tuple[str, Prefix]] = set()
        self._host_added: dict[Route, Route] = {}
        self._host_gone: set[Route] = set()
        self._remote_added: set[Prefix] = set()
        self._remote_gone: set[Prefix] = set()

    def piece(self, before: Piece, after: Piece) -> None:
        if before is after:
            return
        for name, peer in after.peers.items():
            if before.peers.get(name) != peer:
                self._peers_set[name] = peer
        self._peers_gone.update((name, peer) for name, peer in before.peers.items() if name not in after.peers)
        for prefix, names in after.routes.items():
            if before.routes.get(prefix) != names:
                self._routes_set[prefix] = names
        self._routes_gone.update((p, names) for p, names in before.routes.items() if p not in after.routes)
        self._accepts_added |= after.accepts - before.accepts
        self._accepts_gone |= before.accepts - after.accepts
        old, new = set(before.host_routes), set(after.host_routes)
        self._host_added.update((route, route) for route in after.host_routes if route not in old)
        self._host_gone |= old - new

    def remote(self, before: frozenset[Prefix], after: frozenset[Prefix]) -> None:
        self._remote_added |= after - before
        self._remote_gone |= before - after

    def tunnel(self, before: TunnelPlan, after: TunnelPlan) -> TunnelDelta:
        """`before` and `after` are the settings, without peers, routes and acceptances."""
        # A peer that left one piece as it entered another has stayed; if it is unchanged there is nothing to say.
        gone = self._peers_gone.keys() - self._peers_set.keys()
        peers = [p for name, p in self._peers_set.items() if self._peers_gone.get(name) != p]
        routes = {p: names for p, names in self._routes_set.items() if self._routes_gone.get(p) != names}
        for prefix, names in self._routes_gone.items():
            if prefix not in self._routes_set and not gone.issuperset(names):
                routes[prefix] = ()
        changes: dict[str, tuple[list[Prefix], list[Prefix]]] = {}
        for name, prefix in self._accepts_added - self._accepts_gone:
            changes.setdefault(name, ([], []))[0].append(prefix)
        for name, prefix in self._accepts_gone - self._accepts_added:
            if name not in gone:
                changes.setdefault(name, ([], []))[1].append(prefix)
        return TunnelDelta(
            settings=after if before != after else None,
            peers_set=tuple(sorted(peers, key=lambda p: p.name)),
            peers_removed=tuple(sorted(gone)),
            routes=tuple(sorted(routes.items(), key=lambda item: prefix_key(item[0]))),
            accepts=tuple(
                AcceptChange(name, tuple(sorted(add, key=prefix_key)), tuple(sorted(remove, key=prefix_key)))
                for name, (add, remove) in sorted(changes.items())
            ),
        )

    def move_remote(self, remote: set[Prefix]) -> None:
        """Bring a set of all remote prefixes from before to after."""
        remote -= self._remote_gone
        remote |= self._remote_added

    def host(self, before: HostState, after: HostState, remote: set[Prefix]) -> HostDelta:
        """`before` and `after` hold everything but the pieces' routes and the filter's remote prefixes; `remote`
        are the latter as they are now."""
        added_routes = [r for r in self._host_added.values() if r not in self._host_gone]
        gone_routes = self._host_gone - self._host_added.keys()
        old, new = before.packet_filter, after.packet_filter
        replaced = _frame(old) != _frame(new)
        added_filter = removed_filter = None
        if replaced:
            gone = self._remote_gone - self._remote_added
            earlier = (remote - (self._remote_added - self._remote_gone)) | gone
            added_filter = new and replace(new, remote=tuple(sorted(remote, key=prefix_key)))
            removed_filter = old and replace(old, remote=tuple(sorted(earlier, key=prefix_key)))
        elif old is not None and new is not None:
            added_filter = _elements(new, set(new.local) - set(old.local), self._remote_added - self._remote_gone)
            removed_filter = _elements(new, set(old.local) - set(new.local), self._remote_gone - self._remote_added)
        return HostDelta(
            added=_partial(after, before, tuple(sorted(added_routes, key=route_key)), added_filter),
            removed=_partial(before, after, tuple(sorted(gone_routes, key=route_key)), removed_filter),
            filter_replaced=replaced,
        )


def _frame(packet_filter: PacketFilter | None) -> tuple[Any, ...] | None:
    """A filter without its elements: if that changed, the elements alone do not tell the difference."""
    return None if packet_filter is None else (packet_filter.relays, tuple(packet_filter.own_sources))


def _elements(frame: PacketFilter, local: set[Prefix], remote: set[Prefix]) -> PacketFilter | None:
    if not local and not remote:
        return None
    return PacketFilter(
        local=tuple(sorted(local, key=prefix_key)),
        remote=tuple(sorted(remote, key=prefix_key)),
        relays=frame.relays,
        own_sources=frame.own_sources,
        reason=frame.reason,
    )


def _partial(
    this: HostState, other: HostState, routes: tuple[Route, ...], packet_filter: PacketFilter | None
) -> HostState:
    """What `this` has and `other` has not."""
    return HostState(
        tun=this.tun if this.tun != other.tun else None,
        vxlan=this.vxlan if this.vxlan != other.vxlan else None,
        addresses=_without(this.addresses, other.addresses),
        neighbours=_without(this.neighbours, other.neighbours),
        forwarding=_without(this.forwarding, other.forwarding),
        routes=routes,
        rules=_without(this.rules, other.rules),
        sysctls=_without(this.sysctls, other.sysctls),
        packet_filter=packet_filter,
    )


def _without(these: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    known = set(others)
    return tuple(one for one in these if one not in known)
