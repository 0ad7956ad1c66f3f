"""deploy/ and `raven-vpn install` on real API servers: install, upgrade, uninstall, and the RBAC rights."""

from __future__ import annotations

import configparser
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import yaml
from control_plane import DEFAULT, DEPLOY, OLDEST, ControlPlane, Failed, running

import ravenvpn
from ravenvpn.k8s import bundle

ROOT = Path(__file__).parents[2]
GATEWAYS = "/apis/raven.openyurt.io/v1beta1/gateways"
PEERS = "/apis/ravenvpn.io/v1alpha1/peers"


def raven_vpn(cluster: ControlPlane, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ravenvpn", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "KUBECONFIG": str(cluster.admin)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_name(text: str) -> dict[str, Any]:
    things = [thing for thing in yaml.safe_load_all(text) if thing]
    return {f"{t['kind']}/{t['metadata'].get('namespace', '')}/{t['metadata']['name']}": t for t in things}


# Contents of the manifests.


@pytest.mark.parametrize(
    ("arguments", "folder"), [((), "."), (("--no-gateway-definition",), "beside-openyurt")], ids=["all", "beside"]
)
def test_install_prints_what_kustomize_builds(
    any_cluster: ControlPlane, arguments: tuple[str, ...], folder: str
) -> None:
    printed = by_name(raven_vpn(any_cluster, "install", "--print", *arguments))
    built = by_name(any_cluster.kubectl("kustomize", str(DEPLOY / folder)))
    assert set(printed) == set(built)
    for name, thing in built.items():
        assert printed[name] == thing


def test_another_image_is_the_only_difference(cluster: ControlPlane) -> None:
    usual = raven_vpn(cluster, "install", "--print")
    other = raven_vpn(cluster, "install", "--print", "--image", "registry.example/raven@sha256:00")
    assert usual.count(f"image: ravenvpn:{ravenvpn.__version__}\n") == 2
    assert other == usual.replace(
        f"image: ravenvpn:{ravenvpn.__version__}", "image: registry.example/raven@sha256:00"
    )


def test_the_package_carries_every_manifest() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["ravenvpn.k8s"].split()
    package = Path(bundle.__file__).parent
    carried = {path.relative_to(package / "deploy") for pattern in patterns for path in package.glob(pattern)}
    assert carried == {path.relative_to(DEPLOY) for path in DEPLOY.rglob("*.yaml")}


def test_definitions_come_first() -> None:
    kinds = [thing["kind"] for thing in bundle.objects()]
    assert kinds == sorted(kinds, key=lambda kind: kind != "CustomResourceDefinition")


def test_the_agent_is_not_privileged() -> None:
    (agent,) = [t for t in bundle.objects() if t["kind"] == "DaemonSet"]
    pod = agent["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "privileged" not in json.dumps(agent)
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert (pod["hostNetwork"], pod.get("hostPID"), pod.get("hostIPC")) == (True, None, None)
    assert {v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v} == {
        "/dev/net/tun",
        "/proc/sys/net",
        "/run/ravenvpn",
        "/run/wireguard",
        "/var/lib/ravenvpn",
    }


# The manifests, applied to an API server.


def test_everything_is_accepted_in_a_dry_run(any_cluster: ControlPlane) -> None:
    said = any_cluster.kubectl("apply", "--server-side", "--dry-run=server", "--force-conflicts", "-k", str(DEPLOY))
    assert sorted(line.rpartition("/")[2].split()[0] for line in said.splitlines()) == sorted(
        bundle.name_of(thing) for thing in bundle.objects()
    )
    assert "warning" not in said.lower()


@pytest.fixture(scope="module", params=[DEFAULT, OLDEST])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster of two nodes, one of them tainted, with a controller-manager and without objects of ravenvpn."""
    with running(tmp_path_factory.mktemp("fresh") / "kube", request.param, "controller-manager") as plane:
        nodes = [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}
            for name in ("cloud-1", "edge-1")
        ]
        nodes[1]["spec"] = {"taints": [{"key": "edge", "effect": "NoExecute"}], "unschedulable": True}
        plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(nodes))
        yield plane


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def ours(cluster: ControlPlane) -> list[str]:
    """Return the objects of ravenvpn in the cluster, of all kinds that the manifests contain."""
    kinds = sorted({thing["kind"] for thing in bundle.objects()})
    return cluster.kubectl(
        "get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/part-of=ravenvpn", "-o", "name"
    ).split()


@pytest.mark.timeout(300)
def test_installed_upgraded_and_uninstalled_by_kubectl(fresh: ControlPlane) -> None:
    """The steps are those of docs/kubernetes.md."""
    manifests = raven_vpn(fresh, "install", "--print")
    fresh.kubectl("apply", "--server-side", "-f", "-", input=manifests)
    assert len(ours(fresh)) == len(bundle.objects())

    # The resulting pods: an agent on every node in spite of any taint, and two controllers.
    def pods(component: str) -> list[dict[str, Any]]:
        label = f"app.kubernetes.io/component={component}"
        return json.loads(fresh.kubectl("get", "pods", "-n", "kube-system", "-l", label, "-o", "json"))["items"]

    until(lambda: len(pods("agent")) == 2 and len(pods("controller")) == 2, "the pods are made")
    agent = pods("agent")[0]["spec"]
    assert (agent["priorityClassName"], agent["priority"]) == ("system-node-critical", 2_000_001_000)

    # Upgrade: the same manifests change nothing; another image is rolled out.
    def generations() -> str:
        kinds = ["daemonset/ravenvpn-agent", "deployment/ravenvpn-controller"]
        return fresh.kubectl("get", "-n", "kube-system", *kinds, "-o", "jsonpath={.items[*].metadata.generation}")

    before = generations()
    fresh.kubectl("apply", "--server-side", "-f", "-", input=manifests)
    assert generations() == before
    assert "changed" not in re.sub("unchanged", "", raven_vpn(fresh, "install"))
    newer = raven_vpn(fresh, "install", "--image", "ravenvpn:next")
    assert re.findall(r"^(\w+ \S+): changed$", newer, re.MULTILINE) == [
        "DaemonSet ravenvpn-agent",
        "Deployment ravenvpn-controller",
    ]

    # A preshared key.
    fresh.kubectl(
        *("patch", "-n", "kube-system", "daemonset/ravenvpn-agent"),
        *("--patch-file", str(DEPLOY / "preshared-key.yaml")),
    )
    there = json.loads(fresh.kubectl("get", "-n", "kube-system", "daemonset/ravenvpn-agent", "-o", "json"))
    pod = there["spec"]["template"]["spec"]
    variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    assert variables["RAVENVPN_SOURCE"] == "cluster"
    folder, _, key = variables["RAVENVPN_PRESHARED_KEY_FILE"].rpartition("/")
    assert (folder, key) == ("/etc/ravenvpn/secret", "preshared-key")
    assert folder in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {"name": "preshared-key", "secret": {"secretName": "ravenvpn", "defaultMode": 0o400}} in pod["volumes"]

    # Uninstall in the order of the documentation: the agents clean up first.
    fresh.kubectl("set", "env", "-n", "kube-system", "daemonset/ravenvpn-agent", "RAVENVPN_CLEANUP_ON_EXIT=true")
    fresh.kubectl("delete", "--wait=false", "-f", "-", input=manifests)
    until(lambda: ours(fresh) == [], "all of it is gone")


def test_beside_openyurt_its_definition_is_left_alone(own_cluster: ControlPlane) -> None:
    """Helm owns OpenYurt's definition. kubectl refuses to take over its fields, and `install` does not try."""
    (upstream,) = [thing for thing in bundle.objects() if bundle.is_gateway_definition(thing)]
    upstream["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
    beta = upstream["spec"]["versions"][0]
    del beta["additionalPrinterColumns"]
    del beta["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
    own_cluster.kubectl("create", "--field-manager=helm", "-f", "-", input=json.dumps(upstream))
    with pytest.raises(Failed, match=r'conflict with "helm".*: \.spec\.versions'):
        own_cluster.kubectl("apply", "--server-side", "-k", str(DEPLOY / "crds"))

    said = raven_vpn(own_cluster, "install")

    assert "CustomResourceDefinition gateways.raven.openyurt.io: left alone" in said
    assert re.search(r"^CustomResourceDefinition peers\.ravenvpn\.io: (created|unchanged)$", said, re.MULTILINE)
    there = json.loads(own_cluster.kubectl("get", "crd", "gateways.raven.openyurt.io", "-o", "json"))
    assert there["metadata"]["generation"] == 1
    own_cluster.kubectl("delete", "--wait=false", "-k", str(DEPLOY / "beside-openyurt"))
    assert own_cluster.kubectl("get", "crd", "gateways.raven.openyurt.io", "-o", "name")


# Rights of the agent and of the controller.


class Caller:
    """Requests under a service account, with its token."""

    def __init__(self, cluster: ControlPlane, account: str) -> None:
        where = urlsplit(cluster.url)
        context = ssl.create_default_context(cafile=str(cluster.ca))
        self._connection = http.client.HTTPSConnection(str(where.hostname), where.port, context=context, timeout=30)
        self._token = cluster.token(account)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind, "Accept": "application/json"}
        for _ in range(100):
            self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = self._connection.getresponse()
            said = json.loads(answer.read() or b"{}")
            if answer.status != 429:  # storage of a definition that was created a moment ago is not ready
                break
            time.sleep(0.1)
        return answer.status, said

    def rights(self, namespace: str) -> set[str]:
        """Return "verb resource" or "verb resource/name" of each right that this account has and others do not."""
        spec = {"spec": {"namespace": namespace}}
        _, review = self.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", spec)
        return {
            f"{verb} {resource}{f' {name}' if name else ''}"
            for rule in review["status"]["resourceRules"]
            for verb in rule["verbs"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames") or [""]
            if not resource.startswith("selfsubject")
            and resource != "clustertrustbundles"  # readable by every account since 1.37
        }


def each(verbs: str, resource: str) -> set[str]:
    return {f"{verb} {resource}" for verb in verbs.split()}


@pytest.fixture(scope="module")
def installed(any_cluster: ControlPlane) -> Iterator[ControlPlane]:
    any_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(DEPLOY))
    for name in ("gateways.raven.openyurt.io", "peers.ravenvpn.io"):
        any_cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    yield any_cluster
    any_cluster.kubectl("delete", "daemonset/ravenvpn-agent", "deployment/ravenvpn-controller", "-n", "kube-system")


def test_the_rights_of_an_agent_are_few(installed: ControlPlane) -> None:
    wanted = (
        each("get list watch", "gateways")
        | each("get list watch create update patch", "peers")
        | each("get update patch", "peers/status")
        | {"get namespaces kube-system"}
    )
    with Caller(installed, "ravenvpn-agent") as agent:
        assert agent.rights("kube-system") == wanted
        assert agent.rights("default") == wanted


def test_the_rights_of_the_controller_are_those_it_uses(installed: ControlPlane) -> None:
    everywhere = (
        each("get list watch patch", "gateways")
        | {"patch gateways/status"}
        | each("get list watch", "peers")
        | each("get list watch", "nodes")
        | each("get list watch", "blockaffinities")
        | {"get namespaces kube-system", "get customresourcedefinitions gateways.raven.openyurt.io"}
    )
    in_kube_system = (
        {"create leases", "get leases raven-vpn-controller", "update leases raven-vpn-controller"}
        | {"get leases yurt-manager"}
        | {f"{verb} configmaps raven-cfg" for verb in ("get", "list", "watch")}
        | each("get list watch create patch delete", "services")
        | each("get list watch create patch delete", "endpointslices")
        | {"delete endpoints"}
    )
    with Caller(installed, "ravenvpn-controller") as controller:
        assert controller.rights("default") == everywhere | each("create patch", "events")
        assert controller.rights("kube-system") == everywhere | in_kube_system


def test_an_agents_requests_are_judged_so(installed: ControlPlane) -> None:
    peer = {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": "rights-1"},
        "spec": {"publicKey": "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="},
    }
    apply, merge = "application/apply-patch+yaml", "application/merge-patch+json"
    allowed = [
        ("GET", GATEWAYS, None, ""),
        ("GET", PEERS, None, ""),
        ("PATCH", f"{PEERS}/rights-1?fieldManager=test", peer, apply),
        ("PATCH", f"{PEERS}/rights-1/status", {"status": {"version": "1"}}, merge),
        ("GET", "/api/v1/namespaces/kube-system", None, ""),
    ]
    forbidden = [
        ("PATCH", f"{GATEWAYS}/any", {"spec": {}}, merge),
        ("PATCH", f"{GATEWAYS}/any/status", {"status": {}}, merge),
        ("POST", GATEWAYS, {}, ""),
        ("DELETE", f"{GATEWAYS}/any", None, ""),
        ("DELETE", f"{PEERS}/rights-1", None, ""),
        ("GET", "/api/v1/nodes", None, ""),
        ("PATCH", "/api/v1/nodes/any", {}, merge),
        ("GET", "/api/v1/pods", None, ""),
        ("GET", "/api/v1/namespaces/kube-system/secrets", None, ""),
        ("GET", "/api/v1/namespaces/kube-system/secrets/any", None, ""),
        ("GET", "/api/v1/namespaces/kube-system/configmaps", None, ""),
        ("GET", "/api/v1/namespaces", None, ""),
        ("GET", "/api/v1/namespaces/default", None, ""),
        ("POST", "/api/v1/namespaces/kube-system/serviceaccounts/ravenvpn-controller/token", {}, ""),
        ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", None, ""),
    ]
    try:
        with Caller(installed, "ravenvpn-agent") as agent:
            for method, path, body, kind in allowed:
                status, said = agent.call(method, path, body, kind or "application/json")
                assert status in (200, 201), (method, path, said)
            for method, path, body, kind in forbidden:
                status, said = agent.call(method, path, body, kind or "application/json")
                assert status == 403, (method, path, said)
    finally:
        installed.kubectl("delete", "peer", "rights-1", "--ignore-not-found")
