"""Takeover: the active gateway of a region is proven dead and no election has happened yet."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from ravenvpn.mesh.hoststate import TABLE_REMOTE
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, PeerKind
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.reason import Reason, ReasonCode, explain
from ravenvpn.mesh.situation import Situation

net = ipaddress.ip_network
ip = ipaddress.ip_address

FIRST_DEAD = Liveness({"edge-1": LivenessVerdict.DEAD})


def region(name: str, letter: int, *nodes: str, order: tuple[str, ...], public: str = "") -> Gateway:
    """Return a region whose endpoints are the nodes of `order`; the first one is active."""
    endpoints = tuple(GatewayEndpoint(n, under_nat=not public, public_ip=public) for n in order)
    infos = tuple(
        NodeInfo(n, ip(f"10.{letter}.0.{i}"), (net(f"10.244.{letter}{i}.0/24"),)) for i, n in enumerate(nodes, 1)
    )
    return Gateway(name, endpoints, 1, status=GatewayStatus(infos, endpoints[:1]))


CLOUD = region("cloud", 1, "cloud-1", order=("cloud-1",), public="203.0.113.10")
FACTORY = region("factory", 2, "edge-1", "edge-2", "edge-3", "edge-4", order=("edge-1", "edge-3", "edge-2"))
NAMES = ("cloud-1", "edge-1", "edge-2", "edge-3", "edge-4")
WORLD = World.of([CLOUD, FACTORY], [PeerObject(n, n.encode().ljust(32)) for n in NAMES])
PODS_THERE = net("10.244.11.0/24")  # in the cloud
PODS_HERE = net("10.244.21.0/24")  # in the factory


def carrier(made: NodePlan) -> str:
    return dict(made.tunnel.routes)[PODS_HERE][0]


def way_out(made: NodePlan) -> tuple[str | None, str | None]:
    return next(
        (r.device, r.via and str(r.via))
        for r in made.host.routes
        if (r.prefix, r.table) == (PODS_THERE, TABLE_REMOTE)
    )


def test_the_next_endpoint_of_the_spec_takes_over_on_nodes_with_the_verdict() -> None:
    alive = dict.fromkeys(("edge-2", "edge-3"), LivenessVerdict.ALIVE)
    seen = {me: plan(Situation(WORLD, Liveness({**alive, "edge-1": LivenessVerdict.DEAD})), me) for me in NAMES}

    assert carrier(seen["cloud-1"]) == "edge-3"
    assert seen["edge-3"].role is NodeRole.ACTIVE
    assert way_out(seen["edge-3"]) == ("ravenvpn0", None)
    assert seen["edge-2"].role is NodeRole.STANDBY
    assert way_out(seen["edge-2"]) == way_out(seen["edge-4"]) == ("raven0", "240.2.0.3")
    note = Reason(ReasonCode.STANDBY_TOOK_OVER, "factory", (("edge-3",), "edge-1"))
    assert explain(note) == "region factory: gateway edge-1 is proven dead, so its role is taken by edge-3"
    assert all(note in seen[me].notes for me in NAMES if me != "edge-1")


def test_nodes_without_the_verdict_keep_their_plan() -> None:
    assert carrier(plan(Situation(WORLD), "cloud-1")) == "edge-1"
    assert plan(Situation(WORLD), "edge-3").role is NodeRole.STANDBY
    assert plan(Situation(WORLD, FIRST_DEAD), "edge-1").role is NodeRole.ACTIVE, "nobody thinks itself dead"


def test_a_live_standby_comes_before_an_unknown_one() -> None:
    alive = Liveness({"edge-1": LivenessVerdict.DEAD, "edge-2": LivenessVerdict.ALIVE})
    assert carrier(plan(Situation(WORLD, alive), "cloud-1")) == "edge-2"
    assert (
        carrier(plan(Situation(WORLD, Liveness({**alive.verdicts, "edge-3": LivenessVerdict.ALIVE})), "cloud-1"))
        == "edge-3"
    )
    assert (
        carrier(plan(Situation(WORLD, Liveness({**alive.verdicts, "edge-2": LivenessVerdict.DEAD})), "cloud-1"))
        == "edge-3"
    )


def test_a_standby_without_verdicts_on_others_takes_over_itself() -> None:
    """Two standbys may take over at the same time; no packet is lost by that."""
    assert (
        plan(Situation(WORLD, FIRST_DEAD), "edge-2").role
        is plan(Situation(WORLD, FIRST_DEAD), "edge-3").role
        is NodeRole.ACTIVE
    )


def test_if_all_gateways_are_dead_the_active_one_stays() -> None:
    dead = Liveness(dict.fromkeys(("edge-1", "edge-2", "edge-3"), LivenessVerdict.DEAD))
    assert carrier(plan(Situation(WORLD, dead), "cloud-1")) == "edge-1"
    assert way_out(plan(Situation(WORLD, dead), "edge-4")) == ("raven0", "240.2.0.1")


def test_a_takeover_keeps_all_sessions() -> None:
    """Peers, keys and accepted prefixes stay the same at both ends, so no handshake is needed."""
    for me in ("edge-3", "cloud-1"):
        before, after = plan(Situation(WORLD), me).tunnel, plan(Situation(WORLD, FIRST_DEAD), me).tunnel
        assert after.accepts == before.accepts
        strip = [
            [replace(p, kind=PeerKind.PLAIN, carries_our_traffic=False) for p in t.peers] for t in (before, after)
        ]
        assert strip[0] == strip[1]
        assert {p.name: p.warm for p in after.peers}[{"edge-3": "cloud-1", "cloud-1": "edge-3"}[me]]


def test_a_takeover_changes_only_routes_in_other_regions() -> None:
    planner = Planner("cloud-1")
    planner.update(Situation(WORLD))

    delta = planner.update(Situation(WORLD, FIRST_DEAD))

    assert {names for _, names in delta.tunnel.routes} == {("edge-3",)}
    assert not delta.tunnel.accepts
    assert not delta.tunnel.peers_removed
    assert not delta.host
    back = planner.update(Situation(WORLD, Liveness({"edge-1": LivenessVerdict.ALIVE})))
    assert {names for _, names in back.tunnel.routes} == {("edge-1",)}


def test_an_election_ends_the_takeover() -> None:
    """The controller elects a node other than the one that took over."""
    moved = replace(FACTORY, status=replace(FACTORY.status, active=(FACTORY.endpoints[2],)))
    made = plan(Situation(WORLD.with_gateway(moved), FIRST_DEAD), "edge-3")
    assert made.role is NodeRole.STANDBY
    assert carrier(plan(Situation(WORLD.with_gateway(moved), FIRST_DEAD), "cloud-1")) == "edge-2"


def test_a_standby_that_took_over_relays_as_hub() -> None:
    """The second gateway of the only hub of two regions behind NAT carries both."""
    hub = region("hub", 1, "hub-1", "hub-2", order=("hub-1", "hub-2"), public="203.0.113.10")
    ship = region("ship", 3, "ship-1", order=("ship-1",))
    names = ("hub-1", "hub-2", "ship-1", "edge-1")
    world = World.of(
        [hub, ship, region("factory", 2, "edge-1", order=("edge-1",))],
        [PeerObject(n, n.encode().ljust(32)) for n in names],
    )
    dead = Liveness({"hub-1": LivenessVerdict.DEAD})
    ends = {me: plan(Situation(world, dead), me) for me in ("ship-1", "edge-1", "hub-2")}
    assert carrier(ends["ship-1"]) == "hub-2"
    assert ends["ship-1"].relays == (("factory", "hub"),)
    assert ends["edge-1"].relays == (("ship", "hub"),)
    packet_filter = ends["hub-2"].host.packet_filter
    assert packet_filter is not None
    assert packet_filter.relays


def test_plain_nodes_and_standbys_probe_the_active_gateway_often() -> None:
    for me in ("edge-2", "edge-3", "edge-4"):
        peers = plan(Situation(WORLD), me).tunnel.peers
        assert {p.name for p in peers if p.carries_our_traffic} == {"edge-1"}
    assert not any(p.carries_our_traffic for p in plan(Situation(WORLD), "edge-1").tunnel.peers)


def test_a_takeover_in_a_relayed_region_moves_its_tunnel_address() -> None:
    """The hub stays; the route to the tunnel address of the remote gateway changes."""
    hub = region("hub", 1, "hub-1", order=("hub-1",), public="203.0.113.10")
    ship = region("ship", 3, "ship-1", order=("ship-1",))
    names = ("hub-1", "ship-1", "edge-1", "edge-2", "edge-3")
    world = World.of([hub, ship, FACTORY], [PeerObject(n, n.encode().ljust(32)) for n in names])
    planner = Planner("ship-1")
    planner.update(Situation(world))

    planner.update(Situation(world, FIRST_DEAD))

    assert planner.plan() == plan(Situation(world, FIRST_DEAD), "ship-1")
    assert planner.plan() != plan(Situation(world), "ship-1")
