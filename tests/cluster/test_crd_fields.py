"""The CRDs Gateway and Peer as files: OpenYurt's fields under OpenYurt's names, and few others.

The tests compare them with tables of OpenYurt's types (pkg/apis/raven in openyurtio/openyurt, v1.7).
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from control_plane import DEPLOY

from ravenvpn.k8s import crd

CRDS = DEPLOY / "crds"
EXAMPLE = DEPLOY.parent / "examples" / "kubernetes" / "gateways.yaml"

ENDPOINT_V1ALPHA1 = {"nodeName!": "string", "underNAT": "boolean", "publicIP": "string", "config{}": "string"}
ENDPOINT = {
    **ENDPOINT_V1ALPHA1,
    "type!": "string",
    "port": "integer",
    "natType": "string",
    "publicPort": "integer",
}
NODE_SELECTOR = {
    "nodeSelector.matchExpressions[].key!": "string",
    "nodeSelector.matchExpressions[].operator!": "string",
    "nodeSelector.matchExpressions[].values[]": "string",
    "nodeSelector.matchLabels{}": "string",
}
NODE_INFO = {"nodes[].nodeName!": "string", "nodes[].privateIP!": "string", "nodes[].subnets![]": "string"}
CONDITION = {
    "type!": "string",
    "status!": "string",
    "observedGeneration": "integer",
    "lastTransitionTime!": "string",
    "reason!": "string",
    "message!": "string",
}


def below(prefix: str, fields: dict[str, str]) -> dict[str, str]:
    return {prefix + name: kind for name, kind in fields.items()}


# "!" marks a required field, "[]" an array's item, "{}" a map's value.
UPSTREAM = {
    "v1beta1": {
        "spec": {
            **NODE_SELECTOR,
            "proxyConfig.Replicas!": "integer",
            "proxyConfig.proxyHTTPPort": "string",
            "proxyConfig.proxyHTTPSPort": "string",
            "tunnelConfig.Replicas!": "integer",
            **below("endpoints[].", ENDPOINT),
            "exposeType": "string",
        },
        "status": {**NODE_INFO, **below("activeEndpoints[].", ENDPOINT)},
    },
    "v1alpha1": {
        "spec": {**NODE_SELECTOR, **below("endpoints![].", ENDPOINT_V1ALPHA1), "exposeType": "string"},
        "status": {**NODE_INFO, **below("activeEndpoint.", ENDPOINT_V1ALPHA1)},
    },
}
OURS = {"v1beta1": {"nodeCount": "integer", **below("conditions[].", CONDITION)}, "v1alpha1": {}}


def schema(file: str, version: str) -> dict[str, Any]:
    definition = yaml.safe_load((CRDS / file).read_text())
    found = next(v for v in definition["spec"]["versions"] if v["name"] == version)
    return found["schema"]["openAPIV3Schema"]


def flat(node: dict[str, Any], name: str = "") -> dict[str, str]:
    """Return a schema as a table of each leaf's path and type."""
    if node["type"] == "object" and "additionalProperties" in node:
        return flat(node["additionalProperties"], name + "{}")
    if node["type"] == "object":
        required = node.get("required", ())
        table: dict[str, str] = {}
        for key, inner in node["properties"].items():
            table |= flat(inner, f"{name}.{key}".removeprefix(".") + ("!" if key in required else ""))
        return table
    if node["type"] == "array":
        return flat(node["items"], name + "[]")
    return {name: node["type"]}


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_a_gateway_has_upstreams_fields_and_little_more(version: str) -> None:
    properties = schema("gateways.yaml", version)["properties"]
    assert set(properties) == {"apiVersion", "kind", "metadata", "spec", "status"}
    assert flat(properties["spec"]) == UPSTREAM[version]["spec"]
    assert flat(properties["status"]) == {**UPSTREAM[version]["status"], **OURS[version]}


def test_a_gateways_spec_restricts_nothing_that_upstream_accepts() -> None:
    """Types and `required` are the only checks in the upstream schema."""

    def keywords(node: Any) -> set[str]:
        if isinstance(node, dict):
            return set(node).union(*(keywords(inner) for inner in node.values()))
        return set().union(*map(keywords, node)) if isinstance(node, list) else set()

    for version in ("v1beta1", "v1alpha1"):
        spec = schema("gateways.yaml", version)["properties"]["spec"]
        assert not keywords(spec) & {"enum", "pattern", "minimum", "maximum", "maxItems", "maxLength", "default"}


def test_a_gateways_names_are_upstreams() -> None:
    definition = yaml.safe_load((CRDS / "gateways.yaml").read_text())
    spec = definition["spec"]
    assert (spec["group"], spec["scope"]) == ("raven.openyurt.io", "Cluster")
    assert {k: spec["names"][k] for k in ("kind", "listKind", "plural", "singular", "shortNames")} == {
        "kind": "Gateway",
        "listKind": "GatewayList",
        "plural": "gateways",
        "singular": "gateway",
        "shortNames": ["gw"],
    }
    assert [(v["name"], v["served"], v["storage"], v["subresources"]) for v in spec["versions"]] == [
        ("v1beta1", True, True, {"status": {}}),
        ("v1alpha1", False, False, {"status": {}}),
    ]


def test_the_example_has_nothing_to_complain_about() -> None:
    found = [crd.parse(document, handwritten=True) for document in yaml.safe_load_all(EXAMPLE.read_text())]
    assert [(one.name, one.problems) for one in found] == [("cloud", ()), ("factory", ()), ("ship", ())]
