"""Plans of small worlds with their expected content written out."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from ravenvpn.crypto.aead import Suite
from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    PacketFilter,
    Route,
    RouteKind,
    Rule,
    RuleAction,
    Sysctl,
    TunDevice,
)
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.local_facts import ApiEndpoint, LocalFacts
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, HostPort, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodeRole, PeerKind
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.reason import Reason, ReasonCode, explain
from ravenvpn.mesh.situation import Intent, Situation

net = ipaddress.ip_network
ip = ipaddress.ip_address

FACTORY_ADDRESS = "fd6f:8e5e:d3a7:1:df59:4d71:a145:abdc"  # of edge-1, see test_mesh_identity
CLOUD_ADDRESS = "fd6f:8e5e:d3a7:1:e331:5cdf:f93e:6c03"  # of cloud-1


def region(name: str, *nodes: tuple[str, str], nat: bool = False, public: str = "", active: int = 1) -> Gateway:
    """Return a region. `nodes` are (name, pod prefix).

    All nodes may be the gateway; the first `active` of them are active.
    """
    endpoints = tuple(GatewayEndpoint(n, under_nat=nat, public_ip=public) for n, _ in nodes)
    infos = tuple(NodeInfo(n, ip(f"10.0.0.{i}"), (net(p),)) for i, (n, p) in enumerate(nodes, 1))
    return Gateway(name, endpoints, 1, status=GatewayStatus(infos, endpoints[:active]))


def peers(*names: str) -> list[PeerObject]:
    return [PeerObject(n, bytes([i]) * 32) for i, n in enumerate(names, 1)]


CLOUD = region("cloud", ("cloud-1", "10.244.1.0/24"), public="203.0.113.10")
FACTORY = region("factory", ("edge-1", "10.244.2.0/24"), nat=True)
SHIP = region("ship", ("ship-1", "10.244.3.0/24"), nat=True)


def test_the_host_plan_of_a_gateway() -> None:
    """The expected plan is that of docs/architecture/host-network.md."""
    facts = LocalFacts(addresses=frozenset({ip("10.244.2.1"), ip("10.0.0.1")}), force_forwarding=True)
    host = plan(Situation(World.of([CLOUD, FACTORY], peers("cloud-1", "edge-1")), facts=facts), "edge-1").host
    closed = {"kind": RouteKind.UNREACHABLE, "metric": 4278198272}

    assert host.tun == TunDevice("ravenvpn0", 1420)
    assert host.vxlan is None
    assert host.addresses == (DeviceAddress("ravenvpn0", ipaddress.IPv6Interface(f"{FACTORY_ADDRESS}/128")),)
    assert host.routes == (
        Route(net("10.244.1.0/24"), 9127, device="ravenvpn0", source=ip("10.244.2.1"), mtu=1420),
        Route(net("10.244.1.0/24"), 9127, **closed),
        Route(net("fd6f:8e5e:d3a7::/48"), 9127, device="ravenvpn0", source=ip(FACTORY_ADDRESS), mtu=1420),
        Route(net("fd6f:8e5e:d3a7::/48"), 9127, **closed),
    )
    assert host.rules == tuple(
        rule
        for family in (4, 6)
        for rule in (
            Rule(family, 98, RuleAction.GOTO, 102, input_device="lo", ip_protocol=17, source_port=4500),
            Rule(family, 98, RuleAction.NOP, input_device="ravenvpn0", ip_protocol=17, source_port=4500),
            Rule(family, 98, RuleAction.LOOKUP, 9129, input_device="ravenvpn0"),
            Rule(family, 99, RuleAction.LOOKUP, 9127),
            Rule(family, 102, RuleAction.NOP),
        )
    )
    assert host.sysctls == (
        Sysctl("net/ipv4/conf/ravenvpn0/forwarding", "1"),
        Sysctl("net/ipv4/conf/ravenvpn0/rp_filter", "2"),
        Sysctl("net/ipv4/conf/ravenvpn0/send_redirects", "0"),
        Sysctl("net/ipv6/conf/ravenvpn0/force_forwarding", "1"),
    )
    assert host.packet_filter == PacketFilter(
        local=(net("10.244.2.0/24"),), remote=(net("10.244.1.0/24"),), relays=False, own_sources=(ip("10.244.2.1"),)
    )


def test_every_planned_object_has_a_reason() -> None:
    made = plan(Situation(World.of([CLOUD, FACTORY, SHIP], peers("cloud-1", "edge-1", "ship-1"))), "edge-1")
    host = made.host
    lines = [
        *host.routes,
        *host.rules,
        *host.sysctls,
        *host.addresses,
        host.tun,
        host.packet_filter,
        *made.tunnel.peers,
    ]

    assert all(line.reason for line in lines if line)
    assert next(explain(r.reason) for r in host.routes if r.prefix == net("10.244.3.0/24")) == (
        "pods of node ship-1, Gateway ship, status.nodes[0].subnets[0], through cloud-1 of hub region cloud"
    )


def test_the_side_behind_nat_dials_and_sends_keepalives() -> None:
    world = World.of([CLOUD, FACTORY], peers("cloud-1", "edge-1"))
    (cloud,) = plan(Situation(world), "edge-1").tunnel.peers
    (edge,) = plan(Situation(world), "cloud-1").tunnel.peers

    assert [(c.host, c.port) for c in cloud.candidates] == [("203.0.113.10", 4500)]
    assert (cloud.keepalive, cloud.warm) == (25, True)
    assert (edge.candidates, edge.keepalive, edge.warm) == ((), None, True)


def test_sessions_between_public_regions_are_cold() -> None:
    other = region("office", ("office-1", "10.244.4.0/24"), public="2001:db8::9")
    (peer,) = plan(Situation(World.of([CLOUD, other], peers("cloud-1", "office-1"))), "cloud-1").tunnel.peers

    assert (peer.name, peer.keepalive, peer.warm) == ("office-1", None, False)


def test_candidates_are_the_public_ip_then_the_peers_addresses() -> None:
    endpoint = GatewayEndpoint("cloud-1", port=4501, public_ip="203.0.113.10", public_port=14501)
    cloud = replace(CLOUD, endpoints=(endpoint,), status=replace(CLOUD.status, active=(endpoint,)))
    said = (HostPort("2001:db8::10"), HostPort("vpn.example.org", 443), HostPort("203.0.113.10", 14501))
    cloud_peer = replace(peers("cloud-1")[0], listen_port=4501, addresses=said, suites=tuple(Suite))
    world = World.of([cloud, FACTORY], [cloud_peer, *peers("x", "edge-1")[1:]])
    (peer,) = plan(Situation(world), "edge-1").tunnel.peers

    assert [(c.host, c.port) for c in peer.candidates] == [
        ("203.0.113.10", 14501),
        ("2001:db8::10", 4501),
        ("vpn.example.org", 443),
    ]
    assert peer.suites == (Suite.CHACHA20POLY1305, Suite.AES256GCM)


def test_two_regions_behind_nat_are_relayed_by_the_hub() -> None:
    world = World.of([CLOUD, FACTORY, SHIP], peers("cloud-1", "edge-1", "ship-1"))
    edge, cloud = plan(Situation(world), "edge-1"), plan(Situation(world), "cloud-1")

    assert [p.name for p in edge.tunnel.peers] == ["cloud-1"]
    assert dict(edge.tunnel.routes)[net("10.244.3.0/24")] == ("cloud-1",)
    assert net("10.244.3.0/24") in dict(edge.tunnel.accepts)["cloud-1"]
    assert edge.relays == (("ship", "cloud"),)
    assert cloud.host.packet_filter is not None
    assert cloud.host.packet_filter.relays
    assert cloud.relays == ()


def test_without_a_hub_two_regions_behind_nat_get_a_note() -> None:
    made = plan(Situation(World.of([FACTORY, SHIP], peers("edge-1", "ship-1"))), "edge-1")

    assert made.tunnel.routes == ()
    assert [(r.prefix, r.kind) for r in made.host.routes if r.prefix.version == 4] == [
        (net("10.244.3.0/24"), RouteKind.UNREACHABLE)
    ]
    assert (
        explain(made.notes[0]) == "region ship is not reached: both ends are behind NAT and no region serves as hub"
    )


def test_a_public_endpoint_without_an_address_only_dials() -> None:
    hidden = region("hidden", ("hidden-1", "10.244.5.0/24"))
    (peer,) = plan(Situation(World.of([CLOUD, hidden], peers("cloud-1", "hidden-1"))), "hidden-1").tunnel.peers

    assert (peer.keepalive, peer.warm) == (25, True)


def test_a_plain_node_has_sessions_with_its_own_gateways_alone() -> None:
    cloud = replace(CLOUD, endpoints=CLOUD.endpoints)
    nodes = (*CLOUD.status.nodes, NodeInfo("cloud-2", ip("10.0.0.2"), (net("10.244.9.0/24"),)))
    cloud = replace(CLOUD, status=replace(CLOUD.status, nodes=nodes))
    world = World.of([cloud, FACTORY], peers("cloud-1", "edge-1", "cloud-2"))
    plain, active = plan(Situation(world), "cloud-2"), plan(Situation(world), "cloud-1")

    assert (plain.role, plain.tunnel.device, plain.host.tun) == (NodeRole.PLAIN, False, None)
    assert [(p.name, p.kind, [str(c.host) for c in p.candidates]) for p in plain.tunnel.peers] == [
        ("cloud-1", PeerKind.ACTIVE, ["10.0.0.1"])
    ]
    assert plain.tunnel.routes == ((net(f"{CLOUD_ADDRESS}/128"), ("cloud-1",)),)
    assert {(r.prefix, r.table, r.kind, r.via) for r in plain.host.routes} == {
        (net("10.244.2.0/24"), 9127, RouteKind.UNICAST, ip("240.0.0.1")),
        (net("10.244.2.0/24"), 9127, RouteKind.UNREACHABLE, None),
    }
    assert [(r.family, r.preference) for r in plain.host.rules] == [
        (4, 98),
        (4, 99),
        (4, 102),
        (6, 98),
        (6, 99),
        (6, 102),
    ]
    assert ("cloud-2", PeerKind.PLAIN) in [(p.name, p.kind) for p in active.tunnel.peers]
    assert dict(plan(Situation(world), "edge-1").tunnel.routes)[net("10.244.9.0/24")] == ("cloud-1",)


def test_a_node_without_region_has_an_empty_plan() -> None:
    made = plan(Situation(World.of([CLOUD], peers("cloud-1"))), "stranger")

    assert (made.role, made.tunnel.peers, made.host.routes, made.host.rules) == (NodeRole.NONE, (), (), ())
    assert [explain(note) for note in made.notes] == ["node stranger is in no region: nothing is set up here"]


def test_a_standby_has_the_sessions_of_the_active_gateway() -> None:
    """A role can move without a handshake, and the two ends may switch at different times."""
    two = region("cloud", ("cloud-1", "10.244.1.0/24"), ("cloud-2", "10.244.8.0/24"), public="203.0.113.10")
    world = World.of([two, FACTORY], peers("cloud-1", "edge-1", "cloud-2"))
    standby, edge = plan(Situation(world), "cloud-2"), plan(Situation(world), "edge-1")

    assert (standby.role, standby.tunnel.device) == (NodeRole.STANDBY, True)
    assert [p.name for p in standby.tunnel.peers] == ["cloud-1", "edge-1"]
    assert net("10.244.2.0/24") in dict(standby.tunnel.accepts)["edge-1"]
    # Its own packets go via the active gateway. Packets of other nodes go into the tunnel or are refused.
    assert [(r.table, r.device, r.kind) for r in standby.host.routes if r.prefix == net("10.244.2.0/24")] == [
        (9127, "raven0", RouteKind.UNICAST),
        (9127, None, RouteKind.UNREACHABLE),
        (9129, "ravenvpn0", RouteKind.UNICAST),
        (9129, None, RouteKind.UNREACHABLE),
    ]
    assert [(p.name, p.kind, p.warm) for p in edge.tunnel.peers] == [
        ("cloud-1", PeerKind.ACTIVE, True),
        ("cloud-2", PeerKind.STANDBY, True),
    ]
    assert net("10.244.1.0/24") in dict(edge.tunnel.accepts)["cloud-2"]
    assert dict(edge.tunnel.routes)[net("10.244.8.0/24")] == ("cloud-1",)


def test_of_several_active_gateways_a_live_one_carries() -> None:
    two = region("cloud", ("cloud-1", "10.244.1.0/24"), ("cloud-2", "10.244.8.0/24"), public="203.0.113.10", active=2)
    world = World.of([two, FACTORY], peers("cloud-1", "edge-1", "cloud-2"))

    for dead, alive in (("cloud-1", "cloud-2"), ("cloud-2", "cloud-1")):
        made = plan(Situation(world, Liveness({dead: LivenessVerdict.DEAD})), "edge-1")
        assert dict(made.tunnel.routes)[net("10.244.1.0/24")] == (alive, dead)


def test_a_dead_hub_is_replaced_in_one_update_of_routes_alone() -> None:
    hubs = [region(f"hub{i}", (f"hub{i}-1", f"10.9.{i}.0/24"), public=f"203.0.113.{i}") for i in (1, 2)]
    world = World.of([*hubs, FACTORY, SHIP], peers("edge-1", "ship-1", "hub1-1", "hub2-1"))
    planner = Planner("edge-1")
    planner.update(Situation(world))
    ((_, first),) = planner.plan().relays
    second = "hub2" if first == "hub1" else "hub1"

    delta = planner.update(Situation(world, Liveness({f"{first}-1": LivenessVerdict.DEAD})))

    assert planner.plan().relays == (("ship", second),)
    assert {names for _, names in delta.tunnel.routes} == {(f"{second}-1",)}
    assert {p for p, _ in delta.tunnel.routes if p.version == 4} == {net("10.244.3.0/24")}
    assert (delta.tunnel.peers_set, delta.tunnel.peers_removed, delta.tunnel.accepts) == ((), (), ())
    assert not delta.host


def test_the_port_is_that_of_endpoint_then_setting_then_peer() -> None:
    def port(endpoint: int, setting: int | None, peer: int) -> int:
        e = GatewayEndpoint("n", port=endpoint, public_ip="203.0.113.1")
        world = World.of(
            [Gateway("g", (e,), 1, status=GatewayStatus((NodeInfo("n"),), (e,)))],
            [PeerObject("n", b"k" * 32, listen_port=peer)],
        )
        return plan(Situation(world, intent=Intent(listen_port=setting)), "n").tunnel.listen_port

    assert [port(1, 2, 3), port(0, 2, 3), port(0, None, 3), port(0, None, 0)] == [1, 2, 3, 4500]


def test_mtu_follows_the_narrowest_path_and_never_falls_below_1280() -> None:
    world = World.of([CLOUD, FACTORY], peers("cloud-1", "edge-1"))

    def mtus(**facts: object) -> tuple[int, int | None]:
        made = plan(Situation(world, facts=LocalFacts(**facts)), "edge-1")  # type: ignore[arg-type]
        return made.tunnel.mtu, made.host.routes[0].mtu

    assert mtus() == (1420, 1420)
    assert mtus(default_mtu=1492, mtus={"203.0.113.10": 1400}) == (1412, 1320)
    assert mtus(default_mtu=9000, mtus={"203.0.113.10": 1500}) == (8920, 1420)
    assert mtus(default_mtu=1280) == (1280, 1280)


def test_connections_to_the_api_server_bypass_the_tunnel() -> None:
    api = (ApiEndpoint(ip("198.51.100.1"), 6443), ApiEndpoint(ip("2001:db8::1"), 6443))
    rules = plan(Situation(World.of([CLOUD], peers("cloud-1")), facts=LocalFacts(api=api)), "cloud-1").host.rules

    assert [r for r in rules if r.to] == [
        Rule(
            4,
            98,
            RuleAction.GOTO,
            102,
            input_device="lo",
            to=net("198.51.100.1/32"),
            ip_protocol=6,
            destination_port=6443,
        ),
        Rule(
            6,
            98,
            RuleAction.GOTO,
            102,
            input_device="lo",
            to=net("2001:db8::1/128"),
            ip_protocol=6,
            destination_port=6443,
        ),
    ]


def test_a_kernel_without_ipv6_has_no_ipv6_in_its_plan() -> None:
    """The node is the only gateway, or one of three nodes of a region, with any pods on the other nodes."""
    dual = replace(CLOUD.status.nodes[0], subnets=(net("10.244.1.0/24"), net("fd00:1::/64")))
    cloud = replace(CLOUD, status=replace(CLOUD.status, nodes=(dual,)))
    three = region("factory", *((f"edge-{i}", f"fd00:{i}::/64") for i in (1, 2, 3)), nat=True)
    three = replace(three, endpoints=three.endpoints[:2])
    for me in ("cloud-1", "edge-1", "edge-2", "edge-3"):
        world = World.of([cloud, three], peers("cloud-1", "edge-1", "edge-2", "edge-3"))
        host = plan(Situation(world, facts=LocalFacts(ipv6=False)), me).host

        assert {r.family for r in host.rules} == {4}
        assert not [a for a in host.addresses if a.address.version == 6]
        assert {r.prefix.version for r in host.routes} <= {4}
        assert not [r for r in host.routes if r.via and r.via.version == 6]
        assert not [n for n in host.neighbours if n.address.version == 6]
        assert not [s for s in host.sysctls if "ipv6" in s.key]


def test_a_kernel_without_force_forwarding_forwards_ipv6_on_all_devices() -> None:
    facts = LocalFacts(force_forwarding=False, ipv6_disabled=True, pod_devices=("cni0",), advertised=("eth0",))
    host = plan(Situation(World.of([CLOUD], peers("cloud-1")), facts=facts), "cloud-1").host

    assert [(s.key, s.value, s.ours) for s in host.sysctls][3:] == [
        ("net/ipv4/conf/cni0/forwarding", "1", False),
        ("net/ipv6/conf/ravenvpn0/disable_ipv6", "0", True),
        ("net/ipv6/conf/eth0/accept_ra", "2", False),
        ("net/ipv6/conf/all/forwarding", "1", False),
    ]


def test_the_preferred_source_is_announced_then_inside_then_internal() -> None:
    peer = replace(peers("edge-1")[0], sources=(ip("10.244.2.1"),))
    world = World.of([CLOUD, FACTORY], [peer, *peers("x", "cloud-1")[1:]])

    def source(*present: str) -> tuple[str, int]:
        facts = LocalFacts(addresses=frozenset(ip(a) for a in present))
        made = plan(Situation(world, facts=facts), "edge-1")
        return str(made.host.routes[0].source), len(made.notes)

    assert source("10.244.2.1", "10.244.2.7", "10.0.0.1") == ("10.244.2.1", 0)
    assert source("10.244.2.7", "10.0.0.1") == ("10.244.2.7", 0)
    assert source("10.0.0.1") == ("10.0.0.1", 1)  # no region accepts it, so there is a note
    assert source() == ("None", 0)


def test_a_source_outside_the_pod_prefix_is_routed_as_a_single_address() -> None:
    peer = replace(peers("edge-1")[0], sources=(ip("192.168.7.20"),))
    made = plan(Situation(World.of([CLOUD, FACTORY], [peer, *peers("x", "cloud-1")[1:]])), "cloud-1")

    assert dict(made.tunnel.routes)[net("192.168.7.20/32")] == ("edge-1",)
    assert net("192.168.7.20/32") in dict(made.tunnel.accepts)["edge-1"]


def test_a_region_whose_gateway_has_no_peer_is_fail_closed_with_notes() -> None:
    made = plan(Situation(World.of([CLOUD, FACTORY], peers("cloud-1"))), "cloud-1")

    assert made.tunnel.peers == ()
    assert {r.kind for r in made.host.routes if r.prefix == net("10.244.2.0/24")} == {RouteKind.UNREACHABLE}
    assert tuple(map(explain, made.notes)) == (
        "Gateway factory, status.activeEndpoints[0]: no Peer named edge-1, so its public key is unknown",
        "Gateway factory: no active tunnel endpoint, its pods cannot be reached",
    )


def test_openyurts_key_on_the_endpoint_replaces_a_missing_peer() -> None:
    """One region may run OpenYurt's agent, which publishes its key on the endpoint."""
    e = GatewayEndpoint(
        "old-1", public_ip="203.0.113.4", config={"publicKey": "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    )
    old = Gateway("old", (e,), 1, status=GatewayStatus((NodeInfo("old-1", None, (net("10.244.7.0/24"),)),), (e,)))
    (peer,) = plan(Situation(World.of([CLOUD, old], peers("cloud-1"))), "cloud-1").tunnel.peers

    assert (peer.public_keys, peer.suites) == ((bytes([1]) + bytes(31),), (Suite.CHACHA20POLY1305,))


def test_a_gateway_with_openyurts_agent_has_no_session_in_its_region() -> None:
    """OpenYurt's agent only knows gateways of other regions, so a session would never be established.

    Silence of such a peer is no evidence that it is dead.
    """
    key = {"publicKey": "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    e, spare = GatewayEndpoint("old-1", under_nat=True, config=key), GatewayEndpoint("new-2", under_nat=True)
    infos = tuple(
        NodeInfo(n, ip(f"10.0.7.{i}"), (net(f"10.244.7{i}.0/24"),)) for i, n in enumerate(("old-1", "new-2", "new-3"))
    )
    old = Gateway("old", (e, spare), 1, status=GatewayStatus(infos, (e,)))
    world = World.of([CLOUD, old], peers("cloud-1", "new-2", "new-3"))
    note = Reason(ReasonCode.GATEWAY_WITHOUT_PEER, "old-1")
    for me, sessions in (("new-3", {"new-2"}), ("new-2", {"cloud-1", "new-3"})):
        made = plan(Situation(world), me)
        assert {p.name for p in made.tunnel.peers} == sessions
        assert {str(r.via) for r in made.host.routes if r.device == "raven0" and r.table == 9127} == {"240.0.7.0"}
        assert note in made.notes
    assert "old-1" in {p.name for p in plan(Situation(world), "cloud-1").tunnel.peers}
    assert note not in plan(Situation(world), "cloud-1").notes


def test_relayed_regions_follow_hubs_that_are_added_and_removed() -> None:
    """The path to a region changes although the region itself does not."""
    hubs = [region(f"hub{i}", (f"hub{i}-1", f"10.9.{i}.0/24"), public=f"203.0.113.{i}") for i in range(1, 5)]
    names = ("edge-1", "ship-1", *(f"hub{i}-1" for i in range(1, 5)))
    world = World.of([FACTORY, SHIP], peers(*names))
    planner = Planner("edge-1")
    planner.update(Situation(world))
    seen = []
    for hub in (*hubs, *hubs[:3]):
        known = hub.name in world.gateways
        world = world.without_gateway(hub.name) if known else world.with_gateway(hub)
        planner.update(Situation(world))
        assert planner.plan() == plan(Situation(world), "edge-1")
        seen.append(planner.plan().relays)

    assert seen[0] == (("ship", "hub1"),)
    assert seen[-1] == (("ship", "hub4"),)


def test_a_region_that_lost_a_prefix_is_no_hub() -> None:
    """It would deliver packets for that prefix to its own network."""
    # ship's prefix; ship wins since its name sorts first
    torn = region("torn", ("torn-1", "10.244.3.0/24"), public="203.0.113.77")
    world = World.of([torn, FACTORY, SHIP], peers("edge-1", "ship-1", "torn-1"))

    made = plan(Situation(world), "edge-1")

    assert (made.relays, len(made.conflicts)) == ((), 1)
    assert {r.kind for r in made.host.routes if r.prefix == net("10.244.3.0/24")} == {RouteKind.UNREACHABLE}


def test_packets_of_a_relayed_region_are_accepted_from_every_hub() -> None:
    """Either end may have left a hub that the other end still uses."""
    hubs = [region(f"hub{i}", (f"hub{i}-1", f"10.9.{i}.0/24"), public=f"203.0.113.{i}") for i in (1, 2, 3)]
    world = World.of([*hubs, FACTORY, SHIP], peers("edge-1", "ship-1", "hub1-1", "hub2-1", "hub3-1"))
    accepts = dict(plan(Situation(world), "edge-1").tunnel.accepts)

    assert all(net("10.244.3.0/24") in accepts[f"hub{i}-1"] for i in (1, 2, 3))


def test_another_mesh_name_replaces_the_whole_plan() -> None:
    """Regions of the old world that the new one lacks are removed, the node's own region included."""
    before = World.of([CLOUD, FACTORY, SHIP], peers("cloud-1", "edge-1", "ship-1"), mesh="before")
    harbour = region("harbour", ("edge-1", "10.244.7.0/24"), nat=True)
    after = World.of([CLOUD, harbour], peers("edge-1", "cloud-1"), mesh="after")
    for me in ("cloud-1", "edge-1", "ship-1"):
        planner = Planner(me)
        planner.update(Situation(before))
        planner.update(Situation(after))
        assert planner.plan() == plan(Situation(after), me)
