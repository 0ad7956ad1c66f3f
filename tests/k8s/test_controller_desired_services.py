"""Services of Gateways with exposeType LoadBalancer, and the publicIP of active endpoints."""

from __future__ import annotations

from typing import Any

from controller_world import KEY, Cluster, gateway, node, peer, tunnel

from ravenvpn.k8s.controller.desired_services import service_name
from ravenvpn.mesh.model import EndpointType

CLOUD = gateway("cloud", [tunnel("cloud-1", port=4501), tunnel("cloud-2", port=4501)], exposeType="LoadBalancer")
NODES = (
    node("cloud-1", "cloud", ip="10.0.0.1,fd00::1,10.0.0.9"),
    node("cloud-2", "cloud", ip="10.0.0.2"),
)
NAME = "x-raven-tunnel-svc-cloud-a3c8ed56"


def ingress(cluster: Cluster, *ingress: dict[str, str], name: str = NAME) -> None:
    """Write status.loadBalancer as a cloud provider does."""
    found = cluster.cache.services[name]
    service: dict[str, Any] = next(
        s
        for s in cluster.written
        if s["metadata"]["name"] == found.name  # type: ignore[attr-defined]
    )
    cluster.put({**service, "status": {"loadBalancer": {"ingress": list(ingress)}}})


class Exposed(Cluster):
    """A cluster that keeps the Services that were applied, newest first."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.written: list[dict[str, Any]] = []
        super().__init__(*objects)

    def reconcile(self, name: str, *more: Any, **named: Any) -> Any:
        decision = super().reconcile(name, *more, **named)
        self.written[:0] = decision.exposure.services
        return decision


def public_ip(cluster: Cluster) -> str | None:
    cluster.reconcile("cloud")
    ip: str | None = cluster.status("cloud")["activeEndpoints"][0].get("publicIP")
    return ip


def test_an_active_endpoint_gets_a_service_named_as_openyurts_and_slices_of_both_families() -> None:
    cluster = Exposed(CLOUD, *NODES)
    exposure = cluster.reconcile("cloud").exposure
    (service,) = exposure.services
    assert service["metadata"] == {
        "name": NAME,
        "namespace": "kube-system",
        "ownerReferences": [
            {"apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway", "name": "cloud", "uid": "uid-cloud"}
        ],
        "labels": {
            "raven.openyurt.io/gateway": "cloud",
            "raven.openyurt.io/gateway-type": "tunnel",
            "raven.openyurt.io/endpoints-name": "cloud-1",
        },
        "annotations": {"svc.openyurt.io/discard": "true"},
    }
    assert service["spec"] == {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "ports": [{"name": "tunnel", "port": 4501, "targetPort": 4500, "protocol": "UDP"}],
    }
    targets = [
        (s["addressType"], s["endpoints"][0]["addresses"], s["endpoints"][0]["nodeName"]) for s in exposure.slices
    ]
    assert targets == [("IPv4", ["10.0.0.1"], "cloud-1"), ("IPv6", ["fd00::1"], "cloud-1")]
    assert exposure.slices[0]["metadata"]["labels"]["kubernetes.io/service-name"] == NAME
    assert not cluster.decide("cloud").exposure


def test_an_agent_with_a_peer_listens_on_the_port_of_the_endpoint() -> None:
    cluster = Exposed(CLOUD, *NODES, peer("cloud-1", "cloud", listenPort=4501))
    exposure = cluster.reconcile("cloud").exposure
    assert exposure.services[0]["spec"]["ports"][0]["targetPort"] == 4501
    assert exposure.slices[0]["ports"][0]["port"] == 4501


def test_public_ip_follows_the_address_of_the_load_balancer() -> None:
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    assert cluster.condition("cloud", "Ready")["reason"] == "NoPublicAddress"
    ingress(cluster, {"ip": "203.0.113.7"})
    assert cluster.drain() == {"cloud"}
    assert public_ip(cluster) == "203.0.113.7"
    assert cluster.condition("cloud", "Ready")["status"] == "True"
    ingress(cluster, {"ip": "203.0.113.8"})
    assert public_ip(cluster) == "203.0.113.8"
    ingress(cluster)
    assert public_ip(cluster) is None


def test_loopback_and_link_local_ingress_addresses_are_skipped() -> None:
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    ingress(cluster, {"ip": "127.0.0.1"}, {"ip": "169.254.1.1"}, {"ip": "203.0.113.7"})
    assert public_ip(cluster) == "203.0.113.7"


def test_a_host_name_of_a_load_balancer_is_resolved_and_its_address_kept() -> None:
    """OpenYurt's agents dial publicIP only and resolve no host names."""
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    ingress(cluster, {"hostname": "lb.example.org"})
    assert public_ip(cluster) is None
    cluster.names = {"lb.example.org": ["203.0.113.7", "203.0.113.9"]}
    assert public_ip(cluster) == "203.0.113.7"
    cluster.names = {"lb.example.org": ["203.0.113.9", "203.0.113.7"]}
    assert public_ip(cluster) == "203.0.113.7"  # the order of a DNS answer changes
    cluster.names = {}
    assert public_ip(cluster) == "203.0.113.7"  # a name that does not resolve at the moment keeps its address
    cluster.names = {"lb.example.org": ["203.0.113.9"]}
    assert public_ip(cluster) == "203.0.113.9"


def test_a_moved_role_keeps_the_service_and_its_address() -> None:
    """openyurtio/openyurt #2760: with one Service per node the public address changed with every failover."""
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    ingress(cluster, {"ip": "203.0.113.7"})
    cluster.reconcile("cloud")
    cluster.put(node("cloud-1", "cloud", ready=False, ip="10.0.0.1,fd00::1"))
    exposure = cluster.reconcile("cloud").exposure
    assert cluster.active("cloud") == ["cloud-2"]
    assert cluster.status("cloud")["activeEndpoints"][0]["publicIP"] == "203.0.113.7"
    (service,) = exposure.services
    assert (service["metadata"]["name"], service["metadata"]["labels"]["raven.openyurt.io/endpoints-name"]) == (
        NAME,
        "cloud-2",
    )
    assert [s["endpoints"][0]["addresses"] for s in exposure.slices] == [["10.0.0.2"]]
    assert exposure.drop_slices == (f"{NAME}-ipv6",)
    assert exposure.drop_services == ()


def test_a_service_without_an_active_endpoint_is_kept_without_slices() -> None:
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    for name in ("cloud-1", "cloud-2"):
        cluster.put(node(name, "cloud", ready=False))
    exposure = cluster.reconcile("cloud").exposure
    assert exposure.drop_services == ()
    assert exposure.drop_slices == (f"{NAME}-ipv4", f"{NAME}-ipv6")
    cluster.put(NODES[1])
    (service,) = cluster.reconcile("cloud").exposure.services
    assert service["metadata"]["name"] == NAME


def test_a_service_is_deleted_with_the_expose_type_or_with_its_gateway() -> None:
    cluster = Exposed(CLOUD, *NODES)
    cluster.reconcile("cloud")
    document = cluster.documents["cloud"]
    spec = {**document["spec"], "exposeType": "PublicIP"}
    cluster.put({**document, "metadata": {**document["metadata"], "resourceVersion": "5"}, "spec": spec})
    exposure = cluster.reconcile("cloud").exposure
    assert exposure.drop_services == (NAME,)
    assert exposure.drop_slices == (f"{NAME}-ipv4", f"{NAME}-ipv6")

    gone = Exposed(CLOUD, *NODES)
    gone.reconcile("cloud")
    gone.drop("Gateway", "cloud")
    assert gone.decide("cloud").exposure.drop_services == (NAME,)


def test_a_service_of_openyurts_controller_is_taken_over_under_its_name() -> None:
    """Its name has a random suffix. Its Endpoints would be mirrored into slices of the old node."""
    theirs = {
        "kind": "Service",
        "metadata": {
            "name": "x-raven-tunnel-svc-cloud-0badcafe",
            "labels": {
                "raven.openyurt.io/gateway": "cloud",
                "raven.openyurt.io/gateway-type": "tunnel",
                "raven.openyurt.io/endpoints-name": "cloud-9",
            },
        },
        "spec": {"type": "LoadBalancer", "ports": [{"port": 4501, "targetPort": 4500, "protocol": "UDP"}]},
    }
    cluster = Exposed(CLOUD, *NODES, theirs)
    exposure = cluster.reconcile("cloud").exposure
    assert [s["metadata"]["name"] for s in exposure.services] == ["x-raven-tunnel-svc-cloud-0badcafe"]
    assert exposure.drop_endpoints == ("x-raven-tunnel-svc-cloud-0badcafe",)
    assert exposure.drop_services == ()


def test_a_service_with_our_labels_and_another_name_is_not_deleted() -> None:
    foreign = {
        "kind": "Service",
        "metadata": {
            "name": "web",
            "labels": {"raven.openyurt.io/gateway": "gone", "raven.openyurt.io/gateway-type": "tunnel"},
        },
    }
    assert not Cluster(foreign).decide("gone").exposure


def test_service_names_are_dns_labels_and_differ() -> None:
    assert service_name("cloud", EndpointType.TUNNEL, 0) == NAME
    long = service_name("a.very." + "long-" * 40 + "name", EndpointType.TUNNEL, 0)
    assert len(long) <= 63
    assert "." not in long
    assert len({service_name("cloud", kind, i) for kind in EndpointType for i in range(20)}) == 40


def test_public_ip_is_the_best_announced_address_with_the_tunnels_port() -> None:
    """OpenYurt's agents skip a Gateway without publicIP."""
    spec = gateway("cloud", [tunnel("cloud-1")], exposeType="PublicIP")
    addresses = ["vpn.example.org", "198.51.100.1:7000", "198.51.100.2:4500", "198.51.100.3"]
    cluster = Cluster(spec, *NODES, peer("cloud-1", "cloud", KEY, addresses=addresses))
    assert public_ip(cluster) == "198.51.100.2"
    cluster.put(peer("cloud-1", "cloud", KEY, addresses=["198.51.100.3"]))
    assert public_ip(cluster) == "198.51.100.3"


def test_a_public_ip_in_the_spec_is_kept() -> None:
    spec = gateway("cloud", [tunnel("cloud-1", publicIP="192.0.2.1")], exposeType="PublicIP")
    cluster = Cluster(spec, *NODES, peer("cloud-1", "cloud", KEY, addresses=["198.51.100.3"]))
    assert public_ip(cluster) == "192.0.2.1"
