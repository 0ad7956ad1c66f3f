"""ravenvpn in a lab cluster as `deploy/` installs it.

kubectl applies the objects and the RBAC rules. Agents and controllers are processes on the nodes, each with the token
that a kubelet would have projected into its pod.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster_api import until_answered
from cluster_lab import PATIENCE, PORT, ClusterLab, cluster_lab
from cluster_pairs import Pairs
from control_plane import DEFAULT, DEPLOY, OLDEST
from lab.lab_mesh import status_of

from ravenvpn.agent.reports import StatusReport
from ravenvpn.errors import AgentUnreachableError, HostError
from ravenvpn.lab import Region
from ravenvpn.lab.agents import RAVEN_VPN, Agents, wait_until
from ravenvpn.lab.host import LabNode

NAMESPACE = "kube-system"
AGENT, CONTROLLER = "ravenvpn-agent", "ravenvpn-controller"
TOKENS = "/run/secrets/kubernetes.io/serviceaccount"  # client libraries read it below /var/run, a link to /run
CONTROLLER_NODES = ("cloud-1", "cloud-2")
MESHES = ((DEFAULT, "nftables"), (DEFAULT, "iptables"), (OLDEST, "iptables"))  # version and kube-proxy's mode
GATEWAYS = "/apis/raven.openyurt.io/v1beta1/gateways"
PEERS = "/apis/ravenvpn.io/v1alpha1/peers"


@dataclass
class Mesh:
    cluster: ClusterLab
    agents: Agents
    controllers: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    @property
    def lab(self) -> Any:
        return self.cluster.lab

    def node(self, name: str) -> LabNode:
        return self.cluster.node(name)

    # Steps of `kubectl apply -k deploy/` and of a kubelet.

    def install(self) -> None:
        """Apply the CRDs, service accounts and RBAC rules of deploy/.

        Workloads that need the controller-manager stay objects; the tests start their processes.
        """
        self.cluster.plane.kubectl("apply", "-k", str(DEPLOY))
        for path in (GATEWAYS, PEERS):
            until_answered(lambda path=path: self.cluster.api.get(path))

    def token(self, account: str, node: LabNode) -> str:
        """Return a token bound to a pod on that node, as a kubelet requests it."""
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{account}-{node.name}"},
            "spec": {
                "nodeName": node.name,
                "serviceAccountName": account,
                "hostNetwork": True,
                "containers": [{"name": "it", "image": "ravenvpn"}],
            },
        }
        made = self.cluster.api.create(pods, pod)
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": 7200,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": made["metadata"]["name"],
                    "uid": made["metadata"]["uid"],
                },
            },
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        text: str = self.cluster.api.create(path, request)["status"]["token"]
        return text

    def give_token(self, account: str, node: LabNode, folder: str = TOKENS) -> None:
        node.write(f"{folder}/token", self.token(account, node), mode=0o600)
        node.write(f"{folder}/ca.crt", (self.cluster.plane.folder / "pki/ca.crt").read_text())
        node.write(f"{folder}/namespace", NAMESPACE)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment by which a host-network pod finds the API server. OpenYurt points it at YurtHub."""
        return {"KUBERNETES_SERVICE_HOST": self.cluster.plane.address, "KUBERNETES_SERVICE_PORT": str(PORT)}

    def start_agents(self) -> None:
        for node in self.lab.nodes:
            self.give_token(AGENT, node)
        for node in self.lab.nodes:
            self.start_agent(node)

    def start_agent(self, node: LabNode, *arguments: str) -> None:
        self.agents.start(node, "--source", "cluster", *arguments, env=self.environment)

    def start_controllers(self, names: Sequence[str] = CONTROLLER_NODES) -> None:
        for name in names:
            self.give_token(CONTROLLER, self.node(name), f"/run/controller{TOKENS}")
            self.start_controller(name)

    def start_controller(self, name: str) -> None:
        """Start a controller in its own mount namespace, where it finds its own token instead of the agent's."""
        node = self.node(name)
        script = f'mkdir -p {TOKENS} && mount --bind /run/controller{TOKENS} {TOKENS} && exec "$@"'
        with node.path(f"/run/controller/{name}.log").open("ab") as log:
            self.controllers[name] = node.popen(
                ["unshare", "--mount", "sh", "-c", script, "sh", *RAVEN_VPN, "controller"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, "POD_NAME": f"{CONTROLLER}-{name}", "POD_NAMESPACE": NAMESPACE},
            )

    def end_controller(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.controllers.pop(name)
        process.send_signal(how)
        process.wait(timeout=20)

    def controller_log(self, lines: int = 15) -> str:
        text = ""
        for name in self.controllers:
            said = self.node(name).read(f"/run/controller/{name}.log").splitlines()
            text += f"{name}:\n" + "\n".join(said[-lines:]) + "\n"
        return text

    # Queries of tests.

    def apply_gateways(self) -> None:
        self.cluster.apply(*self.cluster.gateways())

    def wait_until_healthy(self) -> None:
        """Apply the Gateways of all regions, delete all others, and wait until every pod reaches every pod."""
        wanted = {thing["metadata"]["name"] for thing in self.cluster.gateways()}
        for thing in self.cluster.api.get(GATEWAYS)["items"]:
            if thing["metadata"]["name"] not in wanted:
                self.cluster.api.delete(f"{GATEWAYS}/{thing['metadata']['name']}")
        self.apply_gateways()
        with Pairs(self.lab.pods) as pairs:
            try:
                pairs.until_complete(PATIENCE)
            except AssertionError as error:
                logs = "\n".join(f"{node.name}:\n{self.agents.log(node)}" for node in self.lab.nodes)
                raise AssertionError(f"{error}\n{logs}\n{self.controller_log()}") from error

    def gateway(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.api.get(f"{GATEWAYS}/{name}")
        return found

    def active(self, name: str) -> list[str]:
        """Return the nodes of the Gateway's active tunnel endpoints from its status."""
        endpoints = self.gateway(name).get("status", {}).get("activeEndpoints") or []
        return [endpoint["nodeName"] for endpoint in endpoints if endpoint.get("type") == "tunnel"]

    def wait_until_connected(self) -> None:
        """Wait until every agent has the world from the API server.

        Fails at once, with the agent's log, if an agent has ended.
        """
        for node in self.lab.nodes:

            def connected(node: LabNode = node) -> bool:
                assert self.agents.process(node).poll() is None, f"{node.name}: {self.agents.log(node)}"
                with contextlib.suppress(AgentUnreachableError):
                    api = self.status(node).api
                    return api is not None and api.connected_since is not None
                return False

            try:
                wait_until(connected, f"{node.name} hears the API server", PATIENCE)
            except HostError as error:
                raise AssertionError(f"{error}\n{self.agents.log(node)}") from error

    def status(self, node: LabNode) -> StatusReport:
        """Return the node's status report. Raises AgentUnreachableError if no agent answers."""
        return status_of(node)


@contextlib.contextmanager
def cluster_mesh(
    *regions: Region, version: str = DEFAULT, proxy: str = "", controllers: Sequence[str] = CONTROLLER_NODES
) -> Iterator[Mesh]:
    """Yield a mesh with every process started and every agent connected. No Gateway exists yet."""
    with cluster_lab(*regions, version=version) as cluster:
        mesh = Mesh(cluster, Agents(cluster.lab))
        mesh.install()
        if proxy:
            cluster.start_proxies(proxy)
        mesh.start_controllers(controllers)
        mesh.start_agents()
        mesh.wait_until_connected()
        yield mesh


class Standing:
    """Keep at most one mesh from test to test of this folder, for as long as the tests need the same one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._mesh: Mesh | None = None

    def mesh(self, version: str, proxy: str) -> Mesh:
        """Return a mesh of this version with this kube-proxy. Its Gateways are as the last test left them."""
        if self._mesh is not None and self._mesh.cluster.plane.version != version:
            self.close()
        if self._mesh is None:
            self._mesh = self._stack.enter_context(cluster_mesh(version=version, proxy=proxy))
        self._mesh.cluster.want_proxies(proxy)
        return self._mesh

    def close(self) -> None:
        self._mesh = None
        self._stack.close()


if __name__ == "__main__":
    # A cluster for manual inspection, started with `PYTHONPATH=tests`. It stays up until Ctrl-C.
    with cluster_mesh(proxy="nftables") as standing:
        standing.apply_gateways()
        sys.stdout.write(f"{standing.lab.prefix} {standing.cluster.plane.folder}\n")
        sys.stdout.flush()
        signal.pause()
