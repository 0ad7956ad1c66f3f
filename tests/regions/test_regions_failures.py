"""Regions of several nodes when agents start late or are killed, when gateways fail, and after cleanup."""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import time
from collections.abc import Iterator

import pytest
from agent.agent_traffic import Flow, Traffic
from region_dumps import dump
from region_mesh import IPTABLES, TIMEOUT, TOOLS, Mesh, assert_clean

from ravenvpn.lab import Capture, Lab, LabNode, Nat, Region
from ravenvpn.lab.agents import wait_until
from ravenvpn.lab.topology import Cni, Flavour

pytestmark = [pytest.mark.root, pytest.mark.needs(*TOOLS, *IPTABLES), pytest.mark.timeout(240)]

REGIONS = (
    Region("cloud", 3, 1, gateways=2, masquerade=True, flavour=Flavour.IPTABLES_NFT),
    Region("factory", 3, 1, Nat.PORT_RESTRICTED, 2, cni=Cni.CALICO, masquerade=True, flavour=Flavour.IPTABLES_LEGACY),
    Region("ship", 3, 1, Nat.SYMMETRIC, 2, cni=Cni.CALICO, masquerade=True, flavour=Flavour.NFT),
)
# From a gateway, a standby and a plain node of each region to a plain node of another.
FLOWS = [
    (f"{here}-{number}-pod-1", f"{there}-3-pod-1")
    for here, there in (("cloud", "factory"), ("factory", "ship"), ("ship", "cloud"))
    for number in (1, 2, 3)
]
UNASSIGNED = ("10.244.250.1", "fd00:10:244:fa::1")  # in the range of pods, but of no region


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A mesh without agents: the first test starts them."""
    with Lab(*REGIONS) as lab:
        for node in lab.nodes:
            if node.region.name == "factory":
                add_snat(lab, node)
        yield Mesh.prepared(lab, dump)


def add_snat(lab: Lab, node: LabNode) -> None:
    """Add an operator's own SNAT rule for packets to another region.

    The kernel deletes a MASQUERADE mapping when the packets leave by another device, but never an SNAT mapping.
    """
    there = lab.pod("ship-3-pod-1")
    for pod in node.pods:
        for program, source, target, own in (
            ("iptables-legacy", pod.v4, there.v4, node.v4),
            ("ip6tables-legacy", pod.v6, there.v6, node.v6),
        ):
            rule = f"-t nat -I POSTROUTING -s {source} -d {target} -j SNAT --to-source {own}"
            node.run([program, *rule.split()])


def traffic(mesh: Mesh) -> Traffic:
    return Traffic([(mesh.lab.pod(one), mesh.lab.pod(other)) for one, other in FLOWS], rate=20, versions=(4, 6))


def arrives(flow: Flow) -> bool:
    """Return whether a packet sent in the last second has arrived."""
    return any(at > time.monotonic() - 1 for at in list(flow.arrived.values())[-1:])


def conntrack(node: LabNode, *options: str) -> str:
    return node.run(["conntrack", "-L", *options], check=False).stdout


def test_flows_that_began_before_the_agents_lose_their_nat_mapping(mesh: Mesh):
    """Such flows are translated on gateways and plain nodes, and their conntrack entries would keep the mapping."""
    with traffic(mesh) as flowing:
        time.sleep(1)
        for flow in flowing.flows:
            assert flow.arrived == {}
            bound = conntrack(flow.sender.node, "-f", f"ipv{flow.version}", "-d", flow.target[0])
            node = flow.sender.node
            assert f"dst={node.v4 if flow.version == 4 else node.v6} " in bound, "translated to the node's address"
        mesh.agents.start_all()
        mesh.wait_until_healthy()
        healthy = time.monotonic()
        for flow in flowing.flows:
            wait_until(functools.partial(arrives, flow), f"{flow} arrives")
        assert time.monotonic() - healthy <= 5, "right after the start"
        for flow in flowing.flows:
            flow.sources.clear()  # the first packets may have had another accepted source
        time.sleep(0.5)
    for flow in flowing.flows:
        assert flow.sources == {flow.own_address}, flow


@contextlib.contextmanager
def captured(mesh: Mesh) -> Iterator[dict[str, Capture]]:
    """Capture packets that leave a node by its uplink in clear, to a pod of another region or to UNASSIGNED."""
    with contextlib.ExitStack() as stack:
        seen = {}
        for node in mesh.lab.nodes:
            remote = [
                f"dst net {cidr}"
                for other in mesh.lab.nodes
                if other.region is not node.region
                for cidr in other.pod_cidrs
            ]
            there = " or ".join([*remote, *(f"dst host {address}" for address in UNASSIGNED)])
            # The range of pods only: outer packets go to addresses of nodes.
            seen[node.name] = stack.enter_context(node.capture(node.DEVICE, there))
        yield seen


def test_no_packet_for_another_region_leaves_in_clear_during_failures(mesh: Mesh):
    """Agents are killed, gateways fail, a standby is not ready: packets pass the tunnel or are dropped."""
    dice = random.Random(20)
    node, agents = mesh.node, mesh.agents
    with captured(mesh) as seen, traffic(mesh) as flowing:
        for flow in flowing.flows:
            wait_until(functools.partial(arrives, flow), f"{flow} arrives", TIMEOUT)
        # Killed while running: a plain node, the gateway, then its standby, so that the region has no gateway.
        for name in ("factory-3", "factory-1", "factory-2", "cloud-2"):
            agents.end(node(name), signal.SIGKILL)
            time.sleep(0.5)
        # Killed at a random moment of their start.
        for _ in range(3):
            for name in ("factory-1", "factory-3", "factory-2"):
                agents.start(node(name))
            time.sleep(dice.uniform(0.2, 2.5))
            for name in ("factory-1", "factory-3", "factory-2"):
                agents.end(node(name), signal.SIGKILL)
        # The gateway starts while its standby is not ready.
        agents.start(node("factory-1"))
        first = flowing.flow("factory-1-pod-1", "ship-3-pod-1")
        wait_until(functools.partial(arrives, first), f"{first} arrives again", TIMEOUT)
        # Gateways lose their network, among them the hub, whose standby has no agent.
        for region in ("ship", "cloud"):
            router = mesh.lab.router(region)
            router.ip("link set node1 down")
            time.sleep(3)
            router.ip("link set node1 up")
        for name in ("factory-2", "factory-3", "cloud-2"):
            agents.start(node(name))
        mesh.wait_until_healthy()
        for flow in flowing.flows:
            wait_until(functools.partial(arrives, flow), f"{flow} arrives again", TIMEOUT)
        # Positive control: packets to UNASSIGNED leave in clear and are captured.
        for pod in mesh.lab.pods:
            for address in UNASSIGNED:
                pod.run(["ping", "-c", "1", "-W", "0.1", address], check=False)
    for name, capture in seen.items():
        frames = list(capture.frames())
        control = [frame for frame in frames if _is_unassigned(frame)]
        assert len(control) >= 2, name
        assert [frame.hex() for frame in frames if not _is_unassigned(frame)][:5] == [], name
    lost = {str(flow): round(flow.outage(), 1) for flow in flowing.flows}
    assert max(lost.values()) > 1, "the failures interrupted some flow"


def _is_unassigned(frame: bytes) -> bool:
    return frame[30:34] == bytes((10, 244, 250, 1)) or frame[38:54].startswith(bytes.fromhex("fd000010024400fa"))


def test_after_cleanup_every_host_is_as_before_the_first_start(mesh: Mesh):
    """Bridge with iptables-nft, Calico with iptables-legacy, Calico with nft, after the failures above."""
    assert_clean(mesh)
