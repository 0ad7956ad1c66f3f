"""A whole Kubernetes cluster in a lab: control plane on a node, registered nodes, flannel and kube-proxy.

This is the state that a distribution sets up before ravenvpn is installed. flanneld is the real one in VXLAN mode, on
every node. The bridge `cni0` and its pods are as flannel's CNI plugin leaves them. flannel has routes across regions
too, but behind NAT its packets do not arrive: ravenvpn closes that gap.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster_api import Api
from control_plane import DEFAULT, FLANNELD, ControlPlane, kube_folder, require_kube, running

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import wait_until
from ravenvpn.lab.host import LabNode
from ravenvpn.lab.manifests import Manifest
from ravenvpn.lab.ownership import MARK, NAMESPACES

REGIONS = (
    Region("cloud", nodes=3),
    Region("factory", nodes=3, gateways=2, nat=Nat.PORT_RESTRICTED),
    Region("ship", nodes=3, nat=Nat.SYMMETRIC),
)
POD_NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
PORT = 6443
POD_MTU = 1450  # bytes; flannel's CNI plugin sets it where the LAN has 1500
PATIENCE = 60.0


def control_plane_of(lab: Lab) -> LabNode:
    """Return the node of the control plane: the last node of the first region, a plain node as in most clusters."""
    return [node for node in lab.nodes if node.region is lab.plans[0].region][-1]


@dataclass
class ClusterLab:
    lab: Lab
    plane: ControlPlane
    api: Api  # administrator's client, on the control plane's node
    flannel: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    proxies: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    proxy_mode: str = ""

    def node(self, name: str) -> LabNode:
        return self.lab.node(name)

    def connect(self) -> Api:
        """Return one more client, for use in another thread."""
        return Api(control_plane_of(self.lab), self.plane.address, PORT, self.plane.folder / "pki")

    def gateways(self) -> list[Manifest]:
        """Return one Gateway for each region as an operator writes it. Nothing is applied."""
        return [thing for thing in self.lab.manifests({}) if thing["kind"] == "Gateway"]

    def apply(self, *things: Manifest) -> None:
        """Apply the objects as `kubectl apply -f -` does."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": things})
        self.plane.kubectl("apply", "-f", "-", input=text)

    # Steps that a Kubernetes distribution takes.

    def register_nodes(self) -> None:
        for thing in self.lab.manifests({}):
            if thing["kind"] == "Node":
                name = thing["metadata"]["name"]
                # A kubelet sets an annotation, and flanneld needs at least one on the Node.
                notes = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
                metadata = {**thing["metadata"], "annotations": notes}
                self.api.create("/api/v1/nodes", {**thing, "metadata": metadata, "status": None})
                self.api.merge(f"/api/v1/nodes/{name}/status", {"status": thing["status"]})

    def register_again(self, name: str) -> None:
        """Reset the status of a Node to the one at registration."""
        thing = next(t for t in self.lab.manifests({}) if t["kind"] == "Node" and t["metadata"]["name"] == name)
        self.api.merge(f"/api/v1/nodes/{name}/status", {"status": thing["status"]})

    def set_ready(self, name: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Scene", "message": ""}
        self.api.merge(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition]}})

    def start_flannel(self, *, masquerade: bool) -> None:
        """Start flanneld on every node and wait until each node has a route to the pods of every other node."""
        network = {
            "Network": POD_NETWORKS[0],
            "EnableIPv4": True,
            "EnableIPv6": True,
            "IPv6Network": POD_NETWORKS[1],
            "Backend": {"Type": "vxlan"},
        }
        kubeconfig = self.plane.kubeconfig("flannel", "/O=system:masters/CN=flannel").read_text()
        for node in self.lab.nodes:
            node.write("/run/flannel/net-conf.json", json.dumps(network))
            node.write("/run/flannel/kubeconfig", kubeconfig, mode=0o600)
            self.flannel[node.name] = _start(
                node,
                "/run/flannel/log",
                [
                    str(kube_folder() / FLANNELD),
                    "--kube-subnet-mgr",
                    "--kubeconfig-file=/run/flannel/kubeconfig",
                    "--net-config-path=/run/flannel/net-conf.json",
                    "--subnet-file=/run/flannel/subnet.env",
                    f"--iface={LabNode.DEVICE}",
                    f"--ip-masq={str(masquerade).lower()}",
                    "--healthz-port=0",
                    "--iptables-resync=60",
                ],
                env={"NODE_NAME": node.name},
            )
        for node in self.lab.nodes:
            wait_until(functools.partial(self._has_flannel, node), f"flannel is up on {node.name}", PATIENCE)

    def stop_flannel(self) -> None:
        """Kill flanneld. Its devices and routes stay, as when its DaemonSet is replaced."""
        for process in self.flannel.values():
            process.kill()
            process.wait()
        self.flannel.clear()

    def hang_pods_as_the_cni_plugin_does(self, node: LabNode) -> None:
        """Remove the host-gw routes of the lab and set the pod MTU that leaves room for the VXLAN header."""
        for mate in self.lab.nodes:
            if mate.region is node.region and mate is not node and mate.pods:
                node.ip(f"route delete {mate.pod_cidrs.v4}")
                node.ip(f"-6 route delete {mate.pod_cidrs.v6}")
        node.ip(f"link set {LabNode.BRIDGE} mtu {POD_MTU}")
        for number, pod in enumerate(node.pods, 1):
            pod.ip(f"link set eth0 mtu {POD_MTU}")
            node.ip(f"link set pod{number} mtu {POD_MTU}")

    def _has_flannel(self, node: LabNode) -> bool:
        process = self.flannel[node.name]
        assert process.poll() is None, f"flanneld of {node.name}: {node.read('/run/flannel/log')[-2000:]}"
        routes = node.run(["ip", "route"]).stdout + node.run(["ip", "-6", "route"]).stdout
        return all(
            f"{cidr} via" in routes
            for other in self.lab.nodes
            if other is not node
            for cidr in (other.pod_cidrs.v4, other.pod_cidrs.v6)
        )

    def start_proxies(self, mode: str) -> None:
        """Start kube-proxy on every node in `mode`: `nftables` or `iptables`."""
        self.proxy_mode = mode
        kubeconfig = self.plane.kubeconfig("kube-proxy", "/CN=system:kube-proxy").read_text()
        for node in self.lab.nodes:
            node.write("/run/kube-proxy/kubeconfig", kubeconfig, mode=0o600)
            self.proxies[node.name] = _start(
                node,
                "/run/kube-proxy/log",
                [
                    str(self.plane.binaries / "kube-proxy"),
                    "--kubeconfig=/run/kube-proxy/kubeconfig",
                    f"--proxy-mode={mode}",
                    f"--hostname-override={node.name}",
                    f"--cluster-cidr={','.join(POD_NETWORKS)}",
                    "--conntrack-max-per-core=0",
                    "--conntrack-tcp-timeout-established=0",
                    "--conntrack-tcp-timeout-close-wait=0",
                    "--healthz-bind-address=127.0.0.1:10256",
                    "--metrics-bind-address=127.0.0.1:10249",
                ],
            )

    def want_proxies(self, mode: str) -> None:
        """Ensure that kube-proxy runs in this mode on every node, and that no rule of another mode is left."""
        if mode != self.proxy_mode:
            self.stop_proxies()
            self.start_proxies(mode)

    def stop_proxies(self) -> None:
        """Kill kube-proxy on every node and remove its rules."""
        for name, process in self.proxies.items():
            process.kill()
            process.wait()
            self.node(name).run([str(self.plane.binaries / "kube-proxy"), "--cleanup"])
        self.proxies.clear()


def _start(node: LabNode, log: str, argv: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[Any]:
    with node.path(log).open("w") as said:
        return node.popen(argv, env=env, stdout=said, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def cluster_lab(*regions: Region, version: str = DEFAULT, masquerade: bool = True) -> Iterator[ClusterLab]:
    """Yield a cluster with registered nodes and running flannel. No agent runs and no CRD is installed."""
    require_kube(version, FLANNELD, "kube-proxy")
    with Lab(*(regions or REGIONS)) as lab:
        host = control_plane_of(lab)
        standing = running(
            lab.folder / "kube",
            version,
            # Enter the network namespace only: its /run is its own, and the lab's folder is below the machine's /run.
            inside=["nsenter", f"--net={NAMESPACES / host.namespace}", "--"],
            address=str(host.v4),
            advertise=str(host.v4),
            port=PORT,
            environment={MARK: lab.prefix},
        )
        with standing as plane, contextlib.closing(Api(host, plane.address, PORT, plane.folder / "pki")) as api:
            cluster = ClusterLab(lab, plane, api)
            cluster.register_nodes()
            for node in lab.nodes:
                cluster.hang_pods_as_the_cni_plugin_does(node)
            cluster.start_flannel(masquerade=masquerade)
            yield cluster
