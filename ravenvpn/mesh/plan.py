"""From world to plan: `plan(situation, me)`, and the `Planner` that does the same at the price of what changed.

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
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import HostState, PacketFilter, Prefix
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import Changes, Gateway, World, host_prefix, lan_addresses
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, PlanDelta, TunnelPlan
from ravenvpn.mesh.own_region import OwnRegionPlan, home, own_sources, role_of
from ravenvpn.mesh.plan_difference import Differences, PrefixOrder
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.remote_region import EMPTY, RemoteRegionPlan, remote_fragment, way_to
from ravenvpn.mesh.situation import Situation
from ravenvpn.mesh.topology import MAX_HUBS, Hub, Region, acting, as_hub, digest, hub_rank
from ravenvpn.mesh.vxlan_members import Overlay, overlay, seats


def plan(situation: Situation, me: str = "") -> NodePlan:
    """Return the whole plan of node `me`. Pure: equal inputs make equal plans."""
    planner = Planner(me)
    planner.update(situation)
    return planner.plan()


class Planner:
    """The plan of one node, kept current. Not shared between threads."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._situation = Situation()
        self._conflicts = ConflictIndex(self._situation.world.mesh)
        self._regions: dict[str, Region] = {}
        self._regions_of: dict[str, set[str]] = {}  # node → Gateways that name it anywhere
        self._hub_ranks: list[tuple[int, str]] = []
        self._context: Context | None = None
        self._home = OwnRegionPlan()
        self._fragments: dict[str, RemoteRegionPlan] = {}
        self._relayed: set[str] = set()  # regions whose fragment depends on the hubs
        self._remote: set[Prefix] = set()
        self._plan: NodePlan | None = None

    def update(self, situation: Situation) -> PlanDelta:
        """Plan for this situation; returns what became different. Costs as much as what differs from the last one."""
        earlier = self._situation
        if self._context is not None and not _replans(earlier, situation):
            self._situation = situation
            return PlanDelta()
        old_tunnel, old_host = self._tunnel_settings(), self.host_frame()
        liveness, before = situation.liveness, self._context
        touched = self._digest(earlier, situation)
        context = self._make_context(situation)
        stale, doubtful = set(touched), self._touched_by(earlier.liveness, liveness)
        stale |= {name for name in doubtful if self._acting(name, liveness) != self._acting(name, earlier.liveness)}
        self._situation = situation
        if before is None or replace(context, hubs=before.hubs) != before:
            stale |= self._regions.keys() | self._fragments.keys()
        elif context.hubs != before.hubs:
            stale |= self._relayed
        self._context = context
        stale |= {name for name in doubtful - stale if self._way_changed(name, context)}

        differences = Differences()
        if (
            context != before
            or situation.intent.listen_port != earlier.intent.listen_port
            or (context.region is not None and context.region.name in stale)
        ):
            new_home = self._make_home(context, situation)
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
                reason=Reason(ReasonCode.KEEP_SOURCES),
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

    def _digest(self, earlier: Situation, situation: Situation) -> set[str]:
        """Take the new world in; returns the regions that are not what they were."""
        world, forward = situation.world, situation.intent.forward_node_ip
        changes = world.changes(earlier.world)
        if world.mesh != earlier.world.mesh or forward != earlier.intent.forward_node_ip:
            # Derived addresses, or the claims of every region, are others now: treat each object of the old and the
            # new world as changed.
            self._conflicts = ConflictIndex(world.mesh, forward_node_ip=forward)
            changes = Changes(*map(set.union, world.changes(World()), earlier.world.changes(World())))
        affected = set(changes.gateways)
        for name in changes.gateways:
            self._rename_nodes(name, earlier.world.gateways.get(name), world.gateways.get(name))
        for node in changes.peers:
            affected |= self._regions_of.get(node, set())
        affected |= self._conflicts.update(affected, changes.peers, world)
        for name in affected:
            gateway, refused = world.gateways.get(name), self._conflicts.refused(name)
            self._replace_region(
                name, digest(gateway, world.peers, refused, forward_node_ip=forward) if gateway else None
            )
        return affected

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

    def _touched_by(self, earlier: Liveness, liveness: Liveness) -> set[str]:
        nodes = liveness.changes(earlier)
        if self._context is not None and any(node in nodes for hub in self._context.hubs for node in hub.nodes):
            return self._relayed | self._regions_with(nodes)
        return self._regions_with(nodes)

    def _regions_with(self, nodes: Iterable[str]) -> set[str]:
        return {name for node in nodes for name in self._regions_of.get(node, ())}

    # Folding.

    def _make_context(self, situation: Situation) -> Context:
        world, liveness, facts = situation.world, situation.liveness, situation.facts
        forward = situation.intent.forward_node_ip
        region = self._own_region(world, liveness)
        gateway = world.gateways[region.name] if region else None
        role, entry = role_of(self.me, region)
        info = next((i for i in gateway.status.nodes if i.node == self.me), None) if gateway else None
        sources, _ = own_sources(info, world.peers.get(self.me), facts, forward)
        return Context(
            node=self.me,
            mesh=world.mesh,
            role=role,
            region=region,
            me=entry,
            sources=sources,
            shadowed=self._conflicts.refused(region.name).shadowed if region else frozenset(),
            near=_near(gateway, world, facts) if gateway and forward else NetworkSet(),
            facts=facts,
            forward_node_ip=forward,
            hubs=self._hubs(liveness),
            overlay=self._overlay(region, situation),
        )

    def _overlay(self, region: Region | None, situation: Situation) -> Overlay | None:
        if region is None:
            return None
        world, refused = situation.world, self._conflicts.refused(region.name)
        everybody = seats(world.gateways[region.name], world.peers, world.mesh, refused)
        return overlay(self.me, region, everybody, situation.facts.addresses, situation.liveness)

    def _own_region(self, world: World, liveness: Liveness) -> Region | None:
        for name in sorted(self._regions_of.get(self.me, ())):
            members = {info.node for info in world.gateways[name].status.nodes}
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

    def _make_home(self, context: Context, situation: Situation) -> OwnRegionPlan:
        world, intent = situation.world, situation.intent
        name = context.region.name if context.region else ""
        gateway = world.gateways.get(name)
        made = home(context, gateway, world.peers, self._conflicts.refused(name), intent.listen_port)
        info = next((i for i in gateway.status.nodes if i.node == self.me), None) if gateway else None
        _, notes = own_sources(info, world.peers.get(self.me), context.facts, intent.forward_node_ip)
        return replace(made, notes=(*made.notes, *notes))

    def _way_changed(self, name: str, context: Context) -> bool:
        region, fragment = self._acting(name, self._situation.liveness), self._fragments.get(name)
        return (
            region is not None
            and fragment is not None
            and fragment.way != way_to(region, context, self._situation.liveness)
        )

    def _fold(self, name: str, context: Context, differences: Differences) -> None:
        before = self._fragments.pop(name, EMPTY)
        region = self._acting(name, self._situation.liveness)
        after = EMPTY
        if region is not None and (context.region is None or region.name != context.region.name):
            after = remote_fragment(region, context, self._situation.liveness)
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


def _replans(earlier: Situation, situation: Situation) -> bool:
    """Whether a plan made of `earlier` may not hold for `situation`: keys, suites and the like are no part of it."""
    return (
        situation.world is not earlier.world
        or (situation.liveness is not earlier.liveness and situation.liveness != earlier.liveness)
        or (situation.facts is not earlier.facts and situation.facts != earlier.facts)
        or situation.intent.listen_port != earlier.intent.listen_port
        or situation.intent.forward_node_ip != earlier.intent.forward_node_ip
    )


def _near(gateway: Gateway, world: World, facts: LocalFacts) -> NetworkSet:
    """Prefixes of this node's own network: its links, and the pods and nodes of its region."""
    found = set(facts.networks)
    for info in gateway.status.nodes:
        found.update(info.subnets)
        found.update(host_prefix(a) for a in lan_addresses(info, world.peers.get(info.node)))
    return NetworkSet(frozenset(found))
