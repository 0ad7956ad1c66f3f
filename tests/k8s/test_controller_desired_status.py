"""The desired status of a Gateway: active endpoints, nodes with their prefixes, and what makes a Gateway dirty."""

from __future__ import annotations

import base64

import pytest
from controller_world import NOW, Cluster, gateway, node, peer, reasons, tunnel

from ravenvpn.k8s.controller.cache import ObjectKind
from ravenvpn.k8s.controller.decide import WriteScope
from ravenvpn.k8s.controller.decode import EXTRA_FIELDS
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import Situation
from ravenvpn.mesh.status import Gates

FACTORY = gateway("factory", [tunnel("edge-1", underNAT=True), tunnel("edge-2", underNAT=True)])
EDGE_1 = node("edge-1", "factory", cidrs=["10.244.1.0/24", "fd00:10:244:1::/64"], ip="10.0.1.1")
EDGE_2 = node("edge-2", "factory", cidrs=["10.244.2.0/24"], ip="10.0.1.2")


@pytest.fixture
def factory() -> Cluster:
    return Cluster(FACTORY, EDGE_1, EDGE_2)


def test_a_fresh_gateway_gets_the_whole_status_at_once(factory: Cluster) -> None:
    decision = factory.decide("factory")
    assert decision.status is not None
    assert decision.status["metadata"] == {"resourceVersion": "1"}
    status = decision.status["status"]
    assert status["nodes"] == [
        {"nodeName": "edge-1", "privateIP": "10.0.1.1", "subnets": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        {"nodeName": "edge-2", "privateIP": "10.0.1.2", "subnets": ["10.244.2.0/24"]},
    ]
    assert status["activeEndpoints"] == [
        {
            "nodeName": "edge-1",
            "type": "tunnel",
            "underNAT": True,
            "config": {"enable-l3-tunnel": "true", "ravenvpn.io/epoch": "1"},
        }
    ]
    assert status["nodeCount"] == 2
    assert reasons(decision) == [("ActiveEndpointElected", "active tunnel endpoint: edge-1")]


def test_a_written_status_is_not_written_again(factory: Cluster) -> None:
    factory.reconcile("factory")
    assert not factory.decide("factory", now="2026-02-01T00:00:00Z")


def test_the_role_moves_when_its_node_is_no_longer_ready(factory: Cluster) -> None:
    factory.reconcile("factory")
    factory.put(node("edge-1", "factory", ready=False, ip="10.0.1.1"))
    decision = factory.reconcile("factory")
    assert factory.active("factory") == ["edge-2"]
    assert factory.status("factory")["activeEndpoints"][0]["config"]["ravenvpn.io/epoch"] == "2"
    assert reasons(decision) == [("ActiveEndpointElected", "active tunnel endpoint: edge-2 (was edge-1)")]


def test_the_role_does_not_move_back(factory: Cluster) -> None:
    factory.reconcile("factory")
    factory.put(node("edge-1", "factory", ready=False))
    factory.reconcile("factory")
    factory.put(EDGE_1)
    factory.reconcile("factory")
    assert factory.active("factory") == ["edge-2"]


def test_a_deleted_or_unlabelled_node_does_not_stay_active(factory: Cluster) -> None:
    """openyurtio/openyurt #2797. A watch with a label selector delivers both as DELETED."""
    factory.reconcile("factory")
    factory.drop("Node", "edge-1")
    assert factory.drain() == {"factory"}
    factory.reconcile("factory")
    assert factory.active("factory") == ["edge-2"]
    assert [n["nodeName"] for n in factory.status("factory")["nodes"]] == ["edge-2"]


def test_a_node_that_moved_to_another_region_leaves_the_first(factory: Cluster) -> None:
    factory.reconcile("factory")
    factory.drain()
    factory.put(node("edge-1", "office"))
    assert factory.drain() == {"factory", "office"}
    factory.reconcile("factory")
    assert factory.active("factory") == ["edge-2"]


def test_a_lost_role_is_a_warning_and_its_epoch_goes_on(factory: Cluster) -> None:
    factory.reconcile("factory")
    factory.put(node("edge-1", "factory", ready=False), node("edge-2", "factory", ready=False))
    decision = factory.reconcile("factory")
    assert factory.active("factory") == []
    assert reasons(decision) == [("ActiveEndpointLost", "no active tunnel endpoint any more (was edge-1)")]
    assert decision.notices[0].warning
    factory.put(EDGE_2)
    factory.reconcile("factory")
    # The stored status has lost the epoch; the cache still has it.
    assert factory.status("factory")["activeEndpoints"][0]["config"]["ravenvpn.io/epoch"] == "2"


def test_a_heartbeat_of_a_node_makes_no_gateway_dirty(factory: Cluster) -> None:
    factory.drain()
    factory.put(EDGE_1)
    assert factory.drain() == set()


def test_a_changed_node_makes_only_its_gateway_dirty(factory: Cluster) -> None:
    factory.put(gateway("office", [tunnel("office-1")]), node("office-1", "office"))
    factory.drain()
    factory.put(node("edge-2", "factory", cidrs=["10.244.7.0/24"]))
    assert factory.drain() == {"factory"}


def test_extra_cidrs_belong_to_the_active_node(factory: Cluster) -> None:
    annotations = {"raven.openyurt.io/extra-allowed-source-cidrs": "192.168.7.0/24"}
    factory.put({**FACTORY, "metadata": {**FACTORY["metadata"], "annotations": annotations}})
    factory.reconcile("factory")
    assert factory.status("factory")["nodes"][0]["subnets"] == [
        "10.244.1.0/24",
        "fd00:10:244:1::/64",
        "192.168.7.0/24",
    ]


# Gates.


def config_map(**data: str) -> dict[str, object]:
    return {"kind": "ConfigMap", "metadata": {"name": "raven-cfg", "namespace": "kube-system"}, "data": data}


BOTH = gateway(
    "cloud",
    [tunnel("cloud-1"), {"nodeName": "cloud-1", "type": "proxy"}],
    proxyConfig={"Replicas": 1},
)


def test_without_raven_cfg_the_tunnel_is_elected_and_the_proxy_is_not() -> None:
    cluster = Cluster(BOTH, node("cloud-1", "cloud"))
    cluster.reconcile("cloud")
    assert [e["type"] for e in cluster.status("cloud")["activeEndpoints"]] == ["tunnel"]


def test_raven_cfg_turns_roles_on_and_off() -> None:
    cluster = Cluster(BOTH, node("cloud-1", "cloud"))
    cluster.put(config_map(**{"enable-l7-proxy": "true", "enable-l3-tunnel": "true"}))
    cluster.reconcile("cloud")
    active = cluster.status("cloud")["activeEndpoints"]
    assert [(e["type"], e["config"]) for e in active] == [
        ("proxy", {"enable-l7-proxy": "true", "ravenvpn.io/epoch": "1"}),
        ("tunnel", {"enable-l3-tunnel": "true", "ravenvpn.io/epoch": "1"}),
    ]
    cluster.put(config_map(**{"enable-l7-proxy": "true"}))
    assert "cloud" in cluster.drain()
    cluster.reconcile("cloud")
    assert [e["type"] for e in cluster.status("cloud")["activeEndpoints"]] == ["proxy"]
    assert cluster.condition("cloud", "EndpointElected")["status"] == "True"


def test_a_tunnel_turned_off_names_the_config_map() -> None:
    cluster = Cluster(FACTORY, EDGE_1, config_map())
    cluster.reconcile("factory")
    condition = cluster.condition("factory", "Ready")
    assert condition["reason"] == "TurnedOff"
    assert condition["message"] == (
        "ConfigMap kube-system/raven-cfg turns the tunnel off for the whole cluster; "
        'set enable-l3-tunnel: "true" in it'
    )


def test_a_deleted_raven_cfg_restores_the_defaults() -> None:
    cluster = Cluster(FACTORY, EDGE_1, config_map())
    cluster.drop("ConfigMap", "raven-cfg")
    assert cluster.cache.gates == Gates(tunnel=True, proxy=False)


# Calico.


def block(name: str, node: str, cidr: str, state: str = "confirmed", **spec: str) -> dict[str, object]:
    return {
        "kind": "BlockAffinity",
        "metadata": {"name": name},
        "spec": {"node": node, "cidr": cidr, "state": state, **spec},
    }


def subnets(cluster: Cluster) -> list[list[str]]:
    cluster.reconcile("factory")
    return [n["subnets"] for n in cluster.status("factory")["nodes"]]


def calico(name: str, cidr: str) -> dict[str, object]:
    return node(name, "factory", cidrs=[cidr], annotations={"projectcalico.org/IPv4Address": "10.0.1.1/24"})


def test_calicos_blocks_replace_pod_cidrs_and_follow_changes() -> None:
    """openyurtio/openyurt #1809: a block that was created later was never read."""
    cluster = Cluster(FACTORY, calico("edge-1", "10.244.1.0/24"), calico("edge-2", "10.244.2.0/24"))
    # no block in the cluster: the IPAM is host-local
    assert subnets(cluster) == [["10.244.1.0/24"], ["10.244.2.0/24"]]
    cluster.put(block("b1", "edge-1", "10.9.0.64/26"))
    assert cluster.drain() >= {"factory"}
    assert subnets(cluster) == [["10.9.0.64/26"], []]
    cluster.put(
        block("b2", "edge-2", "10.9.0.0/26"),
        block("b3", "edge-1", "fd00:9::/122"),
        block("b4", "edge-1", "10.9.1.0/26", state="pending"),
        block("b5", "edge-1", "10.9.2.0/26", deleted="true"),
        block("b6", "edge-1", "nonsense"),
    )
    assert subnets(cluster) == [["10.9.0.64/26", "fd00:9::/122"], ["10.9.0.0/26"]]
    cluster.drain()
    cluster.drop("BlockAffinity", "b1")
    assert cluster.drain() == {"factory"}
    assert subnets(cluster) == [["fd00:9::/122"], ["10.9.0.0/26"]]


def test_blocks_are_ignored_on_nodes_without_calico() -> None:
    cluster = Cluster(FACTORY, EDGE_2, block("b1", "edge-2", "10.9.0.64/26"))
    assert subnets(cluster) == [["10.244.2.0/24"]]


def test_a_peer_cannot_move_a_role(factory: Cluster) -> None:
    """Any agent's token may write any Peer, and a stand-in observed the dead gateway from its own node only."""
    factory.reconcile("factory")
    claiming = peer("edge-2", "factory")
    claiming["metadata"]["labels"]["ravenvpn.io/role"] = "gateway"
    claiming["metadata"]["annotations"] = {"ravenvpn.io/epoch": "4"}
    factory.put(claiming)
    factory.reconcile("factory")
    assert factory.active("factory") == ["edge-1"]
    assert factory.status("factory")["activeEndpoints"][0]["config"]["ravenvpn.io/epoch"] == "1"


def test_the_election_chooses_the_node_that_agents_use_as_stand_in() -> None:
    """The active node died while no controller elected. Both follow the order of endpoints: nothing moves twice."""
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1"), tunnel("edge-3"), tunnel("edge-2")]),
        gateway("cloud", [tunnel("cloud-1", publicIP="203.0.113.10")]),
        node("cloud-1", "cloud", cidrs=["10.244.9.0/24"], ip="10.0.9.1"),
    )
    for i in (1, 2, 3):
        cluster.put(node(f"edge-{i}", "factory", cidrs=[f"10.244.{i}.0/24"], ip=f"10.0.1.{i}"))
    for i, name in enumerate(("cloud-1", "edge-1", "edge-2", "edge-3")):
        cluster.put(peer(name, "", base64.b64encode(bytes([i + 1] * 32)).decode()))
    cluster.reconcile("cloud")
    cluster.reconcile("factory")
    known_before = cluster.world()
    cluster.put(node("edge-1", "factory", ready=False, cidrs=["10.244.1.0/24"], ip="10.0.1.1"))
    cluster.reconcile("factory")

    assert cluster.active("factory") == ["edge-3"]
    for me in ("cloud-1", "edge-2", "edge-3"):
        alive = {name: LivenessVerdict.ALIVE for name in ("cloud-1", "edge-2", "edge-3") if name != me}
        seen = Liveness({**alive, "edge-1": LivenessVerdict.DEAD})
        planner = Planner(me)
        planner.update(Situation(known_before))
        stand_in, elected = (
            planner.update(Situation(known_before, seen)),
            planner.update(Situation(cluster.world(), seen)),
        )
        assert stand_in.tunnel.routes or stand_in.host, f"{me} uses edge-3"
        assert (elected.tunnel.routes, bool(elected.host)) == ((), False), f"{me} uses it already"


# Fields that the served schema allows.


def test_no_conditions_are_written_if_the_served_schema_has_none(factory: Cluster) -> None:
    decision = factory.decide("factory", WriteScope(elects=True, extra_fields=frozenset(), keys=True))
    assert decision.status is not None
    assert set(decision.status["status"]) == {"nodes", "activeEndpoints"}


def test_a_controller_that_steps_back_writes_no_status_and_no_events(factory: Cluster) -> None:
    decision = factory.decide("factory", WriteScope(elects=False, extra_fields=EXTRA_FIELDS, keys=True))
    assert not decision


def test_an_older_watch_event_does_not_undo_the_answer_to_a_write(factory: Cluster) -> None:
    """The watch delivers the version before a write after the answer to it."""
    old = factory.documents["factory"]
    factory.reconcile("factory")
    factory.cache.apply(ObjectKind.GATEWAY, [old])
    assert factory.cache.gateways["factory"].resource_version == "2"
    assert not factory.decide("factory", now=NOW)


def test_a_recreated_gateway_starts_with_epoch_one(factory: Cluster) -> None:
    factory.reconcile("factory")
    factory.put(node("edge-1", "factory", ready=False))
    factory.reconcile("factory")
    again = {**FACTORY, "metadata": {**FACTORY["metadata"], "uid": "another", "resourceVersion": "9"}}
    factory.put(again, EDGE_1)
    factory.reconcile("factory")
    assert factory.active("factory") == ["edge-1"]
    assert factory.status("factory")["activeEndpoints"][0]["config"]["ravenvpn.io/epoch"] == "1"
