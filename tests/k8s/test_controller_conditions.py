"""Conditions of a Gateway, and malformed objects: they are reported and do not affect other Gateways."""

from __future__ import annotations

import pytest
from controller_world import KEY, NOW, Cluster, gateway, node, peer, reasons, tunnel

LATER = "2026-01-31T13:00:00Z"


def test_a_joined_region_is_ready() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory", cidrs=["10.244.1.0/24"]))
    cluster.reconcile("factory")
    assert cluster.status("factory")["conditions"] == [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Joined",
            "message": "1 node, edge-1 carries the tunnel",
            "observedGeneration": 1,
            "lastTransitionTime": NOW,
        },
        {
            "type": "EndpointElected",
            "status": "True",
            "reason": "Elected",
            "message": "edge-1 carries the tunnel",
            "observedGeneration": 1,
            "lastTransitionTime": NOW,
        },
        {
            "type": "Conflict",
            "status": "False",
            "reason": "NoConflict",
            "message": "no other object claims what this Gateway claims",
            "observedGeneration": 1,
            "lastTransitionTime": NOW,
        },
    ]


def test_the_transition_time_stays_while_the_status_of_a_condition_does() -> None:
    spec = gateway("factory", [tunnel("edge-1"), tunnel("edge-2")])
    cluster = Cluster(spec, node("edge-1", "factory"), node("edge-2", "factory"))
    cluster.reconcile("factory")
    cluster.put(node("edge-1", "factory", ready=False))
    cluster.reconcile("factory", now=LATER)
    ready = cluster.condition("factory", "Ready")
    assert (ready["message"][:27], ready["lastTransitionTime"]) == ("2 nodes, edge-2 carries the", NOW)
    cluster.put(node("edge-2", "factory", ready=False))
    cluster.reconcile("factory", now=LATER)
    assert cluster.condition("factory", "Ready")["lastTransitionTime"] == LATER


def test_the_observed_generation_follows_the_spec() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    cluster.reconcile("factory")
    document = cluster.documents["factory"]
    cluster.put({**document, "metadata": {**document["metadata"], "generation": 2, "resourceVersion": "3"}})
    cluster.reconcile("factory", now=LATER)
    ready = cluster.condition("factory", "Ready")
    assert (ready["observedGeneration"], ready["lastTransitionTime"]) == (2, NOW)


def test_conditions_of_other_writers_are_kept() -> None:
    theirs = {
        "type": "ForwardingVerified",
        "status": "True",
        "reason": "Probed",
        "message": "",
        "observedGeneration": 0,
        "lastTransitionTime": NOW,
    }
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1")], status={"conditions": [theirs]}), node("edge-1", "factory")
    )
    cluster.reconcile("factory")
    assert cluster.condition("factory", "ForwardingVerified") == theirs
    assert not cluster.decide("factory")


@pytest.mark.parametrize(
    ("endpoints", "nodes", "reason", "message"),
    [
        (
            [],
            [],
            "NoEndpoint",
            "spec.endpoints lists no endpoint of type tunnel; add one with the name of a node of this region",
        ),
        (
            [tunnel("edge-1")],
            [],
            "NoReadyNode",
            "node edge-1 does not exist or lacks the label raven.openyurt.io/gateway=factory",
        ),
        ([tunnel("edge-1")], [node("edge-1", "factory", ready=False)], "NoReadyNode", "node edge-1 is not Ready"),
        (
            [tunnel("edge-1")],
            [node("edge-1", "office")],
            "NoReadyNode",
            "node edge-1 belongs to Gateway office by its label raven.openyurt.io/gateway",
        ),
    ],
)
def test_the_reason_why_no_endpoint_is_elected(endpoints: list, nodes: list, reason: str, message: str) -> None:  # type: ignore[type-arg]
    cluster = Cluster(gateway("factory", endpoints), *nodes)
    cluster.reconcile("factory")
    for kind in ("Ready", "EndpointElected"):
        condition = cluster.condition("factory", kind)
        assert (condition["status"], condition["reason"], condition["message"]) == ("False", reason, message)


def test_a_gateway_without_replicas_is_not_ready() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")], tunnelConfig={"Replicas": 0}), node("edge-1", "factory"))
    cluster.reconcile("factory")
    assert cluster.condition("factory", "Ready")["reason"] == "NotWanted"


# Conflicts.


def test_an_overlap_is_lost_by_the_younger_gateway_and_names_the_other() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1")], metadata={"creationTimestamp": "2026-01-01T00:00:00Z"}),
        gateway("office", [tunnel("office-1")], metadata={"creationTimestamp": "2026-01-02T00:00:00Z"}),
        node("edge-1", "factory", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("office-1", "office", cidrs=["10.244.1.0/24"], ip="10.0.2.1"),
    )
    cluster.reconcile_all()
    assert cluster.condition("factory", "Conflict")["status"] == "False"
    conflict = cluster.condition("office", "Conflict")
    assert (conflict["status"], conflict["reason"]) == ("True", "Overlap")
    assert conflict["message"].startswith(
        "Gateway office, status.nodes[0].subnets[0]: overlapping prefixes: 10.244.1"
    )
    assert "Gateway factory" in conflict["message"]


def test_a_lasting_conflict_is_one_event() -> None:
    cluster = Cluster(
        gateway("a", [tunnel("a-1")]),
        gateway("b", [tunnel("b-1")]),
        node("a-1", "a", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("b-1", "b", cidrs=["10.244.1.0/25"], ip="10.0.2.1"),
    )
    assert [reason for reason, _ in cluster.reconcile_all()].count("Conflict") == 1
    assert cluster.reconcile_all() == []
    cluster.put(node("b-1", "b", cidrs=["10.244.2.0/24"], ip="10.0.2.1"))
    assert cluster.reconcile_all() == []
    assert cluster.condition("b", "Conflict")["status"] == "False"


def test_a_conflict_of_a_peer_is_reported_on_its_gateway() -> None:
    cluster = Cluster(
        gateway("a", [tunnel("a-1")]),
        gateway("b", [tunnel("b-1")]),
        node("a-1", "a", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("b-1", "b", cidrs=["10.244.2.0/24"], ip="10.0.2.1"),
        peer("a-1", "a", KEY),
        peer("b-1", "b", KEY),
    )
    cluster.reconcile_all()
    conflict = cluster.condition("b", "Conflict")
    assert conflict["reason"] == "DuplicateKey"
    assert "Peer b-1" in conflict["message"]
    assert "Peer a-1" in conflict["message"]


# Malformed objects.


def test_a_malformed_gateway_names_the_field_and_keeps_its_status() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    cluster.reconcile("factory")
    good = cluster.documents["factory"]
    metadata = {**good["metadata"], "generation": 2, "resourceVersion": "7"}
    cluster.put({**good, "metadata": metadata, "spec": {**good["spec"], "exposeType": "Magic"}})
    decision = cluster.reconcile("factory")
    ready = cluster.condition("factory", "Ready")
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("False", "Malformed", 2)
    assert ready["message"].startswith("spec.exposeType: 'Magic' is unknown (write PublicIP or LoadBalancer")
    assert [reason for reason, _ in reasons(decision)] == ["Malformed"]
    assert cluster.active("factory") == ["edge-1"]
    assert not cluster.decide("factory")  # reported once


def test_the_last_good_spec_of_a_malformed_gateway_stays_in_force() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1"), tunnel("edge-2")]), node("edge-1", "factory"), node("edge-2", "factory")
    )
    cluster.reconcile("factory")
    good = cluster.documents["factory"]
    cluster.put(
        {**good, "metadata": {**good["metadata"], "resourceVersion": "7"}, "spec": {"endpoints": "nobody"}},
        node("edge-1", "factory", ready=False),
    )
    cluster.reconcile("factory")
    assert cluster.active("factory") == ["edge-2"]
    assert cluster.condition("factory", "Ready")["reason"] == "Malformed"


def test_a_gateway_malformed_from_the_start_has_conditions_and_no_nodes() -> None:
    cluster = Cluster(gateway("factory", [{"nodeName": "edge-1", "type": "magic"}]), node("edge-1", "factory"))
    cluster.reconcile("factory")
    assert cluster.condition("factory", "Ready")["reason"] == "Malformed"
    assert cluster.condition("factory", "EndpointElected")["reason"] == "Malformed"
    assert "nodes" not in cluster.status("factory")


def test_a_malformed_status_is_replaced() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1")], status={"nodes": [{"nodeName": "edge-1", "privateIP": "nowhere"}]}),
        node("edge-1", "factory", cidrs=["10.244.1.0/24"]),
    )
    cluster.reconcile("factory")
    assert cluster.active("factory") == ["edge-1"]
    assert cluster.condition("factory", "Ready")["status"] == "True"


def test_a_malformed_node_is_named_and_does_not_affect_others() -> None:
    broken = node("edge-2", "factory", cidrs=["10.244.2.7/24"], uid="7")
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"), broken)
    decision = cluster.reconcile("factory")
    assert cluster.active("factory") == ["edge-1"]
    ready = cluster.condition("factory", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MalformedNode")
    assert ready["message"].startswith("Node edge-2: spec.podCIDRs[0]: '10.244.2.7/24' has host bits")
    notice = next(n for n in decision.notices if n.reason == "Malformed")
    assert (notice.subject.kind, notice.subject.name, notice.subject.uid) == ("Node", "edge-2", "7")


@pytest.mark.parametrize(
    "junk",
    [
        {"kind": "Gateway"},
        {"kind": "Gateway", "metadata": {"name": "x"}, "spec": 7},
        {"kind": "Gateway", "apiVersion": "raven.openyurt.io/v1beta1", "metadata": {"name": "x", "labels": 7}},
        {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "x"}, "status": []},
        {"kind": "Peer", "metadata": {}},
        {"kind": "Peer", "metadata": {"name": "p"}, "spec": {"publicKey": 7}},
        {"kind": "Service", "metadata": {"name": "x-raven-tunnel-svc-x-1"}, "spec": {"ports": "all"}},
        {"kind": "EndpointSlice", "metadata": {"name": "x"}, "endpoints": {}},
        {"kind": "BlockAffinity", "metadata": {"name": "x"}, "spec": {"cidr": 5}},
        {"kind": "ConfigMap", "metadata": {"name": "raven-cfg"}, "data": ["enable-l3-tunnel"]},
    ],
)
def test_malformed_objects_raise_nothing_and_do_not_affect_others(junk: dict) -> None:  # type: ignore[type-arg]
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    junk.setdefault("metadata", {})
    cluster.put({**junk, "metadata": {"name": "x", "resourceVersion": "5", **junk["metadata"]}})
    cluster.decide("x")
    cluster.reconcile("factory")
    assert cluster.active("factory") == ["edge-1"]
