"""The demonstration mesh as a test: every pod reaches every pod, and the agents report the paths."""

from __future__ import annotations

import time

import pytest
from agent_mesh import Mesh
from agent_traffic import Traffic

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss"), pytest.mark.timeout(180)]


def test_every_pod_reaches_every_pod_and_keeps_its_source(mesh: Mesh) -> None:
    pods = mesh.lab.pods
    pairs = [(one, other) for one in pods for other in pods if one.node is not other.node]
    assert len(pairs) == 36
    with Traffic(pairs, rate=10, versions=(4, 6)) as traffic:
        time.sleep(2)
    assert [str(flow) for flow in traffic.flows if flow.lost()] == []
    assert [str(flow) for flow in traffic.flows if flow.sources != {flow.own_address}] == []


def test_two_regions_behind_nat_report_the_hub_between_them(mesh: Mesh) -> None:
    paths = {
        node.name: {region["name"]: (region["path"], region["ok"]) for region in mesh.agents.status(node)["regions"]}
        for node in mesh.lab.nodes
    }
    hub = paths["factory-1"]["ship"][0]
    assert hub in {"via cloud", "via harbour"}
    assert paths["factory-1"] == {"cloud": ("direct", True), "harbour": ("direct", True), "ship": (hub, True)}
    assert paths["ship-1"] == {"cloud": ("direct", True), "harbour": ("direct", True), "factory": (hub, True)}
    assert {path for name in ("cloud-1", "harbour-1") for path, _ in paths[name].values()} == {"direct"}


def test_peers_are_shown_with_round_trip_and_prefixes(mesh: Mesh) -> None:
    node = mesh.node("factory-1")
    peers = {peer["name"]: peer for peer in mesh.agents.peers(node)}
    hub = mesh.hub()
    assert set(peers) == {"cloud-1", "harbour-1"}, "the other region behind NAT is nobody we could call"
    for peer in peers.values():
        assert peer["state"] == "up"
        assert 0.0 < peer["rtt"] < 1.0
        assert peer["rx_bytes"] > 0
        assert peer["tx_bytes"] > 0
    assert {peer["path"] for peer in peers.values()} == {"direct"}
    assert {name: peer["relays"] for name, peer in peers.items() if peer["relays"]} == {hub: ["ship"]}
    beyond = {str(cidr) for cidr in mesh.node("ship-1").pod_cidrs}
    assert beyond <= set(peers[hub]["prefixes"])
