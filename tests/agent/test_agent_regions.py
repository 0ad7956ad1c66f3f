"""Regions of several nodes: plain nodes use their gateway, and traffic inside a region is unchanged."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import yaml
from agent_hosts import dump
from agent_mesh import Measured
from agent_traffic import Traffic

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import WORLD, Agents, answers, wait_until
from ravenvpn.lab.echo import PORT
from ravenvpn.lab.host import LabHost, LabNode, Pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "tcpdump", "ping", "ss"),
    pytest.mark.timeout(240),
]

# The CNI masquerades packets that leave the region, as flannel does. Two of the factory's nodes may be its gateway.
REGIONS = (
    Region("cloud", nodes=2, masquerade=True),
    Region("factory", nodes=3, nat=Nat.PORT_RESTRICTED, gateways=2, masquerade=True),
    Region("ship", nat=Nat.SYMMETRIC),
)
ECHO = (sys.executable, "-m", "ravenvpn.lab.echo")
PATIENCE = 60.0


@dataclass
class Mesh:
    lab: Lab
    agents: Agents
    before: dict[str, dict[str, object]]

    def node(self, name: str) -> LabNode:
        return self.lab.node(name)

    def wait_until_healthy(self, *names: str) -> None:
        self.agents.wait_until_well([self.node(name) for name in names], PATIENCE)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        before = {name: dump(lab.node(name)) for name in ("factory-1", "factory-3")}
        agents = Agents(lab)
        agents.prepare()
        agents.start_all()
        for pod in lab.pods:
            pod.popen([*ECHO, "serve"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        agents.wait_until_well(patience=PATIENCE)
        for pod in lab.pods:
            wait_until(lambda pod=pod: answers(pod, ["ss", "-Hltn", "sport", "=", str(PORT)]), f"{pod.name} serves")
        yield Mesh(lab, agents, before)


def others(lab: Lab, here: LabNode) -> list[Pod]:
    return [pod for pod in lab.pods if pod.node.region is not here.region]


def ask(host: LabHost, pods: list[Pod]) -> dict[str, object]:
    """Return for each address the source that the server saw, or the error."""
    done = host.run([*ECHO, "ask", "-", *(str(a) for pod in pods for a in (pod.v4, pod.v6))], timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {answer["host"]: answer["source"] if answer["ok"] else answer["error"] for answer in answers}


def reached(pod: Pod, other: Pod) -> bool:
    return all(
        pod.run(["ping", "-c", "1", "-W", "1", str(a)], check=False).returncode == 0 for a in (other.v4, other.v6)
    )


def test_every_pod_reaches_every_pod_of_other_regions_with_its_own_source(mesh: Mesh) -> None:
    for pod in mesh.lab.pods:
        seen = ask(pod, others(mesh.lab, pod.node))
        assert len(seen) == 2 * (6 - len([p for p in mesh.lab.pods if p.node.region is pod.node.region]))
        assert seen == {host: str(pod.v6 if ":" in host else pod.v4) for host in seen}


def test_every_node_reaches_every_pod_of_other_regions_with_the_source_it_announces(mesh: Mesh) -> None:
    for node in mesh.lab.nodes:
        own, seen = node.bridge_addresses, ask(node, others(mesh.lab, node))
        assert seen == {host: str(own.v6 if ":" in host else own.v4) for host in seen}


def test_plain_nodes_report_the_gateway_as_their_path(mesh: Mesh) -> None:
    def paths(name: str) -> dict[str, tuple[str, bool]]:
        return {r["name"]: (r["path"], r["ok"]) for r in mesh.agents.status(mesh.node(name))["regions"]}

    assert paths("factory-3") == {"cloud": ("via factory-1", True), "ship": ("via factory-1", True)}
    assert paths("factory-2") == paths("factory-3"), "a standby's own traffic takes the gateway too"
    assert paths("cloud-2") == {"factory": ("via cloud-1", True), "ship": ("via cloud-1", True)}
    assert mesh.agents.status(mesh.node("factory-3"))["role"] == "plain node"


def test_traffic_inside_a_region_touches_none_of_our_devices(mesh: Mesh) -> None:
    pods = {pod.node.name: pod for pod in mesh.lab.pods if pod.node.region.name == "factory"}
    cloud = mesh.lab.pod("cloud-1-pod-1")
    with contextlib.ExitStack() as stack:
        ours = {
            (name, device): stack.enter_context(mesh.node(name).capture(device, "icmp or icmp6"))
            for name in pods
            for device in ("raven0", *(["ravenvpn0"] if name != "factory-3" else []))
        }
        for one, other in itertools.permutations(pods.values(), 2):
            assert reached(one, other)
        assert reached(pods["factory-3"], cloud)
    own = [(p.v4.packed, p.v6.packed) for p in pods.values()]
    for where, seen in ours.items():
        inside = [f for f in seen.frames() if sum(any(a in f for a in addresses) for addresses in own) > 1]
        assert inside == [], where
    # Positive control: packets to another region are captured.
    assert ours["factory-3", "raven0"].count(cloud.v4.packed) >= 2
    assert ours["factory-1", "ravenvpn0"].count(cloud.v6.packed) >= 2


def test_a_packet_that_is_too_big_is_answered_with_the_mtu(mesh: Mesh) -> None:
    plain, far = mesh.lab.pod("factory-3-pod-1"), mesh.lab.pod("cloud-2-pod-1")
    for one, other in ((plain, far), (far, plain)):
        for target, headers in ((other.v4, 28), (other.v6, 48)):
            fits, big = (
                one.run(
                    ["ping", "-c", "1", "-W", "1", "-M", "do", "-s", str(size - headers), str(target)], check=False
                )
                for size in (1420, 1421)
            )
            assert fits.returncode == 0, fits.stdout
            assert "mtu = 1420" in big.stdout.replace("mtu=", "mtu = "), big.stdout


def test_a_region_that_loses_ipv4_on_its_lan_continues_over_ipv6(mesh: Mesh) -> None:
    """Pods keep both families: IPv4 packets get IPv6 next hops, and IPv4 ones again once IPv4 is back."""
    mates = [node for node in mesh.lab.nodes if node.region.name == "factory"]
    pod, far = mesh.lab.pod("factory-3-pod-1"), mesh.lab.pod("cloud-2-pod-1")
    kept = {}
    for path, change in (("node", _without_ipv4_node), ("peer", _without_ipv4_peer)):
        for mate in mates:
            name = f"{WORLD}/{path}-{mate.name}.yaml"
            kept[name] = mates[0].read(name)
            for node in mesh.lab.nodes:
                node.write(name, yaml.safe_dump(change(yaml.safe_load(kept[name]))))

    def carried_by(address: Callable[[LabNode], object]) -> bool:
        shown = {mate: mate.run(["ip", "-d", "link", "show", "raven0"], check=False).stdout for mate in mates}
        return all(f" local {address(mate)} " in text for mate, text in shown.items())

    wait_until(lambda: carried_by(lambda mate: mate.v6), "IPv6 carries the VXLAN")
    wait_until(lambda: reached(pod, far) and reached(far, pod), "pods reach each other over it")
    assert " via inet6 " in mesh.node("factory-3").ip("route show table 9127")
    for name, text in kept.items():
        for node in mesh.lab.nodes:
            node.write(name, text)
    wait_until(lambda: carried_by(lambda mate: mate.v4), "IPv4 carries the VXLAN again")
    wait_until(lambda: reached(pod, far) and reached(far, pod), "pods reach each other as before")
    mesh.wait_until_healthy()


def _without_ipv4_node(manifest: dict) -> dict:
    addresses = [a for a in manifest["status"]["addresses"] if "." not in a["address"]]
    return {**manifest, "status": {**manifest["status"], "addresses": addresses}}


def _without_ipv4_peer(manifest: dict) -> dict:
    addresses = [a for a in manifest["spec"]["nodeAddresses"] if "." not in a]
    return {**manifest, "spec": {**manifest["spec"], "nodeAddresses": addresses}}


def test_a_role_that_moves_loses_no_session_and_next_to_no_packet(mesh: Mesh, measured: Measured) -> None:
    pod, standby_pod, far, ship = (
        mesh.lab.pod(f"{name}-pod-1") for name in ("factory-3", "factory-2", "cloud-2", "ship-1")
    )
    successor = mesh.node("factory-2")
    handshakes = {peer["name"]: peer["last_handshake"] for peer in mesh.agents.peers(successor)}
    assert handshakes["cloud-1"]
    with Traffic([(pod, far), (far, pod), (pod, ship), (ship, pod), (standby_pod, far)], rate=200) as traffic:
        time.sleep(1)
        begin = time.monotonic()
        for node in mesh.lab.nodes:
            _make_active(node, "factory", "factory-2")
        wait_until(
            lambda: (
                all(r["path"] == "via factory-2" for r in mesh.agents.status(mesh.node("factory-3"))["regions"])
                and mesh.agents.status(successor)["role"] == "active gateway"
                and mesh.agents.status(mesh.node("factory-1"))["role"] == "standby gateway"
            ),
            "the role has moved",
        )
        time.sleep(2)
    for flow in traffic.flows:
        measured(f"outage {flow}, s", flow.outage(begin - 0.2))
    after = {peer["name"]: peer["last_handshake"] for peer in mesh.agents.peers(successor)}
    assert after["cloud-1"] == handshakes["cloud-1"], "promotion needs no handshake"
    for flow in traffic.flows:
        assert flow.outage() <= 0.1, flow
        assert flow.sources == {flow.own_address}
    for node in mesh.lab.nodes:
        _make_active(node, "factory", "factory-1")
    wait_until(lambda: mesh.agents.status(mesh.node("factory-1"))["role"] == "active gateway", "it has moved back")
    mesh.wait_until_healthy()


def _make_active(node: LabNode, region: str, name: str) -> None:
    path = f"{WORLD}/gateway-{region}.yaml"
    gateway = yaml.safe_load(node.read(path))
    chosen = next(e for e in gateway["spec"]["endpoints"] if e["nodeName"] == name)
    node.write(path, yaml.safe_dump({**gateway, "status": {"activeEndpoints": [chosen]}}))


def test_killed_agents_of_a_plain_node_and_of_its_gateway_leak_nothing(mesh: Mesh) -> None:
    """A plain node forwards without its agent. Without its gateway's agent no packet leaves the region."""
    nodes = [mesh.node(f"factory-{i}") for i in (1, 2, 3)]
    pods, far = [node.pods[0] for node in nodes], mesh.lab.pod("cloud-2-pod-1")
    with contextlib.ExitStack() as stack:
        uplinks = [
            stack.enter_context(node.capture(node.DEVICE, f"host {far.v4} or host {far.v6}")) for node in nodes
        ]
        pings = [
            pod.popen(["ping", "-i", "0.02", "-q", str(address)], stdout=subprocess.DEVNULL)
            for pod in pods
            for address in (far.v4, far.v6)
        ]
        mesh.agents.end(nodes[2], signal.SIGKILL)
        assert reached(pods[2], far)
        mesh.agents.end(nodes[0], signal.SIGKILL)
        time.sleep(0.5)
        assert not reached(pods[2], far)
        mesh.agents.start(nodes[0])
        mesh.agents.start(nodes[2])
        wait_until(lambda: reached(pods[2], far), "traffic is back")
        for ping in pings:
            ping.kill()
            ping.wait()
    assert [uplink.count() for uplink in uplinks] == [0, 0, 0]
    mesh.wait_until_healthy()


@pytest.mark.parametrize("name", ["factory-3", "factory-1"])
def test_after_cleanup_the_host_is_as_before_the_first_start(mesh: Mesh, name: str) -> None:
    node = mesh.node(name)
    mesh.agents.end(node)
    assert dump(node) != mesh.before[name], "what an agent leaves must show in a dump"
    mesh.agents.cli(node, "cleanup")
    assert dump(node) == mesh.before[name]
