"""Services across regions with the real kube-proxy: by ClusterIP and by name, from pods, nodes and outside.

ravenvpn touches neither Services nor EndpointSlices. kube-proxy translates on the client's node, and the result is a
packet to a pod like any other. The source address that the pod sees is defined by Kubernetes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shlex
from collections.abc import Iterator

import pytest
from cluster_mesh import AGENT, CONTROLLER, MESHES, NAMESPACE, PEERS, Mesh
from cluster_services import SERVICES, Servers, Service, ask, publish, withdraw
from control_plane import OLDEST

from ravenvpn.lab.agents import wait_until
from ravenvpn.lab.host import LabHost, Pod

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "conntrack", "openssl", "curl"),
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("servers"),
    pytest.mark.parametrize("mesh", MESHES, indirect=True, ids="-".join),
]

DNS = "10.96.0.10"
DOMAIN = "default.svc.cluster.local"


@pytest.fixture
def servers(mesh: Mesh) -> Iterator[None]:
    with Servers(mesh.lab.pods):
        yield


def pod_of(mesh: Mesh, node: str) -> Pod:
    return mesh.lab.pod(f"{node}-pod-1")


@contextlib.contextmanager
def published(mesh: Mesh, name: str, pods: list[Pod], **more: object) -> Iterator[Service]:
    service = publish(mesh.cluster.api, name, pods, **more)  # type: ignore[arg-type]
    try:
        yield service
    finally:
        withdraw(mesh.cluster.api, name)


def test_a_pod_reaches_a_service_in_another_region_and_is_seen_as_itself(mesh: Mesh) -> None:
    server = pod_of(mesh, "factory-3")
    with published(mesh, "far", [server]) as service:
        for pod in mesh.lab.pods:
            for address, own in zip(service.addresses, (pod.v4, pod.v6), strict=True):
                if pod is not server:
                    assert answered(pod, address, 80) == (server.name, str(own)), (pod.name, address)


def answered(host: LabHost, address: str, port: int) -> tuple[str, str]:
    """Retry the request until a pod answers: kube-proxy may not have written its rules yet.

    After an outage of the API server kube-proxy may have no watch yet: client-go backs off up to 30 s, plus a random
    part of the same length.
    """
    found: list[tuple[str, str]] = []

    def again() -> bool:
        with contextlib.suppress(OSError):
            found.append(ask(host, address, port))
        return bool(found)

    wait_until(again, f"{address} answers {host.name}", 90)
    return found[0]


def test_endpoints_in_all_regions_share_the_connections(mesh: Mesh) -> None:
    servers = [pod_of(mesh, name) for name in ("cloud-2", "factory-1", "ship-3")]
    with published(mesh, "spread", servers) as service:
        for address in service.addresses:
            answered(pod_of(mesh, "factory-2"), address, 80)
            names = {ask(pod_of(mesh, "factory-2"), address, 80)[0] for _ in range(40)}
            assert names == {server.name for server in servers}


def test_a_node_reaches_a_service_with_an_address_the_far_side_accepts(mesh: Mesh) -> None:
    """hostNetwork → ClusterIP: kube-proxy masquerades a source that is no pod, and the agent sets its own source."""
    with published(mesh, "hosted", [pod_of(mesh, "ship-2")]) as service:
        for name in ("cloud-1", "cloud-3", "factory-1", "factory-2", "factory-3"):
            node = mesh.node(name)
            for address, own in zip(service.addresses, announced(mesh, name), strict=True):
                assert answered(node, address, 80) == ("ship-2-pod-1", str(own)), (name, address)


def announced(mesh: Mesh, node: str) -> tuple[str, str]:
    """Return the IPv4 and IPv6 address that the node's agent announces: those of flannel or of the bridge."""
    sources = mesh.cluster.api.get(f"{PEERS}/{node}")["spec"]["sources"]
    v4, v6 = sorted(sources, key=lambda address: ":" in address)
    return v4, v6


def test_a_node_port_leads_to_a_pod_of_another_region(mesh: Mesh) -> None:
    """externalTrafficPolicy Cluster: the entry node sets its own source address, so that it gets the reply."""
    with published(mesh, "ported", [pod_of(mesh, "factory-3")], spec={"type": "NodePort"}) as service:
        for name in ("cloud-1", "cloud-2"):
            node = mesh.node(name)
            for asked, own in zip((node.v4, node.v6), announced(mesh, name), strict=True):
                answer = answered(mesh.lab.internet, str(asked), service.node_port)
                assert answer == ("factory-3-pod-1", str(own)), (name, asked)


def test_a_pod_that_is_its_own_services_endpoint_reaches_itself(mesh: Mesh) -> None:
    """Hairpin: kube-proxy masquerades a connection whose client is also its endpoint."""
    pod = pod_of(mesh, "cloud-1")
    mesh.node("cloud-1").ip("link set pod1 type bridge_slave hairpin on")  # as the CNI plugin's hairpinMode sets it
    with published(mesh, "hairpin", [pod]) as service:
        for address in service.addresses:
            name, seen = answered(pod, address, 80)
            assert name == pod.name
            assert seen not in (str(pod.v4), str(pod.v6))


@pytest.mark.needs("dnsmasq", "getent", "unshare")
def test_a_service_is_found_by_its_name_with_dns_in_another_region(mesh: Mesh) -> None:
    """The cluster's DNS is a Service with one server, in the cloud. The client pod is at the factory."""
    resolver, server, client = pod_of(mesh, "cloud-2"), pod_of(mesh, "ship-1"), pod_of(mesh, "factory-2")
    with (
        published(mesh, "named", [server]) as named,
        published(mesh, "dns", [resolver], port=53, target=53, protocol="UDP", address=DNS),
    ):
        records = f"named.{DOMAIN},{named.v4},{named.v6}"
        listen = ["--listen-address", str(resolver.v4), "--listen-address", str(resolver.v6), "--bind-interfaces"]
        quiet = ["--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file=", "--user=root"]
        process = resolver.popen(["dnsmasq", "--keep-in-foreground", *quiet, *listen, f"--host-record={records}"])
        try:
            wait_until(lambda: resolved(client, "ahostsv4", "named") == named.v4, "the name is resolved", 20)
            assert resolved(client, "ahostsv6", "named") == named.v6
            for family in ("-4", "-6"):
                said = in_pod(client, f"curl {family} --http0.9 -s --max-time 3 telnet://named:80")
                own = client.v4 if family == "-4" else client.v6
                assert said == f"{server.name} {own}"
        finally:
            process.kill()
            process.wait()


def resolved(pod: Pod, database: str, name: str) -> str:
    return in_pod(pod, f"getent {database} {name}").partition(" ")[0]


def in_pod(pod: Pod, command: str) -> str:
    """Run a command with the resolver settings that a kubelet gives a pod."""
    settings = f"nameserver {DNS}\nsearch {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5 timeout:1\n"
    script = f"printf {shlex.quote(settings)} >/tmp/r && mount --bind /tmp/r /etc/resolv.conf && {command}"
    inner = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /tmp && {script}"]
    return pod.run(inner, check=False).stdout.strip()


def who_answer(pod: Pod, address: str) -> set[str]:
    return {answered(pod, address, 80)[0] for _ in range(12)}


def test_a_service_kept_to_its_region_stays_there(mesh: Mesh) -> None:
    """A connection goes to the client's own region, and fails if that region has no endpoint.

    OpenYurt's topology filter removes the other EndpointSlices before kube-proxy reads them. Here hints in the slices
    have the same effect.
    """
    if mesh.cluster.plane.version == OLDEST:
        pytest.skip("NOT RUN ON 1.22: its kube-proxy heeds no zones in EndpointSlices")
    zones = [(node.name, node.region.name) for node in mesh.lab.nodes]
    for node, zone in zones:
        labels = {"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}
        mesh.cluster.api.merge(f"/api/v1/nodes/{node}", labels)
    servers = [pod_of(mesh, name) for name in ("cloud-2", "factory-1", "factory-3", "ship-3")]
    notes = {"openyurt.io/topologyKeys": "openyurt.io/nodepool", "service.kubernetes.io/topology-mode": "Auto"}
    with published(mesh, "near", servers, annotations=notes, zoned=True) as service:
        for client, expected in (("factory-2", {"factory-1-pod-1", "factory-3-pod-1"}), ("ship-1", {"ship-3-pod-1"})):
            for address in service.addresses:
                seen = functools.partial(who_answer, pod_of(mesh, client), address)
                wait_until(lambda seen=seen, expected=expected: seen() == expected, f"{client} stays at home", 20)
        kept = mesh.cluster.api.get(f"{SERVICES}/near")["metadata"]["annotations"]
        assert kept["openyurt.io/topologyKeys"] == "openyurt.io/nodepool"


def test_nothing_of_ours_may_write_endpoint_slices(mesh: Mesh) -> None:
    """Without that right ravenvpn cannot undo the filter of OpenYurt's service topology."""
    for account, verb in itertools.product((AGENT, CONTROLLER), ("update", "patch", "delete")):
        who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
        asked = ["auth", "can-i", verb, "endpointslices.discovery.k8s.io", who]
        assert mesh.cluster.plane.kubectl(*asked, check=False).startswith("no"), asked
