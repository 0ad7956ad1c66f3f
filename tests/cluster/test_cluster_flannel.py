"""Agents beside the real flanneld in VXLAN mode, with and without its masquerading. The agents read files.

flannel has routes to all pods of the cluster over `flannel.1`. Across regions its packets do not arrive, since
private addresses are only valid inside their region. Within a region the traffic must stay on flannel's paths.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cluster_dumps import dump
from cluster_lab import ClusterLab, cluster_lab
from cluster_pairs import Pairs
from lab.lab_mesh import LabMesh

from ravenvpn.lab.agents import Agents, wait_until
from ravenvpn.lab.host import LabNode

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "tcpdump", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]


@dataclass
class Beside:
    """A cluster with flannel and agents. `before` holds dumps of one region's nodes from before the first agent."""

    cluster: ClusterLab
    agents: Agents
    before: dict[str, dict[str, object]]

    @property
    def mesh(self) -> LabMesh:
        return LabMesh(self.cluster.lab, self.agents, self.before)


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    with cluster_lab(masquerade=True) as cluster:
        with Pairs(cluster.lab.pods) as pairs:
            nearby = {(one.name, other.name) for one, other in in_region(cluster)}
            wait_until(
                lambda: not nearby & {(p.sender, p.receiver) for p in pairs.missing()}, "flannel joins the regions"
            )
            alone = {(p.sender, p.receiver) for p in pairs.missing()}
        everywhere = {(one.name, other.name) for one, other in itertools.permutations(cluster.lab.pods, 2)}
        assert alone == everywhere - nearby, "without an agent no region reaches another, or this lab proves nothing"
        before = {node.name: dump(node) for node in cluster.lab.nodes if node.region.name == "factory"}
        agents = Agents(cluster.lab)
        agents.prepare()
        agents.start_all()
        beside = Beside(cluster, agents, before)
        beside.mesh.wait_until_healthy()
        yield beside


def in_region(cluster: ClusterLab) -> list:
    return [
        (one, other)
        for one, other in itertools.permutations(cluster.lab.pods, 2)
        if one.node.region is other.node.region
    ]


def test_every_pod_reaches_every_pod_with_its_own_source(beside: Beside) -> None:
    with Pairs(beside.cluster.lab.pods) as pairs:
        assert len(pairs.wanted) == 9 * 8 * 2
        pairs.until_complete(20)


def test_in_a_region_flannel_goes_on_carrying_what_it_carried(beside: Beside) -> None:
    lab = beside.cluster.lab
    with Pairs(lab.pods) as pairs, contextlib.ExitStack() as stack:
        pairs.until_complete(20)
        ours, flannels = (
            {
                (node.name, device): stack.enter_context(node.capture(device, f"udp port {pairs.port}"))
                for node in lab.nodes
                for device in devices
                if f" {device}" in f" {node.ip('-br link show')}".replace("\n", " ")
            }
            for devices in (("raven0", "ravenvpn0"), ("flannel.1", "flannel-v6.1"))
        )
        assert pairs.missing() == []
    addresses = {pod.name: (pod.v4.packed, pod.v6.packed) for pod in lab.pods}

    def inside(frame: bytes, region: object) -> bool:
        mates = [addresses[pod.name] for pod in lab.pods if pod.node.region is region]
        return sum(any(address in frame for address in both) for both in mates) == 2

    for (name, device), seen in ours.items():
        frames = list(seen.frames())
        # The tunnel of a standby carries no traffic.
        assert frames or (name, device) == ("factory-2", "ravenvpn0"), "what goes to other regions is seen here"
        assert not any(inside(frame, lab.node(name).region) for frame in frames), (name, device)
    for (name, device), seen in flannels.items():
        frames = list(seen.frames())
        assert frames, (name, device)
        assert all(inside(frame, lab.node(name).region) for frame in frames), (name, device)


def test_flannel_keeps_its_own_while_agents_run(beside: Beside) -> None:
    """The links and routes that flanneld installed are unchanged, apart from the objects of ravenvpn."""
    for name, before in beside.before.items():
        now = dump(beside.cluster.node(name))
        for command in ("ip -j link", "ip -j -4 route show table main", "ip -j -6 route show table main"):
            kept = [thing for thing in now[command] if "raven" not in str(thing)]  # type: ignore[attr-defined]
            assert kept == before[command], (name, command)


@pytest.mark.parametrize("name", ["factory-1", "factory-2", "factory-3"], ids=["gateway", "standby", "plain"])
def test_after_cleanup_the_host_is_as_before_the_first_start(beside: Beside, name: str) -> None:
    node: LabNode = beside.cluster.node(name)
    beside.agents.end(node)
    assert dump(node) != beside.before[name], "what an agent leaves must show in a dump"
    beside.agents.cli(node, "cleanup")
    assert dump(node) == beside.before[name]
    beside.agents.start(node)
    beside.mesh.wait_until_healthy(name)


def test_flannel_started_anew_without_masquerade_is_as_good(beside: Beside) -> None:
    """This test runs last in the file, since it changes flannel's rules."""
    beside.cluster.stop_flannel()
    with Pairs(beside.cluster.lab.pods) as pairs:
        pairs.until_complete(5)
        beside.cluster.start_flannel(masquerade=False)
        pairs.until_complete(20)
