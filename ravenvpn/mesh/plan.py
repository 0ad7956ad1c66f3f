"""From situation to plan: `plan` from scratch, and `Planner`, which keeps a plan current at the cost of what changed.

A plan is the own region's part (`mesh.own_region`) and one part for every other region (`mesh.remote_region`). The
planner keeps the parts, finds which of them an update concerns, makes those anew and returns the difference. A plan
from scratch is a planner's first update, so the two can only differ in parts that an update missed; a property test
compares them.
"""

from __future__ import annotations

from ravenvpn.mesh import plan_parts
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.context import Context, make_context
from ravenvpn.mesh.hoststate import HostState, Prefix
from ravenvpn.mesh.liveness import Liveness
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, PlanDelta, TunnelPlan
from ravenvpn.mesh.own_region import OwnRegionPlan, plan_own_region
from ravenvpn.mesh.plan_difference import PlanDifference
from ravenvpn.mesh.region_index import RegionIndex
from ravenvpn.mesh.remote_region import EMPTY, RemoteRegionPlan, path_to, plan_remote_region
from ravenvpn.mesh.situation import Situation


def plan(situation: Situation, me: str = "") -> NodePlan:
    """Return the whole plan of node `me`. Pure: equal inputs make equal plans."""
    planner = Planner(me)
    planner.update(situation)
    return planner.plan()


class Planner:
    """The plan of one node, kept current. Owned by one task; not shared between threads.

    After an exception in `update` its state is undefined.
    """

    def __init__(self, me: str) -> None:
        self.me = me
        self._situation = Situation()
        self._regions = RegionIndex(me)
        self._context: Context | None = None  # None until the first update
        self._own = OwnRegionPlan()
        self._remote: dict[str, RemoteRegionPlan] = {}  # by region; one for each region of the world
        self._hub_dependent: set[str] = set()  # regions whose part depends on the hubs
        self._remote_prefixes: set[Prefix] = set()  # union of `remote` of the parts
        self._plan: NodePlan | None = None  # made by `plan` on demand

    def update(self, situation: Situation) -> PlanDelta:
        """Plan for this situation; returns the difference, which is false if the plan stayed the same.

        Fields are compared with those of the last situation, by identity first. One changed region of 1,000 takes a
        few milliseconds; another mesh name, forward_node_ip or own region takes as long as a plan from scratch.
        """
        earlier, before = self._situation, self._context
        if before is not None and not _may_change_plan(earlier, situation):
            self._situation = situation
            return PlanDelta()
        old_tunnel, old_host = self.tunnel_settings(), self.host_frame()
        affected = self._regions.update(situation.world, situation.intent.forward_node_ip)
        context = make_context(situation, self._regions)
        stale = affected | self._stale_regions(context, earlier.liveness, situation.liveness)
        self._situation, self._context, self._plan = situation, context, None

        difference = PlanDifference()
        if (
            context != before
            or situation.intent.listen_port != earlier.intent.listen_port
            or situation.observed != earlier.observed
            or (context.region is not None and context.region.name in stale)
        ):
            own = self._plan_own(context, situation)
            difference.add_part(self._own, own)
            self._own = own
        for name in sorted(stale):
            self._replan(name, context, difference)
        difference.apply_to_remote(self._remote_prefixes)
        return PlanDelta(
            difference.tunnel(old_tunnel, self.tunnel_settings()),
            difference.host(old_host, self.host_frame(), self._remote_prefixes),
        )

    @property
    def role(self) -> NodeRole:
        """Role of this node as of the last update."""
        return self._context.role if self._context else NodeRole.NONE

    @property
    def region(self) -> str:
        """Name of this node's region; empty if it has none."""
        return self._context.region.name if self._context and self._context.region else ""

    @property
    def uplink(self) -> str:
        """The gateway of our region that carries this node's packets to other regions; empty on an active gateway."""
        member = self._context.overlay.uplink if self._context and self._context.overlay else None
        return member.node if member else ""

    def tunnel_settings(self) -> TunnelPlan:
        """Return `plan().tunnel` without peers and prefixes, at no cost."""
        return plan_parts.tunnel_settings(self._context, self._own)

    def host_frame(self) -> HostState:
        """Return `plan().host` without routes and remote prefixes, at little cost."""
        return plan_parts.host_frame(self._context, self._own)

    def host(self) -> HostState:
        """Return `plan().host`, its routes in no order and without the packet filter's remote prefixes."""
        return plan_parts.host_state(self._context, self._own, self._remote.values())

    def relays(self) -> tuple[tuple[str, str], ...]:
        """Return (far region, hub region) of every region that is reached through a hub, sorted."""
        return tuple(
            (name, self._remote[name].relay) for name in sorted(self._hub_dependent) if self._remote[name].relay
        )

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return all conflicts of the world, without making the whole plan."""
        return self._regions.conflicts()

    def plan(self) -> NodePlan:
        """Return the whole plan as of the last update: a third of a second in a world of 1,000 regions, then kept."""
        if self._plan is None:
            self._plan = plan_parts.node_plan(
                self.me, self._context, self._own, self._remote, self._regions.conflicts()
            )
        return self._plan

    def _stale_regions(self, context: Context, earlier: Liveness, liveness: Liveness) -> set[str]:
        """Return the regions whose part changes although the region did not: by context, hubs or liveness."""
        before, regions = self._context, self._regions
        stale: set[str] = set()
        if before is None or context.differs_beyond_hubs(before):
            return {*regions.names(), *self._remote}
        if context.hubs != before.hubs:
            stale |= self._hub_dependent
        nodes = liveness.changes(earlier)
        doubtful = regions.regions_of(nodes)
        if any(node in nodes for hub in before.hubs for node in hub.nodes):
            doubtful |= self._hub_dependent
        for name in doubtful - stale:
            region, part = regions.region(name, liveness), self._remote.get(name)
            if region != regions.region(name, earlier) or (
                region is not None and part is not None and part.path != path_to(region, context, liveness)
            ):
                stale.add(name)
        return stale

    def _plan_own(self, context: Context, situation: Situation) -> OwnRegionPlan:
        name, world = self.region, situation.world
        refused = self._regions.refused(name)
        return plan_own_region(
            context,
            world.gateways.get(name),
            world.peers,
            refused,
            configured_port=situation.intent.listen_port,
            bound_ports=situation.observed.tunnel_ports,
        )

    def _replan(self, name: str, context: Context, difference: PlanDifference) -> None:
        """Make the part of one region anew, and add what changed to `difference`."""
        before, after = self._remote.pop(name, EMPTY), EMPTY
        region = self._regions.region(name, self._situation.liveness)
        if region is not None:
            if context.region is None or name != context.region.name:
                after = plan_remote_region(region, context, self._situation.liveness)
            self._remote[name] = after
        (self._hub_dependent.add if after.path.needs_hub else self._hub_dependent.discard)(name)
        difference.add_part(before, after)
        difference.add_remote(before.remote, after.remote)


def _may_change_plan(earlier: Situation, situation: Situation) -> bool:
    """Return False if both situations have one plan: keys, suites, announced addresses and the like do not matter."""
    return (
        situation.world is not earlier.world
        or (situation.liveness is not earlier.liveness and situation.liveness != earlier.liveness)
        or (situation.facts is not earlier.facts and situation.facts != earlier.facts)
        or situation.intent.listen_port != earlier.intent.listen_port
        or situation.observed != earlier.observed
        or situation.intent.forward_node_ip != earlier.intent.forward_node_ip
    )
