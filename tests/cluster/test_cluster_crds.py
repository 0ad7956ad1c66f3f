"""The CRDs Gateway and Peer on real API servers of three versions: validation, and the columns of kubectl."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import openyurt_manual
import pytest
import yaml
from control_plane import DEPLOY, ControlPlane, define_kinds

MINE = "scene=definitions"
KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="


@pytest.fixture(scope="module")
def defined(any_cluster: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster with both definitions. Objects of the tests are deleted at the end."""
    define_kinds(any_cluster)
    yield any_cluster
    any_cluster.kubectl("delete", "gateways,peers", "-l", MINE, "--wait=false")


@pytest.fixture
def name() -> str:
    """Return a name, or the first part of one, for an object of a test."""
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
    """Write a status by server-side apply, as the controller does. kubectl 1.22 has no --subresource."""
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
    defined.kubectl("apply", "--server-side", "-k", str(DEPLOY / "crds"))
    assert generations() == before


def test_openyurts_own_gateways_apply_unchanged(defined: ControlPlane, name: str) -> None:
    sample = f"{openyurt_manual.GATEWAYS}---{openyurt_manual.OLDER}"
    sample = sample.replace("  name: gw-", "  labels: {scene: definitions}\n  name: gw-").replace("gw-", f"{name}-")
    defined.kubectl("apply", "-f", "-", input=sample)
    for wanted in yaml.safe_load_all(sample):
        stored = json.loads(defined.kubectl("get", "gw", wanted["metadata"]["name"], "-o", "json"))
        assert stored["spec"] == wanted["spec"]
    assert "unchanged" in defined.kubectl("apply", "-f", "-", input=sample)


def test_the_older_version_is_not_served(defined: ControlPlane, name: str) -> None:
    old = {**gateway(name), "apiVersion": "raven.openyurt.io/v1alpha1"}
    assert "no matches for kind" in defined.kubectl("apply", "-f", "-", input=json.dumps(old), check=False)


def refusals(cluster: ControlPlane, things: list[dict[str, Any]]) -> dict[str, str]:
    """Return the answers of a dry run to each object, by name; nothing is created."""
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
    # The status as OpenYurt's controller writes it: no conditions, no count.
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
        {"publicKey": KEY[:-2] + "x="},  # invalid last bits: 256 is no multiple of 6
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
