"""The controller in a real cluster: tests apply objects and read the status."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane
from controller_cluster import KEY, ControllerProcess, Region, administering, defined, eventually, fresh, pair, tunnel

from ravenvpn.k8s.resource import (
    BLOCK_AFFINITIES,
    CONFIG_MAPS,
    ENDPOINT_SLICES,
    EVENTS,
    GATEWAYS,
    NODES,
    SERVICES,
)

pytestmark = pytest.mark.cluster

OTHER_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
SLICES = ENDPOINT_SLICES.within("kube-system")
BALANCERS = SERVICES.within("kube-system")
CONFIG = CONFIG_MAPS.within("kube-system")
BLOCKS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "blockaffinities.crd.projectcalico.org"},
    "spec": {
        "group": "crd.projectcalico.org",
        "scope": "Cluster",
        "names": {"kind": "BlockAffinity", "plural": "blockaffinities", "singular": "blockaffinity"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with defined(tmp_path_factory.mktemp("controller")) as plane:
        plane.kubectl("create", "--filename=-", input=yaml.safe_dump(BLOCKS))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield plane


@pytest.fixture(scope="module")
def controller(plane: ControlPlane) -> Iterator[ControllerProcess]:
    with ControllerProcess(plane) as running:
        yield running
        assert running.running, running.log.read_text()[-2000:]
    text = running.log.read_text()
    assert "Traceback" not in text
    assert '"forbidden' not in text.lower()


@pytest.fixture
async def region(plane: ControlPlane) -> AsyncIterator[Region]:
    async with administering(plane) as region:
        yield region


async def test_an_applied_gateway_gets_status_conditions_and_one_event(
    plane: ControlPlane, controller: ControllerProcess, region: Region
) -> None:
    name, one, _ = await pair(region)
    await eventually(lambda: region.active(name), [one])
    status = await region.status(name)
    assert [len(info["subnets"]) for info in status["nodes"]] == [2, 1]
    assert status["activeEndpoints"][0]["config"] == {"enable-l3-tunnel": "true", "ravenvpn.io/epoch": "1"}
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "EndpointElected": "True",
        "Conflict": "False",
    }
    assert plane.kubectl("get", "gw", name, "--no-headers").split()[:4] == [name, one, "2", "True"]
    events = plane.kubectl("get", "events", f"--field-selector=involvedObject.name={name}", "--output=name")
    assert events.count("event/") == 1
    assert "ActiveEndpointElected" in plane.kubectl("describe", "gw", name)
    assert controller.get("/livez") == (200, "ok\n")
    assert controller.get("/readyz")[0] == 200
    assert "ravenvpn_controller_leader 1.0" in controller.get("/metrics")[1]


@pytest.mark.usefixtures("controller")
async def test_the_role_moves_off_a_node_that_is_not_ready_and_does_not_move_back(region: Region) -> None:
    name, one, two = await pair(region)
    await eventually(lambda: region.active(name), [one])
    await region.ready(one, False)
    await eventually(lambda: region.active(name), [two])
    await region.ready(one, True)
    await region.client.merge(NODES, two, {"metadata": {"annotations": {"seen": "yes"}}})
    assert await region.active(name) == [two]
    await region.drop(NODES, two)
    await eventually(lambda: region.active(name), [one])
    await region.client.merge(NODES, one, {"metadata": {"labels": {"raven.openyurt.io/gateway": None}}})
    await eventually(lambda: region.active(name), [])
    elected = await region.condition(name, "EndpointElected")
    assert (elected["status"], elected["reason"]) == ("False", "NoReadyNode")


@pytest.mark.usefixtures("controller")
async def test_calicos_blocks_replace_pod_cidrs(region: Region) -> None:
    name = fresh("calico")
    node = f"{name}-1"
    await region.gateway(name, [tunnel(node)])
    await region.node(node, name, ["10.1.1.0/24"], annotations={"projectcalico.org/IPv4Address": "10.0.0.1/24"})

    async def subnets() -> list[str]:
        nodes = (await region.status(name)).get("nodes") or []
        return [prefix for info in nodes for prefix in info["subnets"]]

    await eventually(subnets, ["10.1.1.0/24"])
    block = {"apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity", "metadata": {"name": f"{node}-a"}}
    await region.create(
        BLOCK_AFFINITIES, {**block, "spec": {"node": node, "cidr": "10.77.0.64/26", "state": "confirmed"}}
    )
    await eventually(subnets, ["10.77.0.64/26"])
    await region.drop(BLOCK_AFFINITIES, f"{node}-a")
    await eventually(subnets, ["10.1.1.0/24"])


@pytest.mark.usefixtures("controller")
async def test_a_malformed_gateway_has_a_reason_and_does_not_affect_others(
    plane: ControlPlane, region: Region
) -> None:
    broken, node = fresh("broken"), fresh("node")
    await region.gateway(broken, [tunnel(node, underNAT=True), tunnel(f"{node}-2", underNAT=False)])
    name, one, _ = await pair(region)
    await eventually(lambda: region.active(name), [one])
    ready = await eventually(lambda: region.condition(broken, "Ready"), lambda c: c.get("status") == "False")
    assert ready["reason"] == "Malformed"
    assert ready["message"].startswith("spec.endpoints[1].underNAT: differs from the first endpoint's")
    assert "Malformed" in plane.kubectl("describe", "gw", broken)


@pytest.mark.usefixtures("controller")
async def test_raven_cfg_turns_roles_on_and_off(region: Region) -> None:
    name = fresh("cloud")
    node = f"{name}-1"
    await region.node(node, name, ["10.2.1.0/24"])
    endpoints = [tunnel(node), {"nodeName": node, "type": "proxy"}]
    await region.gateway(name, endpoints, proxyConfig={"Replicas": 1})

    async def kinds() -> list[str]:
        return [e["type"] for e in (await region.status(name)).get("activeEndpoints") or []]

    await eventually(kinds, ["tunnel"])
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "raven-cfg"}}
    await region.create(CONFIG, {**config, "data": {"enable-l3-tunnel": "true", "enable-l7-proxy": "true"}})
    await eventually(kinds, ["proxy", "tunnel"])
    await region.client.merge(CONFIG, "raven-cfg", {"data": {"enable-l3-tunnel": "false"}})
    await eventually(kinds, ["proxy"])
    await region.drop(CONFIG, "raven-cfg")
    await eventually(kinds, ["tunnel"])


@pytest.mark.usefixtures("controller")
async def test_a_load_balancer_keeps_its_address_when_the_role_moves(region: Region) -> None:
    name = fresh("cloud")
    one, two = f"{name}-1", f"{name}-2"
    await region.node(one, name, ["10.3.1.0/25"], ip="10.0.3.1,fd00:3::1")
    await region.node(two, name, ["10.3.1.128/25"], ip="10.0.3.2")
    await region.gateway(name, [tunnel(one), tunnel(two)], exposeType="LoadBalancer")

    async def services() -> list[str]:
        pages = region.client.list(BALANCERS, labels=f"raven.openyurt.io/gateway={name}")
        return [s["metadata"]["name"] async for page in pages for s in page.items]

    async def targets() -> list[tuple[str, str, str]]:
        pages = region.client.list(SLICES, labels=f"raven.openyurt.io/gateway={name}")
        slices = [s async for page in pages for s in page.items]
        ends = [(s["addressType"], s["endpoints"][0]["nodeName"], s["endpoints"][0]["addresses"][0]) for s in slices]
        return sorted(ends)

    async def public_ip() -> str:
        active = (await region.status(name)).get("activeEndpoints") or [{}]
        return str(active[0].get("publicIP", ""))

    (service,) = await eventually(services, lambda found: len(found) == 1)
    assert service.startswith(f"x-raven-tunnel-svc-{name}-")
    await eventually(targets, [("IPv4", one, "10.0.3.1"), ("IPv6", one, "fd00:3::1")])
    assert (await region.condition(name, "Ready"))["reason"] == "NoPublicAddress"

    async def ingress(*entries: dict[str, str]) -> None:
        patch = {"status": {"loadBalancer": {"ingress": list(entries)}}}
        await region.client.merge(BALANCERS, service, patch, subresource="status")

    await ingress({"ip": "203.0.113.7"})
    await eventually(public_ip, "203.0.113.7")
    await ingress({"hostname": "3221226061"})  # a resolver accepts it as an IPv4 address: 192.0.2.77 as one number
    await eventually(public_ip, "192.0.2.77")
    await region.ready(one, False)
    await eventually(lambda: region.active(name), [two])
    assert await public_ip() == "192.0.2.77"
    await eventually(targets, [("IPv4", two, "10.0.3.2")])
    assert await services() == [service]
    await region.drop(GATEWAYS, name)
    await eventually(services, [])
    await eventually(targets, [])


@pytest.mark.usefixtures("controller")
async def test_the_key_of_a_peer_is_published_and_other_keys_are_kept(region: Region) -> None:
    name = fresh("mixed")
    ours, theirs = f"{name}-1", f"{name}-2"
    await region.node(ours, name, ["10.4.1.0/25"])
    await region.gateway(name, [tunnel(ours), tunnel(theirs, config={"publicKey": OTHER_KEY})])

    async def keys() -> list[str]:
        endpoints = (await region.client.get(GATEWAYS, name))["spec"]["endpoints"]
        return [e.get("config", {}).get("publicKey", "") for e in endpoints]

    await eventually(lambda: region.active(name), [ours])
    assert await keys() == ["", OTHER_KEY]
    await region.peer(ours, name, KEY, listenPort=4500, addresses=["198.51.100.7"])
    await eventually(keys, [KEY, OTHER_KEY])

    async def active() -> dict[str, Any]:
        found: dict[str, Any] = (await region.status(name))["activeEndpoints"][0]
        return found

    endpoint = await eventually(active, lambda e: e.get("config", {}).get("publicKey") == KEY)
    assert endpoint["publicIP"] == "198.51.100.7"


async def test_it_steps_back_where_yurt_manager_writes_and_elects_when_it_is_gone(
    controller: ControllerProcess, region: Region
) -> None:
    name, one, two = await pair(region)
    await eventually(lambda: region.active(name), [one])
    theirs = {"nodes": [], "activeEndpoints": [{"nodeName": two, "type": "tunnel"}]}
    # Its entry must be the later one; times in managedFields have whole seconds.
    await eventually(lambda: _writes_later(region, name, theirs), True)

    async def readyz() -> str:
        return controller.get("/readyz")[1]

    text = await eventually(readyz, lambda text: "steps back: " in text)
    assert f"yurt-manager wrote the status of Gateway {name} at " in text
    await region.ready(one, False)
    await region.ready(two, False)
    assert (await region.status(name))["activeEndpoints"] == theirs["activeEndpoints"]

    async def reasons() -> set[str]:
        events = [e async for page in region.client.list(EVENTS.within("default")) for e in page.items]
        return {e["reason"] for e in events if e["involvedObject"]["name"] == name}

    await eventually(reasons, lambda found: "SteppedBack" in found)
    await region.drop(GATEWAYS, name)
    await eventually(readyz, lambda text: "elects: " in text, within=30)


async def _writes_later(region: Region, name: str, status: dict[str, Any]) -> bool:
    """Write a status as yurt-manager. Returns whether its entry in managedFields is later than the controller's."""
    epoch = secrets.token_hex(2)
    marked = {**status, "nodes": [{"nodeName": f"n-{epoch}", "privateIP": "10.0.0.1", "subnets": []}]}
    answer = await region.client.merge(
        GATEWAYS, name, {"status": marked}, subresource="status", field_manager="yurt-manager"
    )
    times = {e["manager"]: e["time"] for e in answer["metadata"]["managedFields"] if e.get("subresource") == "status"}
    return bool(times["yurt-manager"] > times.get("raven-vpn-controller", ""))
