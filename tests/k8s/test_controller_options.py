"""The module `options` defines the controller's defaults once; command line and manifests agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from ravenvpn.cli.controller import controller
from ravenvpn.config import parse_host_port
from ravenvpn.controllerd import application
from ravenvpn.k8s.controller.decode import RAVEN_CFG, YURT_MANAGER
from ravenvpn.k8s.controller.discovery import GATEWAY_DEFINITION, SYSTEM_NAMESPACE
from ravenvpn.k8s.controller.options import NAMESPACE, ControllerOptions, ProcessOptions

WORKLOADS = Path(__file__).parents[2] / "deploy" / "workloads"
OPTIONS = ControllerOptions(identity="")
PROCESS = ProcessOptions()


def documents(name: str) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all((WORKLOADS / name).read_text())


@pytest.fixture
def deployment() -> dict[str, Any]:
    return next(one for one in documents("controller.yaml") if one["kind"] == "Deployment")


@pytest.fixture
def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def rules(kind: str, group: str, resource: str) -> list[dict[str, Any]]:
    """Rules of the controller's Role or ClusterRole for one resource, in kube-system or cluster-wide."""
    roles = (one for one in documents("rbac-controller.yaml") if one["kind"] == kind)
    found = [rule for role in roles for rule in role["rules"]]
    return [rule for rule in found if rule["apiGroups"] == [group] and rule["resources"] == [resource]]


def test_the_command_line_has_the_defaults_of_the_options() -> None:
    shown = {option.name: option.default for option in controller.params}
    expected = {**asdict(PROCESS), **asdict(OPTIONS)}
    timing = expected.pop("timing")
    expected |= {
        "lease_duration": timing["duration"],
        "renew_deadline": timing["renew"],
        "retry_period": timing["retry"],
        "leader_elect": expected.pop("leader_election"),
    }
    assert shown == expected


def test_the_deployment_runs_with_the_defaults(container: dict[str, Any]) -> None:
    """The Deployment sets neither arguments nor environment, so the other tests may compare with the defaults."""
    assert container["command"] == ["raven-vpn", "controller"]
    assert not {"args", "env", "envFrom"} & container.keys()


def test_probes_ask_the_default_port_for_paths_that_are_served(container: dict[str, Any]) -> None:
    (port,) = container["ports"]
    assert port["containerPort"] == parse_host_port(PROCESS.http_address, field="")[1]
    routes = application(lambda: pytest.fail("no request is served here")).router.routes()
    served = {route.resource.canonical for route in routes if route.resource}
    for probe in ("livenessProbe", "readinessProbe"):
        request = container[probe]["httpGet"]
        assert request["port"] == port["name"]
        assert request["path"] in served


def test_the_pod_has_time_to_give_up_the_lease(deployment: dict[str, Any]) -> None:
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > OPTIONS.timing.retry


def test_permissions_name_the_objects_that_the_controller_uses() -> None:
    leases = rules("Role", "coordination.k8s.io", "leases")
    verbs = {tuple(rule.get("resourceNames", ())): rule["verbs"] for rule in leases}
    assert verbs == {(): ["create"], (OPTIONS.lease_name,): ["get", "update"], (YURT_MANAGER,): ["get"]}
    assert [rule["resourceNames"] for rule in rules("Role", "", "configmaps")] == [[RAVEN_CFG]]
    definitions = rules("ClusterRole", "apiextensions.k8s.io", "customresourcedefinitions")
    assert [rule["resourceNames"] for rule in definitions] == [[GATEWAY_DEFINITION]]
    assert [rule["resourceNames"] for rule in rules("ClusterRole", "", "namespaces")] == [[SYSTEM_NAMESPACE]]


def test_manifests_are_in_the_namespace_of_the_lease(deployment: dict[str, Any]) -> None:
    assert deployment["metadata"]["namespace"] == OPTIONS.lease_namespace == NAMESPACE
    roles = {one["metadata"]["name"]: one for one in documents("rbac-controller.yaml") if one["kind"] == "Role"}
    assert roles["ravenvpn-controller"]["metadata"]["namespace"] == OPTIONS.lease_namespace
