"""Node addresses across regions (`forward_node_ip`): routes of each role, refused addresses, own network."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from ravenvpn.mesh.hoststate import Route, Rule, RuleAction
from ravenvpn.mesh.local_facts import ApiEndpoint, LocalFacts
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, HostPort, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodePlan
from ravenvpn.mesh.plan import plan
from ravenvpn.mesh.reason import Reason, ReasonCode, explain
from ravenvpn.mesh.situation import Intent, Situation

net = ipaddress.ip_network
ip = ipaddress.ip_address

ON = Intent(forward_node_ip=True)
EDGES = ("edge-1", "edge-2", "edge-3")


def info(name: str, address: str, *prefixes: str) -> NodeInfo:
    return NodeInfo(name, ip(address), tuple(map(net, prefixes)))


def peer(name: str, *node_addresses: str, **more: object) -> PeerObject:
    return PeerObject(name, name.encode().ljust(32, b"-"), node_addresses=tuple(map(ip, node_addresses)), **more)  # type: ignore[arg-type]


def region(name: str, *infos: NodeInfo, able: int = 1, public: str = "", created: float | None = None) -> Gateway:
    """Return a region; it is behind NAT if it has no public address."""
    endpoints = tuple(GatewayEndpoint(i.node, under_nat=not public, public_ip=public) for i in infos[:able])
    return Gateway(name, endpoints, 1, status=GatewayStatus(infos, endpoints[:1]), created=created)


CLOUD = region("cloud", info("cloud-1", "172.16.0.1", "10.244.1.0/24"), public="203.0.113.10")
FACTORY = region(
    "factory",
    info("edge-1", "10.0.0.1", "10.244.2.0/24"),
    info("edge-2", "10.0.0.2", "10.244.3.0/24"),
    info("edge-3", "10.0.0.3", "10.244.4.0/24"),
    able=2,
)
PEERS = [
    peer("cloud-1", "172.16.0.1", "fd00:c::1"),
    *(peer(f"edge-{i}", f"10.0.0.{i}", f"fd00:e::{i}") for i in (1, 2, 3)),
]


def planned(
    me: str, *gateways: Gateway, intent: Intent = ON, peers: list[PeerObject] = PEERS, **facts: object
) -> NodePlan:
    world = World.of(gateways or (CLOUD, FACTORY), peers)
    return plan(Situation(world, facts=LocalFacts(**facts), intent=intent), me)  # type: ignore[arg-type]


def ways(made: NodePlan, *addresses: str) -> dict[str, list[tuple[int, str | None, str | None]]]:
    """Return table, device and next hop of the unicast routes to each address."""
    return {
        a: [
            (r.table, r.device, r.via and str(r.via)) for r in made.host.routes if r.prefix == net(a) and not r.metric
        ]
        for a in addresses
    }


def accepted(made: NodePlan, name: str) -> set[str]:
    return {str(prefix) for prefix in dict(made.tunnel.accepts).get(name, ())}


def test_without_forward_node_ip_no_node_address_is_routed_or_accepted() -> None:
    for me in ("cloud-1", *EDGES):
        made = planned(me, intent=Intent())
        assert ways(made, "172.16.0.1", "fd00:c::1", "10.0.0.2", "fd00:e::2") == {
            "172.16.0.1": [],
            "fd00:c::1": [],
            "10.0.0.2": [],
            "fd00:e::2": [],
        }
        assert "10.0.0.2/32" not in accepted(made, "edge-1")


def test_a_gateway_routes_remote_node_addresses_into_the_tunnel() -> None:
    made = planned("cloud-1")

    assert ways(made, "10.0.0.1", "10.0.0.3", "fd00:e::3") == {
        "10.0.0.1": [(9127, "ravenvpn0", None)],
        "10.0.0.3": [(9127, "ravenvpn0", None)],
        "fd00:e::3": [(9127, "ravenvpn0", None)],
    }
    assert {net("10.0.0.3/32"): ("edge-1",), net("fd00:e::3/128"): ("edge-1",)}.items() <= dict(
        made.tunnel.routes
    ).items()
    # The standby's packets are accepted too, since the role may have moved a moment ago.
    for name in ("edge-1", "edge-2"):
        assert {"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00:e::1/128"} <= accepted(made, name)


def test_each_role_has_routes_out_and_back() -> None:
    """Active: into the tunnel, and out of it to its nodes. Plain: via the active gateway.

    Standby: own packets via the active gateway, packets of other nodes into the tunnel.
    """
    active, standby, plain = (planned(name) for name in EDGES)
    out = ("172.16.0.1", "fd00:c::1")

    assert ways(active, *out) == {a: [(9127, "ravenvpn0", None)] for a in out}
    assert ways(standby, "172.16.0.1") == {"172.16.0.1": [(9127, "raven0", "240.0.0.1"), (9129, "ravenvpn0", None)]}
    assert ways(plain, "172.16.0.1") == {"172.16.0.1": [(9127, "raven0", "240.0.0.1")]}
    assert ways(active, "10.0.0.2", "10.0.0.3") == {
        "10.0.0.2": [(9129, "raven0", "240.0.0.2")],
        "10.0.0.3": [(9129, "raven0", "240.0.0.3")],
    }
    assert ways(plain, "10.0.0.1", "10.0.0.2") == {"10.0.0.1": [], "10.0.0.2": []}, "inside it is the CNI's affair"
    for made in (active, standby, plain):
        assert {r.prefix for r in made.host.routes if r.metric and r.table == 9127} >= {net(a) for a in out}


def test_nodes_keep_their_own_address_as_source() -> None:
    """SNAT maps the address to itself, so a server on the host network replies from the dialled address."""
    local = planned("edge-3").host.packet_filter
    assert local is not None
    assert {net("10.0.0.1/32"), net("10.0.0.3/32"), net("fd00:e::3/128")} <= set(local.local)
    off = planned("edge-3", intent=Intent()).host.packet_filter
    assert off is not None
    assert net("10.0.0.3/32") not in off.local


def test_a_node_without_a_pod_address_uses_its_node_address_as_source() -> None:
    here = frozenset({ip("10.0.0.3")})
    made = planned("edge-3", addresses=here)
    assert [r.source for r in made.host.routes if r.prefix == net("10.244.1.0/24") and r.device] == [ip("10.0.0.3")]
    note = Reason(ReasonCode.SOURCE_NOT_ACCEPTED, "edge-3", (ip("10.0.0.3"),))
    assert note not in made.notes
    assert note in planned("edge-3", intent=Intent(), addresses=here).notes


def test_every_route_names_the_node_and_the_field() -> None:
    reasons = {(str(r.prefix), r.table): explain(r.reason) for r in planned("edge-2").host.routes if not r.metric}
    assert reasons["172.16.0.1/32", 9127] == (
        "address of node cloud-1, Gateway cloud, status.nodes[0].privateIP, through our gateway edge-1"
    )
    assert reasons["fd00:c::1/128", 9129] == (
        "address of node cloud-1, Peer cloud-1, spec.nodeAddresses[1], through cloud-1"
    )
    assert reasons["10.0.0.3/32", 9129] == (
        "address of node edge-3, Gateway factory, status.nodes[2].privateIP, out of the tunnel"
    )


# Conflicts.

HARBOUR = region(
    "harbour",
    info("port-1", "10.0.0.9", "10.244.8.0/24"),
    info("port-2", "10.0.0.3", "10.244.9.0/24"),
    public="203.0.113.20",
)


def test_one_address_in_two_regions_goes_to_the_older_region() -> None:
    gateways = (CLOUD, replace(FACTORY, created=1.0), replace(HARBOUR, created=2.0))
    peers = [*PEERS, peer("port-1"), peer("port-2")]
    made = planned("cloud-1", *gateways, peers=peers)

    assert [str(c) for c in made.conflicts] == [
        (
            "Gateway harbour, status.nodes[1].privateIP: one address of nodes in two regions: 10.0.0.3 is held by "
            "Gateway factory, status.nodes[2].privateIP (give one of nodes port-2 and edge-3 another InternalIP, or "
            "leave it unreached from elsewhere)"
        )
    ]
    routes = dict(made.tunnel.routes)
    assert routes[net("10.0.0.3/32")] == ("edge-1",)
    assert routes[net("10.0.0.9/32")] == ("port-1",)
    assert routes[net("10.244.9.0/24")] == ("port-1",)
    assert "10.0.0.3/32" not in accepted(made, "port-1")

    # In the loser's region the address stays local.
    for me in ("port-1", "port-2"):
        there = planned(me, *gateways, peers=peers)
        assert ways(there, "10.0.0.3", "10.0.0.1")["10.0.0.3"] == []
        assert ways(there, "10.0.0.3", "10.0.0.1")["10.0.0.1"] != []
        assert (
            "node addresses of region factory are not routed here, because they lie in our own network: "
            "10.0.0.3 of edge-3"
        ) in map(explain, there.notes)
        assert "10.0.0.3/32" not in accepted(there, "edge-1")
    # A region that lost an address still relays.
    assert ("factory", "harbour") in planned(
        "ship-1",
        *(replace(g, created=1.0) for g in (FACTORY, region("ship", info("ship-1", "10.5.0.1", "10.244.7.0/24")))),
        replace(HARBOUR, created=2.0),
        peers=[*peers, peer("ship-1")],
    ).relays


def test_a_node_address_inside_pods_of_another_region_is_not_routed_there() -> None:
    """Those pods are refused with and without the setting, because they cover a node; locally they stay in use."""
    wide = region("wide", info("wide-1", "10.77.0.1", "10.0.0.0/16"), public="203.0.113.30")
    peers = [*PEERS, peer("wide-1")]
    for intent in (ON, Intent()):
        conflicts = planned("cloud-1", CLOUD, FACTORY, wide, peers=peers, intent=intent).conflicts
        assert [(c.subject, c.loser) for c in conflicts] == [("10.0.0.0/16", "Gateway wide")]
    assert ways(planned("wide-1", CLOUD, FACTORY, wide, peers=peers), "10.0.0.1", "172.16.0.1") == {
        "10.0.0.1": [],
        "172.16.0.1": [(9127, "ravenvpn0", None)],
    }


def test_a_node_address_on_a_link_of_this_host_is_not_routed() -> None:
    """Another machine of that link may have this address: 192.168.1.0/24 is a common LAN prefix."""
    links = frozenset({net("10.0.0.0/24"), net("fd00:e::/64")})
    made = planned("cloud-1", networks=links)
    assert ways(made, "10.0.0.1", "fd00:e::1") == {"10.0.0.1": [], "fd00:e::1": []}
    assert accepted(made, "edge-1") & {"10.0.0.1/32", "fd00:e::1/128"} == set()
    assert tuple(map(explain, made.notes)) == (
        (
            "node addresses of region factory are not routed here, because they lie in our own network: "
            "10.0.0.1 of edge-1, fd00:e::1 of edge-1, 10.0.0.2 of edge-2 and 3 more"
        ),
    )
    assert made.conflicts == ()


def test_a_node_address_inside_the_mesh_prefix_is_refused() -> None:
    strange = replace(FACTORY.status.nodes[0], private_ip=ip("fd6f:8e5e:d3a7:1::5"))
    made = planned("cloud-1", CLOUD, region("factory", strange), peers=[*PEERS[:1], peer("edge-1")])
    assert [(c.kind.value, c.subject) for c in made.conflicts] == [
        ("prefix covers addresses of the mesh itself", "fd6f:8e5e:d3a7:1::5/128")
    ]


# Addresses of the underlay, which carry the tunnels.

PUBLIC = region("dock", info("dock-1", "198.51.100.7", "10.244.6.0/24"), public="198.51.100.7")


def test_the_dialled_address_of_a_gateway_is_routed_as_its_node_address() -> None:
    """The address is the same node inside and outside the tunnel; rule 98 keeps outer packets outside."""
    made = planned("edge-1", FACTORY, PUBLIC, peers=[*PEERS, peer("dock-1")])
    assert made.conflicts == ()
    assert ways(made, "198.51.100.7") == {"198.51.100.7": [(9127, "ravenvpn0", None)]}
    bypass = Rule(4, 98, RuleAction.GOTO, 102, input_device="lo", ip_protocol=17, source_port=4500)
    companion = Rule(4, 98, RuleAction.NOP, input_device="ravenvpn0", ip_protocol=17, source_port=4500)
    assert {bypass, companion} <= set(made.host.rules)


@pytest.mark.parametrize("of", ["endpoint", "peer"])
def test_a_node_address_at_which_another_node_is_dialled_is_refused(of: str) -> None:
    """Its route would catch the outer packets of that gateway's sessions, or packets meant for that gateway."""
    other = replace(
        CLOUD, endpoints=(GatewayEndpoint("cloud-1", public_ip="10.0.0.2" if of == "endpoint" else "203.0.113.10"),)
    )
    addresses = (HostPort("10.0.0.2"),) if of == "peer" else ()
    peers = [peer("cloud-1", "172.16.0.1", addresses=addresses), *PEERS[1:]]
    made = planned("cloud-1", other, FACTORY, peers=peers)

    place = "Gateway cloud, spec.endpoints[0].publicIP" if of == "endpoint" else "Peer cloud-1, spec.addresses[0]"
    assert [str(c) for c in made.conflicts] == [
        (
            "Gateway factory, status.nodes[1].privateIP: prefix covers a gateway's address: 10.0.0.2/32 is held by "
            f"{place}: 10.0.0.2 (give the node an InternalIP of its own)"
        )
    ]
    assert ways(made, "10.0.0.2", "10.0.0.1") == {"10.0.0.2": [], "10.0.0.1": [(9127, "ravenvpn0", None)]}


def test_a_gateway_dialled_at_routed_ipv6_addresses_alone_has_the_minimum_mtu() -> None:
    """The kernel stores a discovered path MTU in the tunnel's route for that address, so none must be needed."""

    def mtu(public: str, intent: Intent = ON) -> int | None:
        there = region("dock", info("dock-1", "2001:db8::7", "10.244.6.0/24"), public=public)
        made = planned("edge-1", FACTORY, there, peers=[*PEERS, peer("dock-1")], intent=intent)
        return next(r.mtu for r in made.host.routes if r.prefix == net("10.244.6.0/24"))

    assert mtu("2001:db8::7") == 1280
    assert mtu("2001:db8::8") == 1420, "an address that is not the node's own"
    assert mtu("2001:db8::7", Intent()) == 1420


def test_the_api_server_at_a_node_address_stays_outside_the_tunnel() -> None:
    api = (ApiEndpoint(ip("172.16.0.1"), 6443),)
    for me in EDGES:
        made = planned(me, api=api)
        assert (
            Rule(
                4,
                98,
                RuleAction.GOTO,
                102,
                input_device="lo",
                to=net("172.16.0.1/32"),
                ip_protocol=6,
                destination_port=6443,
            )
            in made.host.rules
        )
        # Without a rule that matches ports on arrival, a strict reverse-path check looks up the return route in the
        # tunnel. On a gateway the rule for its own outer packets is sufficient.
        asks = [r for r in made.host.rules if r.action is RuleAction.NOP and r.preference == 98 and r.family == 4]
        assert [(r.input_device, r.ip_protocol) for r in asks] == [
            ("raven0", 6) if me == "edge-3" else ("ravenvpn0", 17)
        ]


def test_routes_to_a_node_and_to_its_pods_have_the_same_mtu() -> None:
    facts = {"mtus": {"203.0.113.10": 1400, "10.0.0.1": 1300}}
    assert {
        r.mtu for r in planned("edge-1", **facts).host.routes if r.prefix == net("172.16.0.1/32") and r.device
    } == {1320}
    assert (
        Route(net("172.16.0.1/32"), 9127, device="raven0", via=ip("240.0.0.1"), mtu=1280)
        in planned("edge-3", **facts).host.routes
    )
