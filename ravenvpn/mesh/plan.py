"""From world to plan: `plan(world, liveness, me)`, and the `Planner` that does the same at the price of what changed.

A plan is the node's own part (`mesh.own_region`) and one part for every other region (`mesh.remote_region`). The
planner keeps them, finds what an update touches, folds only that anew, and says what became different. A from-scratch
plan is a planner's first update, so the two can differ only in what an update forgets to touch; tests compare them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import replace

from ravenvpn.mesh import identity
from ravenvpn.mesh.claims import NetworkSet
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.conflict_index import ConflictIndex
from ravenvpn.mesh.context import Context, LocalFacts, Settings
from ravenvpn.mesh.hoststate import HostState, PacketFilter, Prefix
from ravenvpn.mesh.liveness import UNKNOWN, Liveness
from ravenvpn.mesh.model import Changes, Gateway, World, host_prefix, lan_addresses
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, PlanDelta, TunnelPlan
from ravenvpn.mesh.own_region import OwnRegionPlan, home, own_sources, role_of
from ravenvpn.mesh.plan_difference import Differences, PrefixOrder
from ravenvpn.mesh.remote_region import EMPTY, RemoteRegionPlan, remote_fragment, way_to
from ravenvpn.mesh.topology import MAX_HUBS, Hub, Region, acting, as_hub, digest, hub_rank
from ravenvpn.mesh.vxlan_members import Overlay, overlay, seats


def plan(
    world: World,
    liveness: Liveness = UNKNOWN,
    me: str = "",
    facts: LocalFacts | None = None,
    settings: Settings | None = None,
) -> NodePlan:
    """Everything the node `me` has to do in this world. Pure: equal inputs make equal plans."""
    planner = Planner(me, settings or Settings())
    planner.update(world, liveness, facts or LocalFacts())
    return planner.plan()


class Planner:
    """The plan of one node, kept current. Not shared between threads."""

    def __init__(self, me: str, settings: Settings | None = None) -> None:
        self.me = me
        self._settings = settings or Settings()
        self._world = World()
        self._liveness = UNKNOWN
        self._conflicts = self._no_conflicts(World().mesh)
        self._regions: dict[str, Region] = {}
        self._regions_of: dict[str, set[str]] = {}  # node → Gateways that name it anywhere
        self._hub_ranks: list[tuple[int, str]] = []
        self._context: Context | None = None
        self._home = OwnRegionPlan()
        self._fragments: dict[str, RemoteRegionPlan] = {}
        self._relayed: set[str] = set()  # regions whose fragment depends on the hubs
        self._remote: set[Prefix] = set()
        self._plan: NodePlan | None = None

    def update(self, world: World, liveness: Liveness = UNKNOWN, facts: LocalFacts | None = None) -> PlanDelta:
        """Move to this world; returns what that changed. Without `facts` those of the last update stay in force."""
        old_tunnel, old_host = self._tunnel_settings(), self.host_frame()
        touched = self._digest(world)
        before = self._context
        known = before.facts if before else LocalFacts()
        context = self._make_context(known if facts is None else facts, liveness)
        stale, doubtful = set(touched), self._touched_by(liveness)
        stale |= {name for name in doubtful if self._acting(name, liveness) != self._acting(name, self._liveness)}
        self._liveness = liveness
        if before is None or replace(context, hubs=before.hubs) != before:
            stale |= self._regions.keys() | self._fragments.keys()
        elif context.hubs != before.hubs:
            stale |= self._relayed
        self._context = context
        stale |= {name for name in doubtful - stale if self._way_changed(name, context)}

        differences = Differences()
        if context != before or (context.region is not None and context.region.name in stale):
            new_home = self._make_home(context)
            differences.piece(self._home, new_home)
            self._home = new_home
        for name in sorted(stale):
            self._fold(name, context, differences)
        differences.move_remote(self._remote)
        self._plan = None
        return PlanDelta(
            differences.tunnel(old_tunnel, self._tunnel_settings()),
            differences.host(old_host, self.host_frame(), self._remote),
        )

    @property
    def role(self) -> NodeRole:
        return self._context.role if self._context else NodeRole.NONE

    @property
    def region(self) -> str:
        """Of this node; empty where it has none."""
        return self._context.region.name if self._context and self._context.region else ""

    @property
    def uplink(self) -> str:
        """The gateway of our region that takes what this node sends elsewhere; empty where the node itself does."""
        seat = self._context.overlay.uplink if self._context and self._context.overlay else None
        return seat.node if seat else ""

    def tunnel_settings(self) -> TunnelPlan:
        """The tunnel's own part of the plan, without peers and prefixes: what costs nothing to ask for."""
        return self._tunnel_settings()

    def host_frame(self) -> HostState:
        """The host's part of the plan without routes and remote prefixes: as cheap."""
        packet_filter = None
        if self._context is not None and self._context.role is not NodeRole.NONE:
            packet_filter = PacketFilter(
                local=tuple(sorted(self._home.local, key=PrefixOrder())),
                relays=self._context.relays,
                own_sources=tuple(self._context.sources[family] for family in sorted(self._context.sources)),
                reason="sources stay what they are on the way between regions",
            )
        return HostState(
            tun=self._home.tun,
            vxlan=self._home.vxlan,
            addresses=self._home.addresses,
            neighbours=self._home.neighbours,
            forwarding=self._home.forwarding,
            rules=self._home.rules,
            sysctls=self._home.sysctls,
            packet_filter=packet_filter,
        )

    def host(self) -> HostState:
        """What `plan().host` says, its routes in no order and without the filter's remote prefixes. It takes
        milliseconds where the whole plan of a large world takes a third of a second, and the loop is waiting."""
        pieces: list[OwnRegionPlan | RemoteRegionPlan] = [self._home, *self._fragments.values()]
        return replace(self.host_frame(), routes=tuple(route for piece in pieces for route in piece.host_routes))

    def relays(self) -> tuple[tuple[str, str], ...]:
        """(far region, hub region) of every region that is met through a hub."""
        return tuple(
            (name, self._fragments[name].relay) for name in sorted(self._relayed) if self._fragments[name].relay
        )

    def conflicts(self) -> tuple[Conflict, ...]:
        """All that the world holds, without making the whole plan."""
        return self._conflicts.conflicts()

    def plan(self) -> NodePlan:
        """The whole plan as of the last update."""
        if self._plan is None:
            self._plan = self._whole()
        return self._plan

    # What an update touches.

    def _digest(self, world: World) -> set[str]:
        """Take the new world in; returns the regions that are not what they were."""
        changes = world.changes(self._world)
        if world.mesh != self._world.mesh:
            # Everything is another's, what the world before had and this one has not as well.
            self._conflicts = self._no_conflicts(world.mesh)
            changes = Changes(*map(set.union, world.changes(World()), self._world.changes(World())))
        affected = set(changes.gateways)
        for name in changes.gateways:
            self._rename_nodes(name, self._world.gateways.get(name), world.gateways.get(name))
        for node in changes.peers:
            affected |= self._regions_of.get(node, set())
        self._world = world
        affected |= self._conflicts.update(affected, changes.peers, world)
        for name in affected:
            gateway = world.gateways.get(name)
            self._replace_region(name, self._digested(gateway) if gateway else None)
        return affected

    def _no_conflicts(self, mesh: str) -> ConflictIndex:
        return ConflictIndex(mesh, forward_node_ip=self._settings.forward_node_ip)

    def _digested(self, gateway: Gateway) -> Region:
        refused = self._conflicts.refused(gateway.name)
        return digest(gateway, self._world.peers, refused, forward_node_ip=self._settings.forward_node_ip)

    def _rename_nodes(self, name: str, before: Gateway | None, after: Gateway | None) -> None:
        old, new = _nodes_named(before), _nodes_named(after)
        for node in old - new:
            regions = self._regions_of[node]
            regions.discard(name)
            if not regions:
                del self._regions_of[node]
        for node in new - old:
            self._regions_of.setdefault(node, set()).add(name)

    def _replace_region(self, name: str, region: Region | None) -> None:
        before = self._regions.pop(name, None)
        rank = (hub_rank(name), name)
        if before is not None and before.serves_as_hub:
            del self._hub_ranks[bisect_left(self._hub_ranks, rank)]
        if region is not None:
            self._regions[name] = region
            if region.serves_as_hub:
                insort(self._hub_ranks, rank)

    def _touched_by(self, liveness: Liveness) -> set[str]:
        nodes = liveness.changes(self._liveness)
        if self._context is not None and any(node in nodes for hub in self._context.hubs for node in hub.nodes):
            return self._relayed | self._regions_with(nodes)
        return self._regions_with(nodes)

    def _regions_with(self, nodes: Iterable[str]) -> set[str]:
        return {name for node in nodes for name in self._regions_of.get(node, ())}

    # Folding.

    def _make_context(self, facts: LocalFacts, liveness: Liveness) -> Context:
        region = self._own_region(liveness)
        role, entry = role_of(self.me, region)
        info = None
        if region is not None:
            nodes = self._world.gateways[region.name].status.nodes
            info = next((i for i in nodes if i.node == self.me), None)
        sources, _ = own_sources(info, self._world.peers.get(self.me), facts, self._settings)
        return Context(
            node=self.me,
            mesh=self._world.mesh,
            role=role,
            region=region,
            me=entry,
            sources=sources,
            shadowed=self._conflicts.refused(region.name).shadowed if region else frozenset(),
            near=self._near(region, facts),
            facts=facts,
            settings=self._settings,
            hubs=self._hubs(liveness),
            overlay=self._overlay(region, facts, liveness),
        )

    def _near(self, region: Region | None, facts: LocalFacts) -> NetworkSet:
        """What this node takes for its own network: its links, and what its region says of its pods and nodes."""
        if region is None or not self._settings.forward_node_ip:
            return NetworkSet()
        found = set(facts.networks)
        for info in self._world.gateways[region.name].status.nodes:
            found.update(info.subnets)
            found.update(host_prefix(a) for a in lan_addresses(info, self._world.peers.get(info.node)))
        return NetworkSet(frozenset(found))

    def _overlay(self, region: Region | None, facts: LocalFacts, liveness: Liveness) -> Overlay | None:
        if region is None:
            return None
        refused = self._conflicts.refused(region.name)
        everybody = seats(self._world.gateways[region.name], self._world.peers, self._world.mesh, refused)
        return overlay(self.me, region, everybody, facts.addresses, liveness)

    def _own_region(self, liveness: Liveness) -> Region | None:
        for name in sorted(self._regions_of.get(self.me, ())):
            members = {info.node for info in self._world.gateways[name].status.nodes}
            if self.me in members - self._conflicts.refused(name).nodes:
                return self._acting(name, liveness)
        return None

    def _acting(self, name: str, liveness: Liveness) -> Region | None:
        region = self._regions.get(name)
        return acting(region, liveness, self.me) if region else None

    def _hubs(self, liveness: Liveness) -> tuple[Hub, ...]:
        """Which regions serve as hubs does not depend on who lives, or both ends of a pair could differ in it."""
        found = []
        for _, name in self._hub_ranks[:MAX_HUBS]:
            region = self._acting(name, liveness)
            found.append(as_hub(region if region and region.serves_as_hub else self._regions[name]))
        return tuple(found)

    def _make_home(self, context: Context) -> OwnRegionPlan:
        name = context.region.name if context.region else ""
        gateway = self._world.gateways.get(name)
        made = home(context, gateway, self._world.peers, self._conflicts.refused(name))
        info = next((i for i in gateway.status.nodes if i.node == self.me), None) if gateway else None
        _, notes = own_sources(info, self._world.peers.get(self.me), context.facts, self._settings)
        return replace(made, notes=(*made.notes, *notes))

    def _way_changed(self, name: str, context: Context) -> bool:
        region, fragment = self._acting(name, self._liveness), self._fragments.get(name)
        return region is not None and fragment is not None and fragment.way != way_to(region, context, self._liveness)

    def _fold(self, name: str, context: Context, differences: Differences) -> None:
        before = self._fragments.pop(name, EMPTY)
        region = self._acting(name, self._liveness)
        after = EMPTY
        if region is not None and (context.region is None or region.name != context.region.name):
            after = remote_fragment(region, context, self._liveness)
        if region is not None:
            self._fragments[name] = after
        (self._relayed.add if after.way.needs_hub else self._relayed.discard)(name)
        differences.piece(before, after)
        differences.remote(before.remote, after.remote)

    # The whole.

    def _tunnel_settings(self) -> TunnelPlan:
        context = self._context
        if context is None or context.role is NodeRole.NONE:
            return TunnelPlan()
        return TunnelPlan(
            listen_port=self._home.listen_port,
            mtu=context.facts.tunnel_mtu(),
            own_address=identity.tunnel_address(context.mesh, self.me),
            device=context.is_gateway,
        )

    def _whole(self) -> NodePlan:
        pieces: list[OwnRegionPlan | RemoteRegionPlan] = [
            self._home,
            *(self._fragments[name] for name in sorted(self._fragments)),
        ]
        order = PrefixOrder()
        accepts: dict[str, list[Prefix]] = {}
        for piece in pieces:
            for name, prefixes in piece.accepts.items():
                accepts.setdefault(name, []).extend(prefixes)
        frame = self.host_frame()
        if frame.packet_filter is not None:
            remote = tuple(sorted(self._remote, key=order))
            frame = replace(frame, packet_filter=replace(frame.packet_filter, remote=remote))
        routes = [route for piece in pieces for route in piece.host_routes]
        routes.sort(key=lambda route: (order(route.prefix), route.table, route.metric))
        context = self._context
        return NodePlan(
            node=self.me,
            role=context.role if context else NodeRole.NONE,
            region=context.region.name if context and context.region else "",
            tunnel=replace(
                self._tunnel_settings(),
                peers=tuple(sorted((p for piece in pieces for p in piece.peers.values()), key=lambda p: p.name)),
                routes=tuple(
                    sorted((r for piece in pieces for r in piece.routes.items()), key=lambda r: order(r[0]))
                ),
                accepts=tuple((name, tuple(sorted(held, key=order))) for name, held in sorted(accepts.items())),
            ),
            host=replace(frame, routes=tuple(routes)),
            relays=self.relays(),
            conflicts=self._conflicts.conflicts(),
            notes=tuple(dict.fromkeys(note for piece in pieces for note in piece.notes)),
        )


def _nodes_named(gateway: Gateway | None) -> set[str]:
    if gateway is None:
        return set()
    endpoints = (*gateway.endpoints, *gateway.status.active)
    return {info.node for info in gateway.status.nodes} | {e.node for e in endpoints}
