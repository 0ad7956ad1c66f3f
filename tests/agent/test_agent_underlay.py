"""Changes after which the host must be discovered again before planning."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from ravenvpn.agent.underlay import DiscoveryQuery, Underlay
from ravenvpn.mesh.model import (
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    HostPort,
    NodeInfo,
    PeerObject,
    World,
)


def gateway(name: str, public_ip: str = "", *subnets: str) -> Gateway:
    info = NodeInfo(f"{name}-1", None, tuple(ip_network(subnet) for subnet in subnets))
    endpoint = GatewayEndpoint(node=f"{name}-1", type=EndpointType.TUNNEL, public_ip=public_ip)
    return Gateway(name=name, endpoints=(endpoint,), status=GatewayStatus(nodes=(info,)))


CLOUD = gateway("cloud", "192.0.2.1", "10.0.0.0/24")
SHIP = gateway("ship", "", "10.0.1.0/24")
WORLD = World().with_gateway(CLOUD).with_gateway(SHIP)
ASKED = DiscoveryQuery((ip_address("192.0.2.1"),), (ip_network("10.0.1.0/24"),))


def known() -> Underlay:
    underlay = Underlay("ship-1")
    assert underlay.query(WORLD) == ASKED
    return underlay


def test_an_unchanged_world_needs_one_query() -> None:
    underlay = known()
    assert underlay.query(WORLD) is None
    assert underlay.query(WORLD.with_gateway(gateway("cloud", "192.0.2.1", "10.0.9.0/24"))) is None


def test_a_changed_host_needs_a_query() -> None:
    underlay = known()
    underlay.invalidate()
    assert underlay.query(WORLD) == ASKED
    assert underlay.query(WORLD) is None


def test_new_addresses_of_gateways_and_peers_need_a_query() -> None:
    underlay = known()
    later = WORLD.with_gateway(gateway("harbour", "192.0.2.9"))
    query = underlay.query(later)
    assert query is not None
    assert query.destinations == (ip_address("192.0.2.1"), ip_address("192.0.2.9"))
    peer = PeerObject("cloud-1", bytes(32), addresses=(HostPort("2001:db8::1"), HostPort("cloud.example")))
    query = underlay.query(later.with_peer(peer))
    assert query is not None
    assert query.destinations[-1] == ip_address("2001:db8::1")
    assert underlay.query(WORLD) is None, "what is known already needs no look"


def test_new_addresses_of_neighbours_need_a_query_and_those_of_other_nodes_do_not() -> None:
    """The MTU of the VXLAN between the nodes of the own region depends on the routes to them."""
    underlay = known()
    mate, stranger = NodeInfo("ship-2", ip_address("10.1.0.2")), NodeInfo("cloud-2", ip_address("10.9.0.2"))
    nodes = (*SHIP.status.nodes, mate)
    later = WORLD.with_gateway(replace(SHIP, status=replace(SHIP.status, nodes=nodes)))
    query = underlay.query(later)
    assert query is not None
    assert query.destinations == (ip_address("10.1.0.2"), ip_address("192.0.2.1"))
    query = underlay.query(later.with_peer(PeerObject("ship-2", bytes(32), node_addresses=(ip_address("fd00::2"),))))
    assert query is not None
    assert query.destinations[-1] == ip_address("fd00::2")
    cloud = replace(CLOUD, status=replace(CLOUD.status, nodes=(*CLOUD.status.nodes, stranger)))
    assert underlay.query(later.with_gateway(cloud)) is None


def test_new_pod_prefixes_of_this_node_need_a_query() -> None:
    underlay = known()
    query = underlay.query(WORLD.with_gateway(gateway("ship", "", "10.0.1.0/24", "10.0.7.0/24")))
    assert query is not None
    assert query.pods == (ip_network("10.0.1.0/24"), ip_network("10.0.7.0/24"))
