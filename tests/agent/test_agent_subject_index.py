"""Hashes in forwarding verdicts are resolved to the active gateway nodes of a changing world."""

from __future__ import annotations

from ravenvpn.agent.subject_index import SubjectIndex, subject
from ravenvpn.mesh.identity import tunnel_address
from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, GatewayStatus, World


def gateway(name: str, *nodes: str) -> Gateway:
    active = tuple(GatewayEndpoint(node=node, type=EndpointType.TUNNEL) for node in nodes)
    return Gateway(name=name, status=GatewayStatus(active=active))


def hashed(node: str) -> int:
    return subject(tunnel_address("any mesh", node))


def test_a_node_is_found_while_some_gateway_names_it_as_active() -> None:
    index = SubjectIndex()
    world = World().with_gateway(gateway("ship", "a", "a")).with_gateway(gateway("dock", "a"))
    assert index.lookup(hashed("a"), world) == "a"
    assert index.lookup(hashed("b"), world) is None
    world = world.with_gateway(gateway("ship", "b"))
    assert [index.lookup(hashed(node), world) for node in "ab"] == ["a", "b"]
    world = world.without_gateway("dock")
    assert [index.lookup(hashed(node), world) for node in "ab"] == [None, "b"]
