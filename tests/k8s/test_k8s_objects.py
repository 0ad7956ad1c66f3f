"""Conversion of API objects to the model and back."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.k8s import crd
from ravenvpn.k8s.problems import path_steps
from ravenvpn.mesh.model import (
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    HostPort,
    Node,
    NodeInfo,
    PeerObject,
)

KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="

UPSTREAM = {
    "apiVersion": "raven.openyurt.io/v1beta1",
    "kind": "Gateway",
    "metadata": {
        "name": "gw-cloud",
        "creationTimestamp": "2023-11-08T07:00:00Z",
        "generation": 3,
        "uid": "11111111-2222-3333-4444-555555555555",
        "annotations": {"raven.openyurt.io/extra-allowed-source-cidrs": "10.9.0.0/16, fd09::/64"},
    },
    "spec": {
        "nodeSelector": {"matchLabels": {"raven.openyurt.io/gateway": "gw-cloud"}},
        "proxyConfig": {"Replicas": 1, "proxyHTTPPort": "10255,9445", "proxyHTTPSPort": "10250,9100"},
        "tunnelConfig": {"Replicas": 1},
        "exposeType": "PublicIP",
        "endpoints": [
            {"nodeName": "master", "type": "proxy", "port": 10262, "underNAT": False},
            {
                "nodeName": "master",
                "type": "tunnel",
                "port": 4500,
                "underNAT": False,
                "publicIP": "192.0.2.1",
                "config": {"publicKey": KEY},
            },
        ],
    },
    "status": {
        "nodes": [{"nodeName": "master", "privateIP": "172.16.0.1", "subnets": ["10.244.0.0/24"]}],
        "activeEndpoints": [
            {
                "nodeName": "master",
                "type": "tunnel",
                "port": 4500,
                "publicIP": "192.0.2.1",
                "config": {"publicKey": KEY, "enable-l3-tunnel": "true", "ravenvpn.io/epoch": "7"},
            }
        ],
    },
}


def test_a_gateway_of_upstream_is_read() -> None:
    parsed = crd.parse(UPSTREAM, handwritten=True)

    assert parsed.problems == ()
    gateway = parsed.value
    assert isinstance(gateway, Gateway)
    assert gateway == Gateway(
        name="gw-cloud",
        endpoints=(
            GatewayEndpoint("master", EndpointType.PROXY, 10262),
            GatewayEndpoint("master", EndpointType.TUNNEL, 4500, public_ip="192.0.2.1", config={"publicKey": KEY}),
        ),
        tunnel_replicas=1,
        proxy_replicas=1,
        proxy_http_port="10255,9445",
        proxy_https_port="10250,9100",
        expose_type="PublicIP",
        extra_cidrs=(ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_network("fd09::/64")),
        status=GatewayStatus(
            (NodeInfo("master", ipaddress.ip_address("172.16.0.1"), (ipaddress.ip_network("10.244.0.0/24"),)),),
            (
                GatewayEndpoint(
                    "master",
                    EndpointType.TUNNEL,
                    4500,
                    public_ip="192.0.2.1",
                    config={"publicKey": KEY, "enable-l3-tunnel": "true", "ravenvpn.io/epoch": "7"},
                ),
            ),
        ),
        created=1699426800.0,
        generation=3,
    )
    assert gateway.status.active[0].epoch == 7


def test_a_status_is_written_as_it_was_read() -> None:
    gateway = crd.parse(UPSTREAM).value
    assert isinstance(gateway, Gateway)

    assert crd.write_status(gateway.status) == UPSTREAM["status"]


def test_a_null_is_read_as_a_missing_field() -> None:
    """Go writes null for an empty field without omitempty."""
    parsed = crd.parse(
        {
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "metadata": {"name": "gw", "creationTimestamp": None, "labels": None},
            "spec": {"endpoints": None, "tunnelConfig": None, "exposeType": None},
            "status": {"nodes": None, "activeEndpoints": None},
        }
    )
    assert parsed.problems == ()
    assert parsed.value == Gateway("gw")


def test_v1alpha1_is_converted_as_upstream_does() -> None:
    parsed = crd.parse(
        {
            "apiVersion": "raven.openyurt.io/v1alpha1",
            "kind": "Gateway",
            "metadata": {"name": "old"},
            "spec": {"endpoints": [{"nodeName": "n1", "underNAT": True}]},
            "status": {
                "nodes": [{"nodeName": "n1", "privateIP": "10.0.0.1", "subnets": [""]}],
                "activeEndpoint": {"nodeName": "n1", "underNAT": True},
            },
        }
    )
    endpoint = GatewayEndpoint("n1", EndpointType.TUNNEL, 4500, under_nat=True)
    assert parsed.value == Gateway(
        "old",
        (endpoint,),
        tunnel_replicas=1,
        proxy_replicas=1,
        status=GatewayStatus((NodeInfo("n1", ipaddress.ip_address("10.0.0.1")),), (endpoint,)),
    )
    assert [(p.field, p.fatal) for p in parsed.problems] == [("status.nodes[0].subnets[0]", False)]


def test_a_peer_is_written_and_read_back() -> None:
    peer = PeerObject(
        "edge-1",
        bytes(range(32)),
        next_public_key=bytes(range(1, 33)),
        listen_port=4501,
        addresses=(HostPort("203.0.113.7"), HostPort("2001:db8::7", 4502), HostPort("vpn.example.org", 443)),
        node_addresses=(ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("fd00:10::5")),
        sources=(ipaddress.ip_address("10.244.3.1"),),
        suites=(Suite.AES256GCM, Suite.CHACHA20POLY1305),
    )
    written = crd.write_peer(peer, "factory", "gateway")

    assert written["metadata"] == {
        "name": "edge-1",
        "labels": {"raven.openyurt.io/gateway": "factory", "ravenvpn.io/role": "gateway"},
    }
    assert written["spec"]["addresses"] == ["203.0.113.7", "[2001:db8::7]:4502", "vpn.example.org:443"]
    assert crd.parse(written, handwritten=True).value == peer


def test_a_node_without_conditions_is_ready_only_if_handwritten() -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": []}}

    assert crd.parse(node).value == Node("n", ready=False)
    assert crd.parse(node, handwritten=True).value == Node("n", ready=True)


def test_a_dual_stack_node_is_read() -> None:
    node = crd.parse(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n", "labels": {"raven.openyurt.io/gateway": "g"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "taints": []},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"},
                    {"type": "InternalIP", "address": "fd00::1"},
                    {"type": "ExternalIP", "address": "not an address, and not read"},
                ],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        },
        handwritten=True,
    )
    assert node.problems == ()
    assert node.value == Node(
        "n",
        "g",
        True,
        (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")),
        (ipaddress.ip_network("10.1.0.0/24"), ipaddress.ip_network("fd00:1::/64")),
        labels={"raven.openyurt.io/gateway": "g"},
    )


def test_field_paths_are_split() -> None:
    assert path_steps("metadata.annotations[a.b/c].x[3]") == ["metadata", "annotations", "a.b/c", "x", 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.sampled_from([("raven.openyurt.io/v1beta1", "Gateway"), ("ravenvpn.io/v1alpha1", "Peer"), ("v1", "Node")]),
    st.fixed_dictionaries({"metadata": JSON, "spec": JSON, "status": JSON}),
)
def test_no_object_raises(kind: tuple[str, str], rest: dict) -> None:
    parsed = crd.parse({"apiVersion": kind[0], "kind": kind[1], **rest}, handwritten=True)

    assert (parsed.value is None) == any(p.fatal for p in parsed.problems)


@given(st.data())
def test_a_damaged_gateway_is_reported_and_never_raises(data: st.DataObject) -> None:
    """One value in a valid object is replaced by an arbitrary one."""
    damaged = damage(data, UPSTREAM)
    parsed = crd.parse(damaged, handwritten=True)

    assert (parsed.value is None) == any(p.fatal for p in parsed.problems)
    for problem in parsed.problems:
        assert problem.remedy
        assert "\n" not in str(problem)


def test_a_field_name_with_a_line_break_does_not_break_the_message() -> None:
    """A message is one line of the log."""
    forged = "\nGateway other: all is well"
    parsed = crd.parse({**UPSTREAM, "spec": {forged: 1, "x" * 1000: 2}}, handwritten=True)

    assert [len(str(problem).splitlines()) for problem in parsed.problems] == [1, 1]
    assert all(len(str(problem)) < 300 for problem in parsed.problems)


def damage(data: st.DataObject, value: object) -> object:
    if data.draw(st.integers(0, 3)) == 0 or not isinstance(value, dict | list) or not value:
        return data.draw(JSON)
    if isinstance(value, list):
        at = data.draw(st.integers(0, len(value) - 1))
        return [damage(data, one) if i == at else one for i, one in enumerate(value)]
    key = data.draw(st.sampled_from(sorted(value)))
    return {name: damage(data, one) if name == key else one for name, one in value.items()}
