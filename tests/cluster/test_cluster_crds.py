"""Gateway and Peer as the API server knows them: OpenYurt's fields, what is refused, and what a person sees.

Unit tests hold the definitions against the tables of OpenYurt's types (pkg/apis/raven in openyurtio/openyurt, v1.7);
the rest is sent to real API servers of three versions.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane

from ravenvpn.k8s import crd

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "deploy" / "crds"
EXAMPLE = ROOT / "examples" / "kubernetes" / "gateways.yaml"
MINE = "scene=definitions"
KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="

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


# "!" is required, "[]" an array's item, "{}" a map's value.
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

OPENYURT_V1BETA1 = """
# What OpenYurt's user manual shows, with addresses of documentation.
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: NAME-hangzhou
  labels: {scene: definitions}
spec:
  proxyConfig:
    Replicas: 1
  tunnelConfig:
    Replicas: 1
  endpoints:
    - nodeName: hangzhou-1
      underNAT: true
      port: 10262
      type: proxy
    - nodeName: hangzhou-1
      underNAT: true
      port: 4500
      type: tunnel
---
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: NAME-cloud
  labels: {scene: definitions}
spec:
  exposeType: PublicIP
  proxyConfig:
    Replicas: 1
    proxyHTTPPort: 10255,9445
    proxyHTTPSPort: 10250,9100
  tunnelConfig:
    Replicas: 1
  endpoints:
    - nodeName: cloud-1
      underNAT: false
      port: 10262
      type: proxy
      publicIP: 203.0.113.10
    - nodeName: cloud-1
      underNAT: false
      port: 4500
      type: tunnel
      publicIP: 203.0.113.10
      config:
        enable-l3-tunnel: "true"
        publicKey: tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww=
  nodeSelector:
    matchLabels:
      raven.openyurt.io/gateway: NAME-cloud
"""


def schema(file: str, version: str) -> dict[str, Any]:
    definition = yaml.safe_load((CRDS / file).read_text())
    found = next(v for v in definition["spec"]["versions"] if v["name"] == version)
    return found["schema"]["openAPIV3Schema"]


def flat(node: dict[str, Any], name: str = "") -> dict[str, str]:
    """A schema as a table: each leaf's path and type."""
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
    """Types and `required` are all that upstream's schema checks."""

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
    found = [crd.parse(document, by_hand=True) for document in yaml.safe_load_all(EXAMPLE.read_text())]
    assert [(one.name, one.problems) for one in found] == [("cloud", ()), ("factory", ()), ("ship", ())]


@pytest.fixture(scope="module")
def defined(any_cluster: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster with both definitions; what a test makes goes when all are through."""
    any_cluster.kubectl("apply", "--server-side", "-k", str(CRDS))
    for name in ("gateways.raven.openyurt.io", "peers.ravenvpn.io"):
        any_cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    yield any_cluster
    any_cluster.kubectl("delete", "gateways,peers", "-l", MINE, "--wait=false")


@pytest.fixture
def name() -> str:
    """For what a test makes, or the first part of it."""
    return f"crd-{secrets.token_hex(3)}"


@pytest.fixture
def apply(defined: ControlPlane) -> Callable[..., str]:
    def apply(*objects: dict[str, Any], **more: Any) -> str:
        text = yaml.safe_dump_all(objects)
        return defined.kubectl("apply", "--server-side", "-f", "-", input=text, **more)

    return apply


def gateway(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": name, "labels": {"scene": "definitions"}},
        "spec": {"tunnelConfig": {"Replicas": 1}, "endpoints": [{"nodeName": "f1", "type": "tunnel"}], **spec},
    }


def peer(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {
            "name": name,
            "labels": {"scene": "definitions", "raven.openyurt.io/gateway": "factory", "ravenvpn.io/role": "gateway"},
        },
        "spec": {"publicKey": KEY, **spec},
    }


def set_status(cluster: ControlPlane, kind: str, thing: dict[str, Any], status: dict[str, Any], **more: Any) -> str:
    """As the controller does it, by server-side apply; kubectl 1.22 knows no --subresource."""
    group, version = thing["apiVersion"].split("/")
    path = f"/apis/{group}/{version}/{kind}/{thing['metadata']['name']}/status"
    current = json.loads(cluster.kubectl("get", "--raw", path))
    return cluster.kubectl(
        "replace", "--raw", path, "-f", "-", input=json.dumps({**current, "status": status}), **more
    )


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_definitions_are_structural_and_accepted(defined: ControlPlane) -> None:
    for name in ("gateways.raven.openyurt.io", "peers.ravenvpn.io"):
        found = json.loads(defined.kubectl("get", "crd", name, "-o", "json"))
        conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
        assert conditions["NamesAccepted"] == conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions
        assert found["status"]["storedVersions"] == [v["name"] for v in found["spec"]["versions"] if v["storage"]]


def test_applied_again_the_definitions_do_not_change(defined: ControlPlane) -> None:
    def generations() -> str:
        return defined.kubectl(
            "get", "crd", "-o", "jsonpath={range .items[*]}{.metadata.name}={.metadata.generation} {end}"
        )

    before = generations()
    defined.kubectl("apply", "--server-side", "-k", str(CRDS))
    assert generations() == before


def test_openyurts_own_gateways_apply_unchanged(defined: ControlPlane, name: str) -> None:
    sample = OPENYURT_V1BETA1.replace("NAME", name)
    defined.kubectl("apply", "-f", "-", input=sample)
    for wanted in yaml.safe_load_all(sample):
        stored = json.loads(defined.kubectl("get", "gw", wanted["metadata"]["name"], "-o", "json"))
        assert stored["spec"] == wanted["spec"]
    assert "unchanged" in defined.kubectl("apply", "-f", "-", input=sample)


def test_the_older_version_is_not_served(defined: ControlPlane, name: str) -> None:
    old = {**gateway(name), "apiVersion": "raven.openyurt.io/v1alpha1"}
    assert "no matches for kind" in defined.kubectl("apply", "-f", "-", input=json.dumps(old), check=False)


def refusals(cluster: ControlPlane, things: list[dict[str, Any]]) -> dict[str, str]:
    """What the API server says of each, by name; nothing of it is made."""
    text = yaml.safe_dump_all(things)
    said = cluster.kubectl("apply", "--validate=false", "-f", "-", input=text, check=False)
    assert "created" not in said
    return {
        thing["metadata"]["name"]: next((line for line in said.splitlines() if thing["metadata"]["name"] in line), "")
        + "".join(line for line in said.splitlines() if line.startswith("* "))
        for thing in things
    }


def test_malformed_gateways_are_refused(defined: ControlPlane, name: str) -> None:
    bad = {
        r"spec\.tunnelConfig\.Replicas: Required value": {"tunnelConfig": {"replicas": 1}},
        r"spec\.endpoints(\[0\])?\.type: Required value": {"endpoints": [{"nodeName": "f1"}]},
        r"spec\.endpoints(\[0\])?\.nodeName: Required value": {"endpoints": [{"type": "tunnel"}]},
        r"spec\.endpoints(\[0\])?\.port: Invalid value": {
            "endpoints": [{"nodeName": "f1", "type": "tunnel", "port": "4500"}]
        },
        r"spec\.endpoints(\[0\])?\.config\.publicKey: Invalid value": {
            "endpoints": [{"nodeName": "f1", "type": "tunnel", "config": {"publicKey": 1}}]
        },
    }
    said = refusals(defined, [gateway(f"{name}-{i}", **spec) for i, spec in enumerate(bad.values())])
    for i, complaint in enumerate(bad):
        assert re.search(complaint, said[f"{name}-{i}"])


def test_the_columns_of_a_gateway(defined: ControlPlane, name: str, apply: Callable[..., str]) -> None:
    thing = gateway(name)
    apply(thing)
    assert table(defined.kubectl("get", "gw", name))[0] == ["NAME", "ACTIVE", "NODES", "READY", "AGE"]
    condition = {"type": "Ready", "status": "False", "reason": "NoEndpoint", "message": "", "observedGeneration": 1}
    status = {
        "nodes": [{"nodeName": f"f{i}", "privateIP": "10.0.0.1", "subnets": []} for i in range(3)],
        "nodeCount": 3,
        "activeEndpoints": [{"nodeName": "f2", "type": "proxy"}, {"nodeName": "f1", "type": "tunnel"}],
        "conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }
    set_status(defined, "gateways", thing, status)
    assert table(defined.kubectl("get", "gw", name))[1][:4] == [name, "f1", "3", "False"]
    wide = table(defined.kubectl("get", "gw", name, "-o", "wide"))
    assert wide[0] == ["NAME", "ACTIVE", "NODES", "READY", "REASON", "EXPOSE", "AGE"]
    assert wide[1][4] == "NoEndpoint"
    # As OpenYurt's controller leaves it: no conditions, no count.
    set_status(defined, "gateways", thing, {"nodes": [], "activeEndpoints": status["activeEndpoints"]})
    assert table(defined.kubectl("get", "gw", name))[1][:2] == [name, "f1"]


def test_status_is_written_apart_from_spec(defined: ControlPlane, name: str, apply: Callable[..., str]) -> None:
    apply({**gateway(name), "status": {"nodeCount": 7}})
    found = json.loads(defined.kubectl("get", "gw", name, "-o", "json"))
    assert "status" not in found
    set_status(defined, "gateways", gateway(name), {"nodeCount": 7})
    found = json.loads(defined.kubectl("get", "gw", name, "-o", "json"))
    assert (found["status"], found["metadata"]["generation"]) == ({"nodeCount": 7}, 1)


def test_a_condition_without_a_reason_is_refused(defined: ControlPlane, name: str, apply: Callable[..., str]) -> None:
    thing = gateway(name)
    apply(thing)
    bad = {"type": "Ready", "status": "Maybe", "lastTransitionTime": "2026-01-01T00:00:00Z", "message": ""}
    refusal = set_status(defined, "gateways", thing, {"conditions": [bad]}, check=False)
    assert re.search(r"status\.conditions(\[0\])?\.reason: Required value", refusal)
    assert 'Unsupported value: "Maybe"' in refusal


def test_the_columns_of_a_peer(defined: ControlPlane, name: str, apply: Callable[..., str]) -> None:
    thing = peer(name, listenPort=4500, addresses=["203.0.113.7"], sources=["10.244.3.1", "fd00::1"])
    apply(thing)
    status = {
        "version": "0.1.0",
        "dataplane": "native",
        "sessions": {"wanted": 4, "up": 3},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "DataPathWorks",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    set_status(defined, "peers", thing, status)
    shown = table(defined.kubectl("get", "peer", name))
    assert shown[0] == ["NAME", "GATEWAY", "ROLE", "ADDRESSES", "UP", "WANTED", "READY", "AGE"]
    assert shown[1][:7] == [name, "factory", "gateway", '["203.0.113.7"]', "3", "4", "True"]
    wide = table(defined.kubectl("get", "peer", name, "-o", "wide"))
    assert wide[1][7:10] == [KEY, "native", "0.1.0"]


def test_malformed_peers_are_refused(defined: ControlPlane, name: str) -> None:
    bad: list[dict[str, Any]] = [
        {"publicKey": KEY[:-1]},
        {"publicKey": KEY[:-2] + "x="},  # its last bits cannot be: 256 is no multiple of 6
        {"publicKey": "-" + KEY[1:]},
        {"nextPublicKey": ""},
        {"listenPort": 65536},
        {"listenPort": 0},
        {"addresses": ["203.0.113.7"] * 33},
        {"addresses": ["a" * 262]},
        {"nodeAddresses": ["here"]},
        {"sources": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]},
        {"suites": ["s"] * 17},
    ]
    said = refusals(defined, [peer(f"{name}-{i}", **spec) for i, spec in enumerate(bad)])
    for i, spec in enumerate(bad):
        (field,) = spec
        assert f'"{name}-{i}" is invalid: spec.{field}' in said[f"{name}-{i}"]
