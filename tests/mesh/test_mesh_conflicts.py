"""Conflicts of two objects: the winner, the losses, and the message."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from ravenvpn.mesh.conflict import NOTHING_REFUSED, RefusedClaims
from ravenvpn.mesh.conflict_index import ConflictIndex
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, HostPort, NodeInfo, PeerObject, World
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.situation import Situation

net = ipaddress.ip_network
ip = ipaddress.ip_address


def gateway(name: str, *infos: NodeInfo, created: float | None = None, public: str = "") -> Gateway:
    endpoint = GatewayEndpoint(infos[0].node, public_ip=public)
    return Gateway(name, (endpoint,), 1, status=GatewayStatus(infos, (endpoint,)), created=created)


def info(node: str, *prefixes: str, at: str = "") -> NodeInfo:
    return NodeInfo(node, ip(at) if at else None, tuple(net(p) for p in prefixes))


def settle(
    *gateways: Gateway, peers: tuple[PeerObject, ...] = (), **options: object
) -> tuple[ConflictIndex, list[str]]:
    world = World.of(gateways, peers)
    index = ConflictIndex("ravenvpn", **options)  # type: ignore[arg-type]
    index.update(set(world.gateways), set(world.peers), world)
    return index, [str(c) for c in index.conflicts()]


def test_regions_that_share_nothing_lose_nothing() -> None:
    index, said = settle(gateway("a", info("a1", "10.1.0.0/24")), gateway("b", info("b1", "10.2.0.0/24")))

    assert said == []
    assert index.refused("a") == index.refused("b") == NOTHING_REFUSED


def test_two_regions_with_one_prefix_the_first_name_keeps_it() -> None:
    index, said = settle(
        gateway("b", info("b1", "10.1.0.0/24", "10.2.0.0/24")), gateway("a", info("a1", "10.1.0.0/24"))
    )

    assert index.refused("a") == NOTHING_REFUSED
    assert index.refused("b") == RefusedClaims(
        prefixes=frozenset({net("10.1.0.0/24")}), shadowed=frozenset({net("10.1.0.0/24")})
    )
    assert said == [
        (
            "Gateway b, status.nodes[0].subnets[0]: overlapping prefixes: 10.1.0.0/24 is held by "
            "Gateway a, status.nodes[0].subnets[0] (give the pods of one region another prefix)"
        )
    ]


@pytest.mark.parametrize(
    ("a", "b", "loser"),
    [(2.0, 1.0, "a"), (1.0, 2.0, "b"), (1.0, 1.0, "b"), (None, None, "b"), (None, 1.0, "a"), (1.0, None, "b")],
)
def test_the_older_gateway_wins_then_the_first_name(a: float | None, b: float | None, loser: str) -> None:
    index, _ = settle(
        gateway("a", info("a1", "10.1.0.0/24"), created=a), gateway("b", info("b1", "10.1.0.0/25"), created=b)
    )
    assert [name for name in "ab" if index.refused(name).prefixes] == [loser]


def test_a_lost_prefix_does_not_refuse_other_prefixes() -> None:
    """Region b loses its wide prefix to a, so a prefix of c inside it stays."""
    index, _ = settle(
        gateway("a", info("a1", "10.1.0.0/16")),
        gateway("b", info("b1", "10.0.0.0/8", "172.16.0.0/24")),
        gateway("c", info("c1", "10.2.0.0/16")),
    )
    assert index.refused("b").prefixes == {net("10.0.0.0/8")}
    assert index.refused("b").shadowed == {net("10.1.0.0/16"), net("10.2.0.0/16")}
    assert index.refused("c") == NOTHING_REFUSED


def test_prefixes_of_one_region_may_nest() -> None:
    _, said = settle(gateway("a", info("a1", "10.1.0.0/16"), info("a2", "10.1.2.0/24", "10.1.0.0/16")))

    assert said == []


def test_a_loser_regains_its_prefix_when_the_winner_is_removed() -> None:
    a, b, c = (gateway(n, info(f"{n}1", "10.1.0.0/24")) for n in "abc")
    world = World.of([a, b, c])
    index = ConflictIndex("ravenvpn")
    index.update({"a", "b", "c"}, set(), world)

    assert index.update({"a"}, set(), world.without_gateway("a")) == {"b"}
    assert (index.refused("b"), bool(index.refused("c").prefixes)) == (NOTHING_REFUSED, True)


def test_a_prefix_that_covers_a_dialled_address_is_refused_at_any_age() -> None:
    index, said = settle(
        gateway("old", info("o1", "203.0.113.0/24"), created=1.0),
        gateway("young", info("y1", "10.2.0.0/24"), created=9.0, public="203.0.113.7"),
    )
    assert index.refused("old").prefixes == {net("203.0.113.0/24")}
    assert said == [
        (
            "Gateway old, status.nodes[0].subnets[0]: prefix covers a gateway's address: 203.0.113.0/24 is held by "
            "Gateway young, status.activeEndpoints[0].publicIP: 203.0.113.7 (pods need addresses apart from those of "
            "nodes; for a single source, name one inside the pod prefix)"
        )
    ]


def test_a_region_that_covers_its_own_dialled_address_is_refused_too() -> None:
    """Other nodes would route the tunnel's own outer packets into the tunnel."""
    index, _ = settle(
        gateway("a", info("a1", "203.0.113.0/24")),
        peers=(PeerObject("a1", b"1" * 32, addresses=(HostPort("203.0.113.7"),)),),
    )
    assert index.refused("a").prefixes == {net("203.0.113.0/24")}


def test_a_node_may_be_dialled_at_its_own_source() -> None:
    """A public gateway without an address inside its pod prefixes announces its dialled address as source."""
    index, said = settle(
        gateway("a", info("a1", "10.1.0.0/24", at="203.0.113.7")),
        gateway("b", info("b1", "10.2.0.0/24", at="203.0.113.8")),
        peers=(
            PeerObject("a1", b"1" * 32, sources=(ip("203.0.113.7"),), addresses=(HostPort("203.0.113.7"),)),
            PeerObject("b1", b"2" * 32, sources=(ip("203.0.113.7"),), addresses=(HostPort("203.0.113.8"),)),
        ),
    )
    assert not index.refused("a").prefixes
    assert index.refused("b").prefixes == {net("203.0.113.7/32")}
    assert len(said) == 1


def test_a_prefix_that_covers_nodes_of_another_region_is_refused() -> None:
    """Plain nodes count as well: nodes of a region reach each other on their own network."""
    index, said = settle(
        gateway("a", info("a1", "192.168.0.0/16")),
        gateway("b", info("b1", "10.2.0.0/24"), info("b2", at="192.168.1.11")),
    )
    assert index.refused("a").prefixes == {net("192.168.0.0/16")}
    assert "Gateway b, status.nodes[1].privateIP: 192.168.1.11" in said[0]


def test_single_sources_that_overlap_are_refused_for_both_regions() -> None:
    """Two sites have the same LAN prefix: neither node's own address is routed, their pods are."""
    index, said = settle(
        gateway("a", info("a1", "10.1.0.0/24", at="192.168.1.10")),
        gateway("b", info("b1", "10.2.0.0/24", at="192.168.1.10")),
        peers=(
            PeerObject("a1", b"1" * 32, sources=(ip("192.168.1.10"),)),
            PeerObject("b1", b"2" * 32, sources=(ip("192.168.1.10"),)),
        ),
    )
    assert index.refused("a").prefixes == index.refused("b").prefixes == {net("192.168.1.10/32")}
    assert said[0].startswith("Peer a1, spec.sources[0]: prefix covers a gateway's address: 192.168.1.10/32")


def test_a_new_prefix_is_resolved_against_a_much_wider_one() -> None:
    """An update resolves the range of the shortest prefix that contains the changed one."""
    world = World.of([gateway("a", info("a1", "10.0.0.0/8")), gateway("c", info("c1", "11.0.0.0/8"))])
    index = ConflictIndex("ravenvpn")
    index.update({"a", "c"}, set(), world)

    world = world.with_gateway(gateway("b", info("b1", "10.1.0.0/16", "10.2.3.0/24")))
    assert index.update({"b"}, set(), world) == {"b"}
    assert index.refused("b").prefixes == {net("10.1.0.0/16"), net("10.2.3.0/24")}

    world = world.with_gateway(gateway("a", info("a1", "10.2.0.0/16")))
    assert index.update({"a"}, set(), world) == {"b"}
    assert index.refused("b").prefixes == {net("10.2.3.0/24")}


def test_a_new_underlay_address_refuses_the_prefix_that_covers_it() -> None:
    world = World.of([gateway("a", info("a1", "203.0.113.0/24"))])
    index = ConflictIndex("ravenvpn")
    index.update({"a"}, set(), world)
    assert index.refused("a") == NOTHING_REFUSED

    later = world.with_gateway(gateway("b", info("b1", "10.2.0.0/24"), public="203.0.113.7"))
    assert index.update({"b"}, set(), later) == {"a"}
    assert index.refused("a").prefixes == {net("203.0.113.0/24")}

    assert index.update({"b"}, set(), later.without_gateway("b")) == {"a"}
    assert index.refused("a") == NOTHING_REFUSED


def test_the_mesh_prefix_is_reserved() -> None:
    index, said = settle(gateway("a", info("a1", "fd6f:8e5e::/32")))

    assert index.refused("a").prefixes == {net("fd6f:8e5e::/32")}
    assert "mesh ravenvpn (fd6f:8e5e:d3a7::/48)" in said[0]


def test_a_node_belongs_to_one_gateway() -> None:
    index, said = settle(
        gateway("a", info("a1", "10.1.0.0/24"), info("x", "10.9.0.0/24"), created=5.0),
        gateway("b", info("b1", "10.2.0.0/24"), info("x", "10.9.0.0/24"), created=1.0),
    )
    assert index.refused("a") == RefusedClaims(nodes=frozenset({"x"}))
    assert said == [
        (
            "Gateway a, status.nodes[1]: node in two Gateways: x is held by Gateway b "
            "(a node belongs to one Gateway: correct its label raven.openyurt.io/gateway)"
        )
    ]


def test_a_key_belongs_to_one_peer() -> None:
    shared, own = b"s" * 32, b"o" * 32
    a, b = gateway("a", info("a1", "10.1.0.0/24"), public="192.0.2.1"), gateway("b", info("b1", "10.2.0.0/24"))
    peers = (PeerObject("a1", own, next_public_key=shared, created=2.0), PeerObject("b1", shared, created=1.0))
    index, said = settle(a, b, peers=peers)

    assert index.refused("a") == RefusedClaims(keys=frozenset({"a1"}))
    assert said == [
        (
            "Peer a1, spec.nextPublicKey: one public key in two Peers: "
            "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M= is held by Peer b1 "
            "(each node makes its own key: run `raven-vpn keygen` on one of them)"
        )
    ]
    assert [p.name for p in plan(Situation(World.of([a, b], peers)), "b1").tunnel.peers] == []


def test_a_peer_that_lost_its_keys_refuses_no_other_peer() -> None:
    """Peer b shares keys with a and with c; b loses all of its keys, so c keeps its own."""
    index, _ = settle(
        gateway("g", info("a"), info("b"), info("c")),
        peers=(
            PeerObject("a", b"1" * 32, created=1.0),
            PeerObject("b", b"1" * 32, next_public_key=b"2" * 32, created=2.0),
            PeerObject("c", b"2" * 32, created=3.0),
        ),
    )
    assert index.refused("g").keys == {"b"}


def test_colliding_tunnel_addresses_are_a_conflict() -> None:
    """The test uses another derivation, since no two names with the same 64 bits of SHA-256 are at hand."""

    def derive(mesh: str, node: str) -> IPv6Address:
        return IPv6Address(f"fd00::{len(node)}")

    index, said = settle(gateway("a", info("xx")), gateway("b", info("yy"), info("zzz")), derive=derive)

    assert index.refused("b") == RefusedClaims(nodes=frozenset({"yy"}))
    assert said == [
        (
            "Gateway b, status.nodes[0]: derived addresses collide: fd00::2 is held by node xx of Gateway a "
            "(give one of the nodes another name)"
        )
    ]


def test_colliding_vxlan_addresses_are_a_conflict() -> None:
    """OpenYurt's derivation drops the first octet."""
    index, said = settle(gateway("a", info("n1", at="10.0.0.5"), info("n2", at="172.0.0.5")))

    assert index.refused("a") == RefusedClaims(vxlan=frozenset({"n2"}))
    assert said == [
        (
            "Gateway a, status.nodes[1].privateIP: derived addresses collide: 240.0.0.5 is held by "
            "node n1 of Gateway a (give one of the nodes an InternalIP that differs in the last three octets)"
        )
    ]


def test_a_lost_prefix_is_neither_routed_nor_accepted_anywhere() -> None:
    shared = "10.1.0.0/24"
    world = World.of(
        [
            gateway("a", info("a1", shared), public="192.0.2.1"),
            gateway("b", info("b1", shared, "10.2.0.0/24"), public="192.0.2.2"),
            gateway("c", info("c1", "10.3.0.0/24"), public="192.0.2.3"),
        ],
        [PeerObject(n, n.encode() * 16) for n in ("a1", "b1", "c1")],
    )
    c = plan(Situation(world), "c1")
    assert dict(c.tunnel.routes)[net(shared)] == ("a1",)
    assert net(shared) not in dict(c.tunnel.accepts)["b1"]

    b = plan(Situation(world), "b1")  # inside this region the prefix stays local
    assert net(shared) not in {r.prefix for r in b.host.routes} | set(dict(b.tunnel.routes))
    assert net(shared) not in dict(b.tunnel.accepts)["a1"]
    assert b.notes == (Reason(ReasonCode.PREFIX_IN_OWN_REGION, "a", (net("10.1.0.0/24"),)),)
    assert b.host.packet_filter is not None
    assert b.host.packet_filter.local == (net("10.2.0.0/24"),)


def test_the_end_of_a_conflict_restores_the_prefix_in_the_plan() -> None:
    a, b = (gateway(n, info(f"{n}1", "10.1.0.0/24"), public=f"192.0.2.{i}") for i, n in enumerate("ab", 1))
    c = gateway("c", info("c1", "10.3.0.0/24"), public="192.0.2.3")
    world = World.of([a, b, c], [PeerObject(f"{n}1", n.encode() * 32) for n in "abc"])
    planner = Planner("c1")
    planner.update(Situation(world))

    delta = planner.update(Situation(world.with_gateway(replace(b, created=1.0))))

    assert delta.tunnel.routes == ((net("10.1.0.0/24"), ("b1",)),)
    assert [(c.peer, c.add, c.remove) for c in delta.tunnel.accepts] == [
        ("a1", (), (net("10.1.0.0/24"),)),
        ("b1", (net("10.1.0.0/24"),), ()),
    ]
    assert not delta.host
