"""The difference of two plans, computed from the parts that changed.

A change often moves an item from one part to another: a node joins another region, or another hub serves one. An item
that one part loses and another gains is no difference, and a moved item must not be removed in between.

Hashing an ipaddress prefix runs Python code, and a first plan has tens of thousands of prefixes: sets are built only
where both sides have items to compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from ravenvpn.mesh.hoststate import Address, HostDelta, HostState, PacketFilter, Prefix, Route
from ravenvpn.mesh.nodeplan import AcceptChange, PeerPlan, TunnelDelta, TunnelPlan

Item = TypeVar("Item")


class PlanPart(Protocol):
    """The fields that the plans of the own region and of a remote region share."""

    @property
    def peers(self) -> Mapping[str, PeerPlan]:
        """Peers of the tunnel, by node name."""

    @property
    def routes(self) -> Mapping[Prefix, tuple[str, ...]]:
        """Egress: the peers that carry a prefix, by prefix."""

    @property
    def accepts(self) -> Mapping[str, tuple[Prefix, ...]]:
        """Ingress: prefixes accepted from a peer, by node name."""

    @property
    def host_routes(self) -> tuple[Route, ...]:
        """Routes of the kernel, fail-closed ones included."""


class PrefixOrder:
    """Sort key of prefixes: family, network, length.

    One prefix object appears in many lists, so its key is kept by object identity. An instance must not live longer
    than the prefixes it has seen, or another object could get the same identity.
    """

    def __init__(self) -> None:
        self._keys: dict[int, int] = {}  # id(prefix) → key

    def __call__(self, prefix: Prefix) -> int:
        """Return the key; smaller sorts first."""
        key = self._keys.get(id(prefix))
        if key is None:
            key = prefix.version << 140 | int(prefix.network_address) << 8 | prefix.prefixlen
            self._keys[id(prefix)] = key
        return key


class PlanDifference:
    """Collects the changes of any number of parts, then gives the difference. Each part is added at most once."""

    def __init__(self) -> None:
        self._peers_set: dict[str, PeerPlan] = {}
        self._peers_gone: dict[str, PeerPlan] = {}
        self._routes_set: dict[Prefix, tuple[str, ...]] = {}
        self._routes_gone: dict[Prefix, tuple[str, ...]] = {}
        self._accepts_added: dict[str, list[Prefix]] = {}  # by peer
        self._accepts_gone: dict[str, list[Prefix]] = {}
        self._host_added: list[Route] = []
        self._host_gone: list[Route] = []
        self._remote_added: set[Prefix] = set()  # elements of the packet filter
        self._remote_gone: set[Prefix] = set()

    def add_part(self, before: PlanPart, after: PlanPart) -> None:
        """Add the change of one part from `before` to `after`."""
        if before is after:
            return
        for name, peer in after.peers.items():
            if before.peers.get(name) != peer:
                self._peers_set[name] = peer
        self._peers_gone.update((name, peer) for name, peer in before.peers.items() if name not in after.peers)
        if before.routes:
            for prefix, names in after.routes.items():
                if before.routes.get(prefix) != names:
                    self._routes_set[prefix] = names
            self._routes_gone.update((p, names) for p, names in before.routes.items() if p not in after.routes)
        else:
            self._routes_set.update(after.routes)
        for name in dict.fromkeys((*before.accepts, *after.accepts)):
            old, new = before.accepts.get(name, ()), after.accepts.get(name, ())
            if old != new:
                self._accepts_added.setdefault(name, []).extend(without(new, old))
                self._accepts_gone.setdefault(name, []).extend(without(old, new))
        self._host_added += without(after.host_routes, before.host_routes)
        self._host_gone += without(before.host_routes, after.host_routes)

    def add_remote(self, before: frozenset[Prefix], after: frozenset[Prefix]) -> None:
        """Add the change of one remote region's elements of the packet filter."""
        self._remote_added |= after - before
        self._remote_gone |= before - after

    def apply_to_remote(self, remote: set[Prefix]) -> None:
        """Change `remote`, all remote elements of the packet filter before the update, to those after it."""
        remote -= self._remote_gone
        remote |= self._remote_added

    def tunnel(self, before: TunnelPlan, after: TunnelPlan) -> TunnelDelta:
        """Return the tunnel's difference; `before` and `after` hold the settings, without peers and prefixes."""
        # A peer that left one part and entered another one has stayed; if it is equal, there is no difference.
        gone = self._peers_gone.keys() - self._peers_set.keys()
        peers = [p for name, p in self._peers_set.items() if self._peers_gone.get(name) != p]
        routes = dict(self._routes_set)
        for prefix, names in self._routes_gone.items():
            if routes.get(prefix) == names:
                del routes[prefix]
            elif prefix not in routes and not gone.issuperset(names):
                routes[prefix] = ()
        changes: list[AcceptChange] = []
        for name in sorted(self._accepts_added):
            added, removed = self._accepts_added[name], self._accepts_gone[name]
            change = AcceptChange(name, without(added, removed), () if name in gone else without(removed, added))
            if change.add or change.remove:
                changes.append(change)
        return TunnelDelta(
            settings=after if before != after else None,
            peers_set=tuple(sorted(peers, key=lambda p: p.name)),
            peers_removed=tuple(sorted(gone)),
            routes=tuple(routes.items()),
            accepts=tuple(changes),
        )

    def host(self, before: HostState, after: HostState, remote: set[Prefix]) -> HostDelta:
        """Return the host's difference.

        `before` and `after` hold everything but routes of parts and remote elements of the packet filter; `remote`
        are these elements after the update (see `apply_to_remote`).
        """
        old, new = before.packet_filter, after.packet_filter
        replaced = _frame(old) != _frame(new)
        fresh, lapsed = self._remote_added - self._remote_gone, self._remote_gone - self._remote_added
        added_filter = removed_filter = None
        if replaced:
            earlier = (remote - fresh) | lapsed
            added_filter = new and replace(new, remote=_sorted(remote))
            removed_filter = old and replace(old, remote=_sorted(earlier))
        elif old is not None and new is not None:
            # Each side names all of its VXLAN sources, so another set of them needs both sides.
            moved = new.vxlan_sources != old.vxlan_sources
            added_filter = _elements(new, without(new.local, old.local), fresh, always=moved)
            removed_filter = _elements(old, without(old.local, new.local), lapsed, always=moved)
        return HostDelta(
            added=_partial(after, before, without(self._host_added, self._host_gone), added_filter),
            removed=_partial(before, after, without(self._host_gone, self._host_added), removed_filter),
            filter_replaced=replaced,
        )


def without(these: Sequence[Item], others: Sequence[Item]) -> tuple[Item, ...]:
    """Return `these`, in their order, except those that are among `others`."""
    known = set(others) if these else None
    return tuple(one for one in these if one not in known) if known else tuple(these)


def _sorted(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(prefixes, key=PrefixOrder()))


def _frame(packet_filter: PacketFilter | None) -> tuple[bool, tuple[Address, ...]] | None:
    """Return a filter's fields without the elements of its sets: if they changed, the table is written anew."""
    if packet_filter is None:
        return None
    return packet_filter.relays, tuple(packet_filter.own_sources)


def _elements(
    frame: PacketFilter, local: tuple[Prefix, ...], remote: set[Prefix], *, always: bool = False
) -> PacketFilter | None:
    """Return the filter with these prefixes alone; None if there are none, unless `always`."""
    return replace(frame, local=local, remote=_sorted(remote)) if local or remote or always else None


def _partial(
    this: HostState, other: HostState, routes: tuple[Route, ...], packet_filter: PacketFilter | None
) -> HostState:
    """Return the items of `this` that are not in `other`, with routes and filter as given."""
    return HostState(
        tun=this.tun if this.tun != other.tun else None,
        vxlan=this.vxlan if this.vxlan != other.vxlan else None,
        addresses=without(this.addresses, other.addresses),
        neighbours=without(this.neighbours, other.neighbours),
        forwarding=without(this.forwarding, other.forwarding),
        routes=routes,
        rules=without(this.rules, other.rules),
        sysctls=without(this.sysctls, other.sysctls),
        packet_filter=packet_filter,
    )
