"""The VXLAN between the nodes of a region in host plans (docs/architecture/host-network.md)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    PacketFilter,
    Route,
    RouteKind,
    Rule,
    RuleAction,
    Sysctl,
    VxlanDevice,
)
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodePlan
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.reason import Reason, ReasonCode, explain
from ravenvpn.mesh.situation import Situation

net = ipaddress.ip_network
ip = ipaddress.ip_address

# SHA-256 of the names, see test_mesh_identity.
PLACES = {
    "edge-1": "fd6f:8e5e:d3a7:2:df59:4d71:a145:abdc",
    "edge-2": "fd6f:8e5e:d3a7:2:a5da:f753:9e6:6ad7",
}
CLOSED = {"kind": RouteKind.UNREACHABLE, "metric": 4278198272}


def region(
    name: str, *nodes: NodeInfo, able: int = 1, active: tuple[str, ...] = (), nat: bool = False, public: str = ""
) -> Gateway:
    """Return a region whose first `able` nodes are endpoints; `active` of them are active, or the first one."""
    endpoints = tuple(GatewayEndpoint(n.node, under_nat=nat, public_ip=public) for n in nodes[:able])
    chosen = tuple(e for e in endpoints if e.node in (active or (nodes[0].node,)))
    return Gateway(name, endpoints, 1, status=GatewayStatus(nodes, chosen))


def node(name: str, address: str | None, *prefixes: str) -> NodeInfo:
    return NodeInfo(name, ip(address) if address else None, tuple(map(net, prefixes)))


EDGE_1 = node("edge-1", "10.0.0.1", "10.244.2.0/24", "fd00:2::/64")
EDGE_2 = node("edge-2", "10.0.0.2", "10.244.3.0/24", "fd00:3::/64")
EDGE_3 = node("edge-3", "10.0.0.3", "10.244.4.0/24", "fd00:4::/64")
CLOUD = region("cloud", node("cloud-1", "10.9.0.1", "10.244.1.0/24", "fd00:1::/64"), public="203.0.113.10")
FACTORY = region("factory", EDGE_1, EDGE_2, nat=True)
PEERS = [PeerObject(name, bytes([i]) * 32) for i, name in enumerate(("cloud-1", "edge-1", "edge-2", "edge-3"), 1)]


def planned(me: str, *gateways: Gateway, peers: list[PeerObject] = PEERS, **facts: object) -> NodePlan:
    return plan(Situation(World.of([CLOUD, *gateways], peers), facts=LocalFacts(**facts)), me)  # type: ignore[arg-type]


def test_the_host_plan_of_a_plain_node() -> None:
    here = frozenset(map(ip, ("10.0.0.2", "10.244.3.1", "fd00:3::1")))
    host = planned("edge-2", FACTORY, addresses=here).host

    assert host.tun is None
    assert host.vxlan == VxlanDevice("raven0", 200, 4472, 1420, "aa:0f:f0:00:00:02", ip("10.0.0.2"))
    assert host.addresses == (
        DeviceAddress("raven0", ipaddress.ip_interface("240.0.0.2/8")),
        DeviceAddress("raven0", ipaddress.ip_interface(f"{PLACES['edge-2']}/64")),
    )
    assert host.neighbours == (
        Neighbour("raven0", ip("240.0.0.1"), "aa:0f:f0:00:00:01"),
        Neighbour("raven0", ip(PLACES["edge-1"]), "aa:0f:f0:00:00:01"),
    )
    assert host.forwarding == (ForwardingEntry("raven0", "aa:0f:f0:00:00:01", ip("10.0.0.1")),)
    way4 = {"device": "raven0", "via": ip("240.0.0.1"), "source": ip("10.244.3.1"), "mtu": 1420}
    way6 = {"device": "raven0", "via": ip(PLACES["edge-1"]), "source": ip("fd00:3::1"), "mtu": 1420}
    assert host.routes == (
        Route(net("10.244.1.0/24"), 9127, **way4),
        Route(net("10.244.1.0/24"), 9127, **CLOSED),
        Route(net("fd00:1::/64"), 9127, **way6),
        Route(net("fd00:1::/64"), 9127, **CLOSED),
    )
    assert host.rules == tuple(
        rule
        for family in (4, 6)
        for rule in (
            Rule(family, 98, RuleAction.GOTO, 102, input_device="lo", ip_protocol=17, source_port=4500),
            Rule(family, 99, RuleAction.LOOKUP, 9127),
            Rule(family, 102, RuleAction.NOP),
        )
    )
    assert host.sysctls == (
        Sysctl("net/ipv4/conf/raven0/forwarding", "1"),
        Sysctl("net/ipv4/conf/raven0/rp_filter", "2"),
        Sysctl("net/ipv4/conf/raven0/send_redirects", "0"),
        Sysctl("net/ipv6/conf/raven0/force_forwarding", "1"),
    )
    assert host.packet_filter == PacketFilter(
        local=tuple(map(net, ("10.244.2.0/24", "10.244.3.0/24", "fd00:2::/64", "fd00:3::/64"))),
        remote=(net("10.244.1.0/24"), net("fd00:1::/64")),
        own_sources=(ip("10.244.3.1"), ip("fd00:3::1")),
        vxlan_sources=(ip("10.0.0.1"),),  # the gateway; no other node sends frames to a plain node
    )


def test_a_gateway_accepts_frames_from_every_other_node_of_its_region() -> None:
    packet_filter = planned("edge-1", FACTORY).host.packet_filter
    assert packet_filter is not None
    assert packet_filter.vxlan_sources == (ip("10.0.0.2"),)


def test_a_gateway_routes_packets_out_of_the_tunnel_to_the_node_of_the_pods() -> None:
    host = planned("edge-1", FACTORY).host
    assert [r for r in host.routes if r.table == 9129] == [
        Route(net("10.244.3.0/24"), 9129, device="raven0", via=ip("240.0.0.2"), mtu=1420),
        Route(net("fd00:3::/64"), 9129, device="raven0", via=ip(PLACES["edge-2"]), mtu=1420),
    ]
    assert {r.input_device for r in host.rules if r.target == 9129} == {"ravenvpn0", "raven0"}
    assert {r.device for r in host.routes if r.table == 9127 and r.device} == {"ravenvpn0"}


def test_a_gateway_routes_a_single_source_to_its_plain_node() -> None:
    bare = replace(PEERS[2], sources=(ip("10.0.0.2"),))
    routes = planned("edge-1", FACTORY, peers=[*PEERS[:2], bare]).host.routes
    assert Route(net("10.0.0.2/32"), 9129, device="raven0", via=ip("240.0.0.2"), mtu=1420) in routes


def test_every_planned_object_has_a_reason() -> None:
    for me in ("edge-1", "edge-2", "edge-3"):
        factory = region("factory", EDGE_1, EDGE_2, EDGE_3, able=2, nat=True)
        host = planned(me, factory).host
        lines = [host.vxlan, *host.addresses, *host.neighbours, *host.forwarding, *host.routes, *host.rules]
        assert all(line and line.reason for line in (*lines, *host.sysctls, host.packet_filter))
    assert {explain(r.reason) for r in host.routes if r.device} == {
        f"pods of node cloud-1, Gateway cloud, status.nodes[0].subnets[{i}], through our gateway edge-1"
        for i in (0, 1)
    }


def test_a_region_of_one_node_needs_no_vxlan() -> None:
    host = planned("cloud-1", FACTORY).host
    assert (host.vxlan, host.neighbours, host.forwarding) == (None, (), ())
    assert {r.table for r in host.routes} == {9127}


def test_mtu_fits_the_regions_own_network() -> None:
    def mtu(address: str, lan: int) -> int:
        infos = [node(f"edge-{i}", f"{address}{i}", f"10.244.{i}.0/24") for i in (1, 2)]
        made = planned("edge-2", region("factory", *infos, nat=True), mtus={f"{address}1": lan})
        assert made.host.vxlan is not None
        assert {r.mtu for r in made.host.routes if r.device} == {made.host.vxlan.mtu}
        return made.host.vxlan.mtu

    assert mtu("10.0.0.", 1400) == 1350
    assert mtu("10.0.0.", 9000) == 1420  # the MTU of the tunnel
    assert mtu("fd00:10::", 1400) == 1330
    assert mtu("fd00:10::", 1300) == 1280


@pytest.mark.parametrize(
    ("lan", "narrow", "expected"),
    [
        # MTU of the LAN and of the path to the cloud; then plain node → gateway, gateway → gateway, gateway → node.
        (1500, 1500, (1420, 1420, 1420)),
        (1500, 1400, (1420, 1320, 1420)),  # only the gateway has this MTU: it answers larger packets with ICMP
        (1400, 1500, (1350, 1420, 1350)),  # the gateway answers packets of the far end that exceed the LAN's MTU
        (9000, 1500, (1420, 1420, 1420)),
        (1500, 1300, (1420, 1280, 1420)),  # outer packets are fragmented, since IPv6 needs 1280
    ],
)
@pytest.mark.parametrize("six", [False, True])
def test_mtu_of_routes_on_plain_node_and_gateway(
    lan: int, narrow: int, expected: tuple[int, int, int], six: bool
) -> None:
    """The MTU applies to pod routes of both families, on a LAN of either family."""
    address = "fd00:10::" if six else "10.0.0."
    out, into_tunnel, back = expected
    if six:
        out, back = min(out, lan - 70), min(back, lan - 70)
    infos = [node(f"edge-{i}", f"{address}{i}", f"10.244.{i + 1}.0/24", f"fd00:{i + 1}::/64") for i in (1, 2, 3)]
    factory = region("factory", *infos, nat=True, able=2)
    lans = {f"{address}{i}": lan for i in (1, 2, 3)}

    def mtus(me: str, table: int, device: str) -> set[tuple[int, int | None]]:
        routes = planned(me, factory, mtus={**lans, "203.0.113.10": narrow}).host.routes
        there = [r for r in routes if (r.table, r.device) == (table, device) and r.prefix.prefixlen in (24, 64)]
        return {(r.prefix.version, r.mtu) for r in there}

    assert mtus("edge-3", 9127, "raven0") == {(4, out), (6, out)}
    assert mtus("edge-1", 9127, "ravenvpn0") == {(4, into_tunnel), (6, into_tunnel)}
    assert mtus("edge-1", 9129, "raven0") == {(4, back), (6, back)}
    # A standby: own packets via the LAN, packets of others into the tunnel, packets out of it as on the active
    # gateway.
    assert mtus("edge-2", 9127, "raven0") == {(4, out), (6, out)}
    assert mtus("edge-2", 9129, "ravenvpn0") == {(4, into_tunnel), (6, into_tunnel)}
    assert mtus("edge-2", 9129, "raven0") == {(4, back), (6, back)}


def test_every_address_block_of_a_node_is_routed_both_ways() -> None:
    """Calico assigns blocks of either family as pods are created; they are independent of each other."""
    blocks = ("10.64.7.0/26", "10.64.9.64/26", "10.64.200.128/26", "fd00:64::/122", "fd00:64::a40/122")
    factory = region("factory", EDGE_1, node("edge-2", "10.0.0.2", *blocks), nat=True)

    out = planned("cloud-1", factory)
    assert {r.prefix for r in out.host.routes if r.device == "ravenvpn0"} >= set(map(net, blocks))
    assert {str(p) for p in dict(out.tunnel.accepts)["edge-1"]} >= set(blocks)
    back = [r for r in planned("edge-1", factory).host.routes if r.table == 9129]
    assert {(r.prefix, str(r.via)) for r in back} == {
        (net(block), PLACES["edge-2"] if ":" in block else "240.0.0.2") for block in blocks
    }


def test_a_region_with_ipv6_alone_carries_ipv4_pods_by_ipv6_next_hops() -> None:
    infos = [node(f"edge-{i}", f"fd00:10::{i}", f"10.244.{i + 1}.0/24") for i in (1, 2)]
    host = planned("edge-2", region("factory", *infos, nat=True)).host
    assert host.vxlan is not None
    assert (host.vxlan.local, host.vxlan.mac) == (ip("fd00:10::2"), "aa:0f:a5:da:f7:53")
    assert [r.via for r in host.routes if r.prefix == net("10.244.1.0/24") and r.device] == [ip(PLACES["edge-1"])]


def test_of_two_colliding_nodes_the_second_is_no_member_and_fail_closed() -> None:
    twin = node("edge-2", "11.0.0.1", "10.244.3.0/24")
    lonely, gateway = planned("edge-2", region("factory", EDGE_1, twin, nat=True)), planned("edge-1", FACTORY)
    assert lonely.host.vxlan is None
    assert {r.kind for r in lonely.host.routes} == {RouteKind.UNREACHABLE}
    assert lonely.notes[0] == Reason(ReasonCode.NO_VXLAN_MEMBER, "edge-2")
    assert gateway.host.vxlan is not None


def test_a_node_whose_address_is_not_present_is_fail_closed() -> None:
    planner = Planner("edge-2")
    world = World.of([CLOUD, FACTORY], PEERS)
    planner.update(Situation(world, facts=LocalFacts(addresses=frozenset({ip("192.168.0.2")}))))
    assert planner.plan().host.vxlan is None
    assert {r.kind for r in planner.plan().host.routes} == {RouteKind.UNREACHABLE}
    added = planner.update(Situation(world, facts=LocalFacts(addresses=frozenset({ip("10.0.0.2")})))).host.added
    assert added.vxlan is not None
    assert len(added.routes) == 2


def test_prefixes_that_contain_own_ones_are_left_to_the_cni() -> None:
    wide = node("edge-2", "10.0.0.2", "10.244.0.0/16", "10.250.0.0/24")
    narrow = node("cloud-1", "10.9.0.1", "172.20.0.0/24")
    cloud = region("cloud", narrow, public="203.0.113.10")
    made = plan(Situation(World.of([cloud, region("factory", EDGE_1, wide, nat=True)], PEERS)), "edge-1")
    assert [r.prefix for r in made.host.routes if r.table == 9129] == [net("10.250.0.0/24")]


def test_a_plain_node_leaves_a_dead_gateway_for_another() -> None:
    factory = region("factory", EDGE_1, EDGE_2, EDGE_3, able=2, active=("edge-1", "edge-2"), nat=True)
    world = World.of([CLOUD, factory], PEERS)
    planner = Planner("edge-3")
    planner.update(Situation(world))
    first = planner.uplink
    other = {"edge-1": "edge-2", "edge-2": "edge-1"}[first]

    delta = planner.update(Situation(world, Liveness({first: LivenessVerdict.DEAD})))

    assert planner.uplink == other
    last = other[-1]
    assert {str(r.via) for r in delta.host.added.routes if r.prefix.version == 4} == {f"240.0.0.{last}"}
    assert (delta.host.added.neighbours, delta.host.added.forwarding) == ((), ())


def test_a_moved_role_changes_only_routes_of_plain_nodes() -> None:
    """Neighbour and FDB entries for standbys exist before they are needed."""
    one, two = (
        region("factory", EDGE_1, EDGE_2, EDGE_3, able=2, active=(n,), nat=True) for n in ("edge-1", "edge-2")
    )
    planner = Planner("edge-3")
    planner.update(Situation(World.of([CLOUD, one], PEERS)))
    added = planner.update(Situation(World.of([CLOUD, two], PEERS))).host.added
    assert {str(r.via) for r in added.routes} == {"240.0.0.2", PLACES["edge-2"]}
    assert replace(added, routes=()) == replace(added, routes=(), neighbours=(), forwarding=(), rules=(), sysctls=())
    assert (added.vxlan, added.addresses, added.packet_filter) == (None, (), None)
