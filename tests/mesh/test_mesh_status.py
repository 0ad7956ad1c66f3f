"""Election and status: OpenYurt's rules, and the differences from them."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, GatewayStatus, Node
from ravenvpn.mesh.status import Gates, fill


def gateway(*nodes: str, replicas: int = 1, active: tuple[str, ...] = (), epoch: int = 1) -> Gateway:
    return Gateway(
        "g",
        tuple(GatewayEndpoint(n) for n in nodes),
        tunnel_replicas=replicas,
        status=GatewayStatus((), tuple(GatewayEndpoint(n, config={"ravenvpn.io/epoch": str(epoch)}) for n in active)),
    )


def node(name: str, *, ready: bool = True, **fields: object) -> Node:
    return Node(name, "g", ready, **fields)  # type: ignore[arg-type]


def elected(made: Gateway, *nodes: Node, gates: Gates | None = None) -> list[tuple[str, int]]:
    return [(e.node, e.epoch) for e in fill(made, nodes, gates or Gates()).active]


def test_the_first_ready_endpoint_of_the_spec_becomes_active() -> None:
    assert elected(gateway("a", "b"), node("a", ready=False), node("b")) == [("b", 1)]


def test_a_node_outside_the_region_is_never_active() -> None:
    assert elected(gateway("stranger", "a"), node("a")) == [("a", 1)]


def test_there_is_no_fail_back_to_an_earlier_endpoint() -> None:
    assert elected(gateway("a", "b", active=("b",), epoch=4), node("a"), node("b")) == [("b", 4)]


def test_the_epoch_grows_when_the_role_moves() -> None:
    assert elected(gateway("a", "b", active=("a",), epoch=4), node("a", ready=False), node("b")) == [("b", 5)]


def test_an_active_endpoint_that_left_the_spec_loses_its_role() -> None:
    assert elected(gateway("b", active=("a",), epoch=4), node("a"), node("b")) == [("b", 5)]


def test_without_ready_nodes_or_replicas_no_endpoint_is_active() -> None:
    assert elected(gateway("a", active=("a",)), node("a", ready=False)) == []
    assert elected(gateway("a", replicas=0, active=("a",)), node("a")) == []
    assert elected(gateway("a", replicas=-1), node("a")) == []
    assert elected(gateway("a"), node("a"), gates=Gates(tunnel=False)) == []


def test_fewer_replicas_keep_the_first_endpoints_of_the_spec() -> None:
    """OpenYurt iterates over a Go map here, so any endpoint may stay active."""
    wide = gateway("c", "a", "b", replicas=1, active=("a", "b", "c"))

    assert elected(wide, node("a"), node("b"), node("c")) == [("c", 2)]


def test_fields_of_active_endpoints_are_copied_from_the_spec() -> None:
    made = replace(gateway(active=("a",)), endpoints=(GatewayEndpoint("a", port=4501, public_ip="192.0.2.1"),))

    (endpoint,) = fill(made, [node("a")]).active
    assert (endpoint.port, endpoint.public_ip) == (4501, "192.0.2.1")
    assert endpoint.config == {"enable-l3-tunnel": "true", "ravenvpn.io/epoch": "1"}


def test_proxies_are_elected_beside_tunnels_where_enabled() -> None:
    made = Gateway(
        "g",
        (GatewayEndpoint("a"), GatewayEndpoint("a", EndpointType.PROXY), GatewayEndpoint("b", EndpointType.PROXY)),
        tunnel_replicas=1,
        proxy_replicas=2,
    )
    status = fill(made, [node("a"), node("b")], Gates(tunnel=True, proxy=True))

    assert [(e.node, e.type.value) for e in status.active] == [("a", "proxy"), ("a", "tunnel"), ("b", "proxy")]


def test_nodes_are_listed_ready_or_not_with_all_their_prefixes() -> None:
    """OpenYurt lists the first pod CIDR only."""
    v4, v6 = ipaddress.ip_network("10.1.0.0/24"), ipaddress.ip_network("fd00:1::/64")
    extra, block = ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_network("10.5.0.0/26")
    made = replace(gateway("a"), extra_cidrs=(extra,))
    first = node(
        "a", internal_ips=(ipaddress.ip_address("fd00::1"), ipaddress.ip_address("10.0.0.1")), pod_cidrs=(v4, v6)
    )
    second = node("b", ready=False, pod_cidrs=(v4,), blocks=(block,))

    status = fill(made, [second, first])

    assert [(n.node, n.private_ip, n.subnets) for n in status.nodes] == [
        ("a", ipaddress.ip_address("fd00::1"), (v4, v6, extra)),
        ("b", None, (block,)),
    ]


def test_an_epoch_that_is_no_number_counts_as_none() -> None:
    for text in ("", "x", "-1", "١", "9" * 30):
        assert GatewayEndpoint("a", config={"ravenvpn.io/epoch": text}).epoch == 0


@given(
    st.permutations(["a", "b", "c", "d"]),
    st.sets(st.sampled_from("abcd")),
    st.sets(st.sampled_from("abcd")),
    st.integers(0, 4),
)
def test_election_is_stable_and_fills_all_replicas(
    order: list[str], ready: set[str], active: set[str], replicas: int
) -> None:
    made = gateway(*order, replicas=replicas, active=tuple(sorted(active)))
    nodes = [node(n, ready=n in ready) for n in "abcd"]
    status = fill(made, nodes)
    chosen = {e.node for e in status.active}

    assert chosen <= ready
    assert len(chosen) == min(replicas, len(ready))
    assert len(active & ready - chosen) == 0 or chosen <= active
    assert fill(replace(made, status=status), reversed(nodes)) == status
