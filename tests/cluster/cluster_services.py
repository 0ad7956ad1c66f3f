"""Services without a controller-manager: the tests write the EndpointSlices, and TCP servers in pods answer."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cluster_api import Api

from ravenvpn.lab.host import LabHost, Pod

PORT = 8080
PATIENCE = 3.0
NAMESPACE = "default"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


class Servers:
    """TCP servers in these pods, IPv4 and IPv6.

    Each answers with its pod and the client's address: `ship-1-pod-1 10.244.1.2`.
    """

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._listening: dict[socket.socket, str] = {}
        self._stop = threading.Event()
        for pod in pods:
            for family, address in ((socket.AF_INET, pod.v4), (socket.AF_INET6, pod.v6)):
                made = pod.socket(family, socket.SOCK_STREAM)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((str(address), PORT))
                made.listen(64)
                made.setblocking(False)
                self._listening[made] = pod.name
        self._thread = threading.Thread(target=self._run, name="servers")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for made in self._listening:
            made.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for made in self._listening:
                selector.register(made, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    with contextlib.suppress(OSError):
                        accepted, peer = key.fileobj.accept()  # type: ignore[union-attr]
                        with accepted:
                            accepted.sendall(f"{self._listening[key.fileobj]} {peer[0]}".encode())  # type: ignore[index]


def ask(host: LabHost, address: str, port: int) -> tuple[str, str]:
    """Return the pod that answered a TCP connection of the host, and the client address it saw.

    Raises OSError if no pod answers in time.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        made.connect((address, port))
        said = b""
        while data := made.recv(256):
            said += data
    name, _, seen = said.decode().partition(" ")
    return name, seen


@dataclass(frozen=True)
class Service:
    name: str
    v4: str  # the Service's ClusterIPs
    v6: str
    node_port: int  # 0 if the Service has none

    @property
    def addresses(self) -> tuple[str, str]:
        return self.v4, self.v6


def publish(
    api: Api,
    name: str,
    pods: Sequence[Pod],
    *,
    port: int = 80,
    target: int = PORT,
    protocol: str = "TCP",
    address: str = "",
    spec: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    zoned: bool = False,
) -> Service:
    """Create a dual-stack Service in front of these pods. `zoned` slices keep kube-proxy inside the region."""
    wanted = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "it", "port": port, "targetPort": target, "protocol": protocol}],
            **({"clusterIP": address} if address else {}),
            **(spec or {}),
        },
    }
    made = api.create(SERVICES, wanted)
    for family in ("IPv4", "IPv6"):
        api.create(SLICES, _slice(name, family, pods, port={"port": target, "protocol": protocol}, zoned=zoned))
    v4, v6 = made["spec"]["clusterIPs"]
    return Service(name, v4, v6, made["spec"]["ports"][0].get("nodePort", 0))


def withdraw(api: Api, name: str) -> None:
    api.delete(f"{SERVICES}/{name}")
    for family in ("ipv4", "ipv6"):
        api.delete(f"{SLICES}/{name}-{family}")


def _slice(name: str, family: str, pods: Sequence[Pod], *, port: dict[str, Any], zoned: bool) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-{family.lower()}", "labels": {"kubernetes.io/service-name": name}},
        "addressType": family,
        "ports": [{"name": "it", **port}],
        "endpoints": [
            {
                "addresses": [str(pod.v4 if family == "IPv4" else pod.v6)],
                "conditions": {"ready": True},
                "nodeName": pod.node.name,
                "zone": pod.node.region.name,
                **({"hints": {"forZones": [{"name": pod.node.region.name}]}} if zoned else {}),
            }
            for pod in pods
        ],
    }
