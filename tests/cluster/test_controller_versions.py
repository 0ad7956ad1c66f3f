"""The controller on the oldest and the newest supported Kubernetes, with the same objects and permissions."""

from __future__ import annotations

from typing import Any

from control_plane import ControlPlane
from controller_cluster import KEY, ControllerProcess, administering, define, eventually, fresh, tunnel

from ravenvpn.k8s.resource import SERVICES


async def test_a_region_behind_a_load_balancer_on_every_version(any_cluster: ControlPlane) -> None:
    define(any_cluster)
    name = fresh("cloud")
    node = f"{name}-1"
    try:
        with ControllerProcess(any_cluster, name=name) as controller:
            async with administering(any_cluster) as region:
                await controller.started()
                await region.node(node, name, ["10.5.1.0/24", "fd00:5:1::/64"], ip="10.0.5.1")
                await region.gateway(name, [tunnel(node)], exposeType="LoadBalancer")
                await eventually(lambda: region.active(name), [node], within=40)
                pages = region.client.list(SERVICES.within("kube-system"), labels=f"raven.openyurt.io/gateway={name}")
                (service,) = [s["metadata"]["name"] async for page in pages for s in page.items]
                patch = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}
                await region.client.merge(SERVICES.within("kube-system"), service, patch, subresource="status")
                ready = await eventually(lambda: region.condition(name, "Ready"), lambda c: c.get("status") == "True")
                assert ready["reason"] == "Joined"
                await region.peer(node, name, KEY)

                async def endpoint() -> dict[str, Any]:
                    found: dict[str, Any] = (await region.status(name))["activeEndpoints"][0]
                    return found

                active = await eventually(endpoint, lambda e: e.get("config", {}).get("publicKey") == KEY)
                assert active["publicIP"] == "203.0.113.7"
                assert "ActiveEndpointElected" in any_cluster.kubectl("describe", "gateways", name)
    finally:
        any_cluster.kubectl("delete", "lease", "raven-vpn-controller", "--namespace=kube-system")
    refused = [line["message"] for line in controller.lines() if line["level"] in ("warning", "error")]
    assert not [message for message in refused if "forbidden" in message], refused
