"""`kubectl logs` behind NAT: the API server reaches the node's own address across regions (`forward_node_ip`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_mesh import AGENT, NAMESPACE, Mesh
from cluster_pairs import Pairs

from ravenvpn.errors import HostError
from ravenvpn.lab.agents import wait_until
from ravenvpn.lab.host import LabNode

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]

KUBELET = Path(__file__).parent / "fake_kubelet.py"


@pytest.fixture
def kubelet(mesh: Mesh) -> Iterator[LabNode]:
    """A plain node of the factory region serves the kubelet's port, and its pod is reported as running."""
    node = mesh.node("factory-3")
    identity = f"kubelet-{node.name}"
    kubeconfig = mesh.cluster.plane.kubeconfig(identity, f"/O=system:nodes/CN=system:node:{node.name}")
    node.write("/run/kubelet/kubeconfig", kubeconfig.read_text(), mode=0o600)
    for kind in ("crt", "key"):
        text = (mesh.cluster.plane.folder / f"pki/{identity}.{kind}").read_text()
        node.write(f"/run/kubelet/{kind}", text, mode=0o600)
    with node.path("/run/kubelet/log").open("wb") as log:
        process = node.popen(
            [
                *(sys.executable, str(KUBELET), "--kubeconfig=/run/kubelet/kubeconfig", f"--node={node.name}"),
                *(f"--ip={node.v4}", "--cert=/run/kubelet/crt", "--key=/run/kubelet/key"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: "ready" in node.read("/run/kubelet/log"), "the kubelet is ready", 60)
        yield node
    finally:
        process.kill()
        process.wait()
        mesh.cluster.register_again(node.name)


def logs(mesh: Mesh, node: LabNode) -> str:
    pod = f"{AGENT}-{node.name}"
    return mesh.cluster.plane.kubectl("logs", "-n", NAMESPACE, pod, "--request-timeout=3s", check=False)


def restart(mesh: Mesh, *arguments: str) -> None:
    for node in mesh.lab.nodes:
        mesh.agents.end(node)
    for node in mesh.lab.nodes:
        mesh.start_agent(node, *arguments)
    mesh.wait_until_connected()
    with Pairs(mesh.lab.pods) as pairs:
        pairs.until_complete(60)


@pytest.mark.soak
def test_kubectl_logs_reaches_a_plain_node_behind_nat_if_node_addresses_are_forwarded(
    mesh: Mesh, kubelet: LabNode
) -> None:
    wait_until(lambda: "Running" in mesh.cluster.plane.kubectl("get", "pods", "-A"), "the pod runs", 30)
    assert "Error from server" in logs(mesh, kubelet), "it is off by default, as upstream has it"
    restart(mesh, "--forward-node-ip")
    try:
        wait_until(lambda: f"on {kubelet.name}" in logs(mesh, kubelet), "kubectl logs shows them", 30)
    except HostError as error:
        raise AssertionError(f"{error}: {logs(mesh, kubelet)}") from error
    finally:
        restart(mesh)
