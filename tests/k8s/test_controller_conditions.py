"""What the conditions of a Gateway say, and what malformed objects do: they are told of, and hold nobody up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from controller_world import KEY, NOW, Cluster, gateway, node, peer, reasons, tunnel

LATER = "2026-01-31T13:00:00Z"


def test_a_joined_region_is_ready() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory", cidrs=["10.244.1.0/24"]))
    cluster.settle("factory")
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
            "message": "no other object claims what this one does",
            "observedGeneration": 1,
            "lastTransitionTime": NOW,
        },
    ]


def test_the_time_of_a_transition_stays_while_nothing_turns() -> None:
    spec = gateway("factory", [tunnel("edge-1"), tunnel("edge-2")])
    cluster = Cluster(spec, node("edge-1", "factory"), node("edge-2", "factory"))
    cluster.settle("factory")
    cluster.put(node("edge-1", "factory", ready=False))
    cluster.settle("factory", now=LATER)
    ready = cluster.condition("factory", "Ready")
    assert (ready["message"][:27], ready["lastTransitionTime"]) == ("2 nodes, edge-2 carries the", NOW)
    cluster.put(node("edge-2", "factory", ready=False))
    cluster.settle("factory", now=LATER)
    assert cluster.condition("factory", "Ready")["lastTransitionTime"] == LATER


def test_a_changed_spec_is_seen_to_be_observed() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    cluster.settle("factory")
    document = cluster.documents["factory"]
    cluster.put({**document, "metadata": {**document["metadata"], "generation": 2, "resourceVersion": "3"}})
    cluster.settle("factory", now=LATER)
    ready = cluster.condition("factory", "Ready")
    assert (ready["observedGeneration"], ready["lastTransitionTime"]) == (2, NOW)


def test_conditions_of_others_stay() -> None:
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
    cluster.settle("factory")
    assert cluster.condition("factory", "ForwardingVerified") == theirs
    assert not cluster.decide("factory")


@pytest.mark.parametrize(
    ("endpoints", "nodes", "reason", "message"),
    [
        ([], [], "NoEndpoint", "spec.endpoints lists nobody of type tunnel"),
        (
            [tunnel("edge-1")],
            [],
            "NoReadyNode",
            "node edge-1 is not there or lacks the label raven.openyurt.io/gateway=factory",
        ),
        ([tunnel("edge-1")], [node("edge-1", "factory", ready=False)], "NoReadyNode", "node edge-1 is not Ready"),
        (
            [tunnel("edge-1")],
            [node("edge-1", "office")],
            "NoReadyNode",
            "node edge-1 belongs to Gateway office by its label",
        ),
    ],
)
def test_why_nobody_is_elected(endpoints: list, nodes: list, reason: str, message: str) -> None:  # type: ignore[type-arg]
    cluster = Cluster(gateway("factory", endpoints), *nodes)
    cluster.settle("factory")
    for kind in ("Ready", "EndpointElected"):
        condition = cluster.condition("factory", kind)
        assert (condition["status"], condition["reason"], condition["message"]) == ("False", reason, message)


def test_a_region_that_wants_no_tunnel_says_so() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")], tunnelConfig={"Replicas": 0}), node("edge-1", "factory"))
    cluster.settle("factory")
    assert cluster.condition("factory", "Ready")["reason"] == "NotWanted"


# Conflicts.


def test_an_overlap_is_the_younger_ones_and_names_the_other() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1")], metadata={"creationTimestamp": "2026-01-01T00:00:00Z"}),
        gateway("office", [tunnel("office-1")], metadata={"creationTimestamp": "2026-01-02T00:00:00Z"}),
        node("edge-1", "factory", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("office-1", "office", cidrs=["10.244.1.0/24"], ip="10.0.2.1"),
    )
    look(cluster)
    assert cluster.condition("factory", "Conflict")["status"] == "False"
    conflict = cluster.condition("office", "Conflict")
    assert (conflict["status"], conflict["reason"]) == ("True", "Overlap")
    assert conflict["message"].startswith(
        "Gateway office, status.nodes[0].subnets[0]: overlapping prefixes: 10.244.1"
    )
    assert "Gateway factory" in conflict["message"]


def look(cluster: Cluster) -> list[tuple[str, str]]:
    """As a round does: what all should say, who contradicts whom, and then each."""
    from ravenvpn.k8s.controller.desired import status_of

    values = {name: held.value for name, held in cluster.view.gateways.items() if held.value}
    wanted = {
        name: replace(value, status=status_of(cluster.view, value, cluster.addresses))
        for name, value in values.items()
    }
    cluster.standing.update(wanted, dict(cluster.view.peers))
    return [told for name in sorted(values) for told in reasons(cluster.settle(name))]


def test_a_conflict_is_told_once_as_long_as_it_lasts() -> None:
    cluster = Cluster(
        gateway("a", [tunnel("a-1")]),
        gateway("b", [tunnel("b-1")]),
        node("a-1", "a", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("b-1", "b", cidrs=["10.244.1.0/25"], ip="10.0.2.1"),
    )
    assert [reason for reason, _ in look(cluster)].count("Conflict") == 1
    assert look(cluster) == []
    cluster.put(node("b-1", "b", cidrs=["10.244.2.0/24"], ip="10.0.2.1"))
    assert look(cluster) == []
    assert cluster.condition("b", "Conflict")["status"] == "False"


def test_a_peers_conflict_is_its_regions() -> None:
    cluster = Cluster(
        gateway("a", [tunnel("a-1")]),
        gateway("b", [tunnel("b-1")]),
        node("a-1", "a", cidrs=["10.244.1.0/24"], ip="10.0.1.1"),
        node("b-1", "b", cidrs=["10.244.2.0/24"], ip="10.0.2.1"),
        peer("a-1", "a", KEY),
        peer("b-1", "b", KEY),
    )
    look(cluster)
    conflict = cluster.condition("b", "Conflict")
    assert conflict["reason"] == "DuplicateKey"
    assert "Peer b-1" in conflict["message"]
    assert "Peer a-1" in conflict["message"]


# Malformed objects.


def test_a_malformed_gateway_says_what_is_wrong_and_keeps_its_status() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    cluster.settle("factory")
    good = cluster.documents["factory"]
    metadata = {**good["metadata"], "generation": 2, "resourceVersion": "7"}
    cluster.put({**good, "metadata": metadata, "spec": {**good["spec"], "exposeType": "Magic"}})
    decision = cluster.settle("factory")
    ready = cluster.condition("factory", "Ready")
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("False", "Malformed", 2)
    assert ready["message"].startswith("spec.exposeType: 'Magic' is unknown (write PublicIP or LoadBalancer")
    assert [reason for reason, _ in reasons(decision)] == ["Malformed"]
    assert cluster.active("factory") == ["edge-1"]
    assert not cluster.decide("factory")  # said once


def test_a_malformed_gateway_still_moves_its_role_by_its_last_good_spec() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1"), tunnel("edge-2")]), node("edge-1", "factory"), node("edge-2", "factory")
    )
    cluster.settle("factory")
    good = cluster.documents["factory"]
    cluster.put(
        {**good, "metadata": {**good["metadata"], "resourceVersion": "7"}, "spec": {"endpoints": "nobody"}},
        node("edge-1", "factory", ready=False),
    )
    cluster.settle("factory")
    assert cluster.active("factory") == ["edge-2"]
    assert cluster.condition("factory", "Ready")["reason"] == "Malformed"


def test_a_gateway_malformed_from_the_start_has_conditions_and_no_nodes() -> None:
    cluster = Cluster(gateway("factory", [{"nodeName": "edge-1", "type": "magic"}]), node("edge-1", "factory"))
    cluster.settle("factory")
    assert cluster.condition("factory", "Ready")["reason"] == "Malformed"
    assert cluster.condition("factory", "EndpointElected")["reason"] == "Malformed"
    assert "nodes" not in cluster.status("factory")


def test_a_status_that_cannot_be_read_is_written_anew() -> None:
    cluster = Cluster(
        gateway("factory", [tunnel("edge-1")], status={"nodes": [{"nodeName": "edge-1", "privateIP": "nowhere"}]}),
        node("edge-1", "factory", cidrs=["10.244.1.0/24"]),
    )
    cluster.settle("factory")
    assert cluster.active("factory") == ["edge-1"]
    assert cluster.condition("factory", "Ready")["status"] == "True"


def test_a_malformed_node_is_named_and_the_others_go_on() -> None:
    broken = node("edge-2", "factory", cidrs=["10.244.2.7/24"], uid="7")
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"), broken)
    decision = cluster.settle("factory")
    assert cluster.active("factory") == ["edge-1"]
    ready = cluster.condition("factory", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MalformedNode")
    assert ready["message"].startswith("Node edge-2: spec.podCIDRs[0]: '10.244.2.7/24' has host bits")
    told = next(n for n in decision.notices if n.reason == "Malformed")
    assert (told.subject.kind, told.subject.name, told.subject.uid) == ("Node", "edge-2", "7")


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
def test_junk_raises_nothing_and_leaves_the_others_alone(junk: dict) -> None:  # type: ignore[type-arg]
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    junk.setdefault("metadata", {})
    cluster.put({**junk, "metadata": {"name": "x", "resourceVersion": "5", **junk["metadata"]}})
    cluster.decide("x")
    cluster.settle("factory")
    assert cluster.active("factory") == ["edge-1"]
