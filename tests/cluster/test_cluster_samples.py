"""Gateways from the Raven user manual of OpenYurt, with fields of older releases, have the documented effect.

They are applied unchanged except for the node names and the public address, which the manual masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import openyurt_manual
import pytest
from cluster_mesh import GATEWAYS, Mesh
from cluster_pairs import Pairs

from ravenvpn.lab.agents import wait_until
from ravenvpn.mesh.model import GATEWAY_LABEL as LABEL

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]

SAMPLES = (
    openyurt_manual.GATEWAYS.replace("hangzhou-1", "factory-1")
    .replace("qingdao-", "ship-")
    .replace("203.0.113.10", "198.51.100.2")
)
# The ConfigMap of the manual, with the chart's values for both modes.
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: raven-cfg
  namespace: kube-system
data:
  enable-l3-tunnel: "true"
  enable-l7-proxy: "true"
"""
REGIONS = {"cloud": "gw-cloud", "factory": "gw-hangzhou", "ship": "gw-qingdao"}


@pytest.fixture
def sampled(mesh: Mesh) -> Iterator[Mesh]:
    """The nodes are labelled as the manual describes, and no Gateway is applied."""
    kubectl = mesh.cluster.plane.kubectl
    kubectl("delete", "gw", "--all")
    for node in mesh.lab.nodes:
        kubectl("label", "--overwrite", "node", node.name, f"{LABEL}={REGIONS[node.region.name]}")
    yield mesh
    kubectl("delete", "gw", "--all")
    kubectl("delete", "configmap", "-n", "kube-system", "raven-cfg", "--ignore-not-found")
    for node in mesh.lab.nodes:
        kubectl("label", "--overwrite", "node", node.name, f"{LABEL}={node.region.name}")


def test_the_published_samples_join_their_regions(sampled: Mesh) -> None:
    kubectl = sampled.cluster.plane.kubectl
    assert kubectl("apply", "-f", "-", input=SETTINGS).strip() == "configmap/raven-cfg created"
    assert kubectl("apply", "-f", "-", input=SAMPLES).split() == [
        *("gateway.raven.openyurt.io/gw-hangzhou", "created"),
        *("gateway.raven.openyurt.io/gw-cloud", "created"),
        *("gateway.raven.openyurt.io/gw-qingdao", "created"),
    ]
    with Pairs(sampled.lab.pods) as pairs:
        pairs.until_complete(60)
    assert {name: elected(sampled, name) for name in REGIONS.values()} == {
        "gw-hangzhou": {("proxy", "factory-1", 10262), ("tunnel", "factory-1", 4500)},
        "gw-cloud": {("proxy", "cloud-1", 10262), ("tunnel", "cloud-1", 4500)},
        "gw-qingdao": {("proxy", "ship-1", 10262), ("tunnel", "ship-2", 4500)},
    }
    status = sampled.gateway("gw-qingdao")["status"]
    assert [(node["nodeName"], node["privateIP"], node["subnets"][0]) for node in status["nodes"]] == [
        ("ship-1", "10.3.0.2", "10.244.7.0/24"),
        ("ship-2", "10.3.0.3", "10.244.8.0/24"),
        ("ship-3", "10.3.0.4", "10.244.9.0/24"),
    ]
    assert sampled.gateway("gw-cloud")["spec"]["proxyConfig"]["proxyHTTPSPort"] == "10250,9100"


def elected(mesh: Mesh, name: str) -> set[tuple[str, str, int]]:
    endpoints = mesh.gateway(name)["status"]["activeEndpoints"]
    return {(endpoint["type"], endpoint["nodeName"], endpoint["port"]) for endpoint in endpoints}


def test_raven_cfg_switches_the_tunnels_off_and_on(sampled: Mesh) -> None:
    """enable-l3-tunnel "false": no tunnel endpoint is elected, and no region reaches another."""
    kubectl = sampled.cluster.plane.kubectl
    kubectl("apply", "-f", "-", input=SETTINGS)
    kubectl("apply", "-f", "-", input=SAMPLES)
    with Pairs(sampled.lab.pods) as pairs:
        pairs.until_complete(60)
        kubectl("apply", "-f", "-", input=SETTINGS.replace('l3-tunnel: "true"', 'l3-tunnel: "false"'))
        wait_until(lambda: len(pairs.missing()) == 2 * 3 * 3 * 6, "no pod reaches one of another region", 30)
        assert elected(sampled, "gw-cloud") == {("proxy", "cloud-1", 10262)}
        kubectl("apply", "-f", "-", input=SETTINGS)
        pairs.until_complete(60)


def test_another_sample_is_refused_with_words_where_its_version_is_not_served(sampled: Mesh) -> None:
    """The manual's older pages use v1alpha1. That version is not served, and kubectl's error says so."""
    older = SAMPLES.replace("v1beta1", "v1alpha1")
    said = sampled.cluster.plane.kubectl("apply", "-f", "-", input=older, check=False)
    assert 'no matches for kind "Gateway" in version "raven.openyurt.io/v1alpha1"' in said
    assert sampled.cluster.api.get(GATEWAYS)["items"] == []
