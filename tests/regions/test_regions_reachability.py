"""Reachability and source addresses in three regions of three nodes, each with another CNI or packet filter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from region_dumps import dump
from region_mesh import IPTABLES, TOOLS, Mesh, assert_clean
from region_traffic import Answer, Pair, Refusal, datagrams, echoes, pairs, region_of, stations, streams, version

from ravenvpn.lab import Lab, LabNode, Nat, Pod, Region
from ravenvpn.lab.topology import Cni, Flavour

pytestmark = [pytest.mark.root, pytest.mark.needs(*TOOLS, *IPTABLES), pytest.mark.timeout(240)]

REGIONS = (
    Region("cloud", nodes=3, pods=2, masquerade=True, flavour=Flavour.NFT),
    Region(
        "factory",
        3,
        2,
        Nat.PORT_RESTRICTED,
        gateways=2,
        cni=Cni.CALICO,
        masquerade=True,
        flavour=Flavour.IPTABLES_NFT,
    ),
    Region("ship", 3, 2, Nat.SYMMETRIC, masquerade=True, flavour=Flavour.IPTABLES_LEGACY),
)
TUNNEL_MTU = 1420  # underlay 1500, outer IPv6, UDP and transport header 80
POD_MTU = 1500
DEVICES = ("raven0", "ravenvpn0")  # VXLAN and tunnel


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        mesh = Mesh.prepared(lab, dump)
        mesh.start_all()
        yield mesh


def run(mesh: Mesh, work: Coroutine[Any, Any, dict[Pair, Answer]], *more: LabNode | Pod) -> dict[Pair, Answer]:
    """Run `work` with a station in every pod and on the hosts `more`."""

    async def everything() -> dict[Pair, Answer]:
        async with stations([*mesh.lab.pods, *more]):
            return await work

    return asyncio.run(everything())


def own(host: Pod | LabNode, pair: Pair) -> Any:
    """Return the expected source address: that of the pod, or the one that the node announces."""
    addresses = host if isinstance(host, Pod) else host.source
    return addresses.v4 if version(pair.target) == 4 else addresses.v6


def wrong(answers: dict[Pair, Answer], expected: dict[Pair, object]) -> list[str]:
    assert answers.keys() == expected.keys()
    return [f"{pair}: {answers[pair]}, not {right}" for pair, right in expected.items() if answers[pair] != right]


def test_datagrams_between_all_pods_arrive_with_the_pods_own_source(mesh: Mesh):
    asked = pairs(mesh.lab.pods, mesh.lab.pods)
    assert len(asked) == 18 * 17 * 2
    assert wrong(run(mesh, datagrams(asked)), {pair: own(pair.sender, pair) for pair in asked}) == []


def test_pings_between_all_pods_are_answered(mesh: Mesh):
    asked = pairs(mesh.lab.pods, mesh.lab.pods)
    assert wrong(run(mesh, echoes(asked)), {pair: pair.target for pair in asked}) == []


def across(answers: dict[Pair, Answer]) -> dict[Pair, Answer]:
    return {pair: answer for pair, answer in answers.items() if pair.crosses}


def unanswered(answers: dict[Pair, Answer]) -> list[str]:
    return [f"{pair}: {answer}" for pair, answer in answers.items() if isinstance(answer, str)]


def test_every_node_reaches_every_pod_with_its_announced_source(mesh: Mesh):
    """hostNetwork pods are in the namespace of their node. Inside the region the CNI chooses the source."""
    asked = pairs(mesh.lab.nodes, mesh.lab.pods)
    answers = run(mesh, datagrams(asked))
    assert wrong(across(answers), {pair: own(pair.sender, pair) for pair in asked if pair.crosses}) == []
    assert unanswered(answers) == []
    assert wrong(run(mesh, echoes(asked)), {pair: pair.target for pair in asked}) == []


def test_tcp_from_every_pod_and_node_to_every_pod(mesh: Mesh):
    asked = pairs([*mesh.lab.pods, *mesh.lab.nodes], mesh.lab.pods)
    answers = run(mesh, streams(asked, 256 << 10))
    assert wrong(across(answers), {pair: own(pair.sender, pair) for pair in asked if pair.crosses}) == []
    assert unanswered(answers) == []


def test_ten_megabytes_between_any_two_regions(mesh: Mesh):
    """From a gateway's pod and a plain node's pod to a plain node's pod."""
    senders = [mesh.lab.pod(f"{region.name}-{pod}") for region in REGIONS for pod in ("1-pod-1", "3-pod-1")]
    receivers = [mesh.lab.pod(f"{region.name}-3-pod-2") for region in REGIONS]
    asked = [pair for pair in pairs(senders, receivers) if pair.crosses]
    assert len(asked) == 6 * 2 * 2
    assert wrong(run(mesh, streams(asked, 10 << 20)), {pair: own(pair.sender, pair) for pair in asked}) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_megabytes_from_every_pod_and_node_to_every_pod(mesh: Mesh):
    asked = pairs([*mesh.lab.pods, *mesh.lab.nodes], mesh.lab.pods)
    answers = run(mesh, streams(asked, 10 << 20, limit=600))
    assert wrong(across(answers), {pair: own(pair.sender, pair) for pair in asked if pair.crosses}) == []
    assert unanswered(answers) == []


def test_one_byte_over_the_mtu_is_refused_with_the_mtu(mesh: Mesh):
    """DF is set, IPv4 and IPv6. Between regions the sender's own node sends the ICMP error, from its own address."""
    asked = pairs(mesh.lab.pods, mesh.lab.pods)
    between, within = ([pair for pair in asked if pair.crosses is crosses] for crosses in (True, False))
    fits = run(mesh, datagrams(between, TUNNEL_MTU)) | run(mesh, datagrams(within, POD_MTU))
    assert wrong(fits, {pair: own(pair.sender, pair) for pair in asked}) == []

    too_big = run(mesh, datagrams(between, TUNNEL_MTU + 1))
    assert wrong(too_big, {pair: Refusal(TUNNEL_MTU, first_hop(pair)) for pair in between}) == []


def first_hop(pair: Pair) -> Any:
    assert isinstance(pair.sender, Pod)
    node = pair.sender.node
    addresses = node if node.region.cni is Cni.CALICO else node.bridge_addresses
    return addresses.v4 if version(pair.target) == 4 else addresses.v6


def test_traffic_inside_a_region_does_not_pass_our_devices(mesh: Mesh):
    asked = [pair for pair in pairs(mesh.lab.pods, [*mesh.lab.pods, *mesh.lab.nodes]) if not pair.crosses]
    before = counters(mesh)
    answers = run(mesh, datagrams(asked), *mesh.lab.nodes) | run(mesh, streams(asked, 64 << 10), *mesh.lab.nodes)
    assert unanswered(answers) == []
    assert counters(mesh) == before

    # Positive control: one datagram to another region, and its answer.
    (there,) = run(mesh, datagrams(pairs([mesh.lab.pod("factory-3-pod-1")], [mesh.lab.pod("ship-3-pod-1")])[:1]))
    assert there.crosses
    grown = {key: count - before[key] for key, count in counters(mesh).items() if count != before[key]}
    assert set(grown) == {
        ("factory-3", "raven0"),
        ("factory-1", "raven0"),
        ("factory-1", "ravenvpn0"),
        ("cloud-1", "ravenvpn0"),  # the hub of two regions behind NAT: in and out again
        ("ship-1", "ravenvpn0"),
        ("ship-1", "raven0"),
        ("ship-3", "raven0"),
    }
    assert all(count >= (4 if node == "cloud-1" else 2) for (node, _), count in grown.items())


def counters(mesh: Mesh) -> dict[tuple[str, str], int]:
    """Return the packets received and sent by each device of ravenvpn, by node and device."""
    found = {}
    for node in mesh.lab.nodes:
        for link in json.loads(node.ip("-j -s link show")):
            if link["ifname"] in DEVICES:
                found[node.name, link["ifname"]] = sum(link["stats64"][way]["packets"] for way in ("rx", "tx"))
    return found


def test_without_forward_node_ip_node_addresses_are_not_routed(mesh: Mesh):
    """A node's address is reached as without ravenvpn, unless it is the source that the node announces.

    That is so with Calico, where a node has no address among its pods.
    """
    asked = [pair for pair in pairs(mesh.lab.pods, mesh.lab.nodes) if pair.crosses]
    answers = run(mesh, datagrams(asked, at_once=64), *mesh.lab.nodes)
    assert {pair for pair, answer in answers.items() if answer == own(pair.sender, pair)} == {
        pair for pair in asked if region_of(pair.receiver) == "factory"
    }
    # A public address is reached in clear, through both NATs; a private one is not reached.
    assert all(
        answers[pair] in uplink(mesh, region_of(pair.sender)) for pair in asked if region_of(pair.receiver) == "cloud"
    )
    assert all(isinstance(answers[pair], str) for pair in asked if region_of(pair.receiver) == "ship")


def uplink(mesh: Mesh, region: str) -> tuple[Any, ...]:
    router = mesh.lab.router(region)
    return router.v4, router.v6


def test_with_forward_node_ip_every_node_is_reached_through_the_tunnel(mesh: Mesh):
    """From pods and nodes of other regions, also by the public address of a gateway."""
    for node in mesh.lab.nodes:
        node.write("/etc/ravenvpn/config.yaml", "forward_node_ip: true\n")
        mesh.agents.process(node).terminate()
    for node in mesh.lab.nodes:
        mesh.agents.end(node)
    mesh.agents.start_all()
    mesh.wait_until_healthy()
    asked = [pair for pair in pairs([*mesh.lab.pods, *mesh.lab.nodes], mesh.lab.nodes) if pair.crosses]
    expected = {pair: own(pair.sender, pair) for pair in asked}
    assert wrong(run(mesh, datagrams(asked), *mesh.lab.nodes), expected) == []
    assert wrong(run(mesh, streams(asked, 64 << 10), *mesh.lab.nodes), expected) == []
    # Pods are reached as before.
    asked = [pair for pair in pairs([*mesh.lab.pods, *mesh.lab.nodes], mesh.lab.pods) if pair.crosses]
    assert wrong(run(mesh, datagrams(asked)), {pair: own(pair.sender, pair) for pair in asked}) == []


def test_after_cleanup_every_host_is_as_before_the_first_start(mesh: Mesh):
    """Bridge with nft, Calico with iptables-nft, bridge with iptables-legacy; test_regions_failures has others."""
    assert_clean(mesh)
