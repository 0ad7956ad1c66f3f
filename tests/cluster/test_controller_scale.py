"""A thousand regions of ten nodes: memory of the controller, its CPU time when idle, and writes per change."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from control_plane import ControlPlane
from controller_cluster import READY, SPACE, ControllerProcess, defined, eventually

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import GATEWAYS, NODES, PEERS, Object

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1800)]

REGIONS, EACH = 1000, 10
MAX_RSS = 300 << 20  # bytes
MAX_IDLE = 0.01  # cores


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with defined(tmp_path_factory.mktemp("scale"), arguments="--max-mutating-requests-inflight=1000") as plane:
        yield plane


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Client]:
    async with Client.connect(str(plane.admin)) as client:
        yield client


def node(region: int, i: int) -> Object:
    number = region * EACH + i
    cidrs = [f"10.{number >> 8}.{number & 255}.0/24", f"fd00:10:{number:x}::/64"]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"edge-{region}-{i}",
            # Fields that a kubelet writes and the controller must not keep in memory.
            "labels": {"raven.openyurt.io/gateway": f"region-{region}", "kubernetes.io/os": "linux"},
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": status(number),
    }


def status(number: int) -> Object:
    images = [{"names": [f"registry.example.org/app-{i}@sha256:{'0' * 64}"], "sizeBytes": 1 << 20} for i in range(20)]
    address = f"172.{16 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}"
    addresses = [{"type": "InternalIP", "address": address}]
    return {"conditions": [READY], "addresses": addresses, "images": images}


def peer(region: int, i: int) -> Object:
    number = region * EACH + i
    key = base64.b64encode(hashlib.sha256(str(number).encode()).digest()).decode()
    labels = {"raven.openyurt.io/gateway": f"region-{region}", "ravenvpn.io/role": "plain"}
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": f"edge-{region}-{i}", "labels": labels},
        "spec": {
            "publicKey": key,
            "listenPort": 4500,
            "sources": [f"10.{number >> 8}.{number & 255}.1"],
            "suites": ["chacha20poly1305", "aes256gcm"],
        },
    }


async def fill(client: Client) -> None:
    slots = asyncio.Semaphore(16)

    async def one(region: int, i: int) -> None:
        async with slots:
            await client.create(NODES, node(region, i))
            await client.create(PEERS, peer(region, i))

    async def gateway(region: int) -> None:
        endpoints = [{"nodeName": f"edge-{region}-{i}", "type": "tunnel", "underNAT": True} for i in range(2)]
        spec = {"tunnelConfig": {"Replicas": 1}, "endpoints": endpoints}
        async with slots:
            await client.create(GATEWAYS, {**SPACE, "metadata": {"name": f"region-{region}"}, "spec": spec})

    await asyncio.gather(*(gateway(region) for region in range(REGIONS)))
    for region in range(REGIONS):
        await asyncio.gather(*(one(region, i) for i in range(EACH)))


async def test_a_thousand_regions_of_ten_nodes_stay_small_and_quiet(plane: ControlPlane, client: Client) -> None:
    await fill(client)
    began = time.monotonic()
    with ControllerProcess(plane, name="scale") as running:
        await running.started()

        async def ready() -> int:
            found = [c for g in await _all(client) for c in g.get("status", {}).get("conditions", ())]
            return sum(c["type"] == "Ready" and c["status"] == "True" for c in found)

        # long interval, since listing a thousand Gateways is a load of its own
        await eventually(ready, REGIONS, within=300, every=2.0)
        took = time.monotonic() - began
        await asyncio.sleep(20)
        cpu, at = running.cpu(), time.monotonic()
        await asyncio.sleep(120)
        idle = (running.cpu() - cpu) / (time.monotonic() - at)
        rss = running.rss()
        # A change of one node causes a write of one Gateway.
        versions = {g["metadata"]["name"]: g["metadata"]["resourceVersion"] for g in await _all(client)}
        cpu, at = running.cpu(), time.monotonic()
        await client.merge(
            NODES, "edge-7-0", {"status": {"conditions": [{**READY, "status": "False"}]}}, subresource="status"
        )

        async def active() -> list[str]:
            return [e["nodeName"] for e in (await client.get(GATEWAYS, "region-7"))["status"]["activeEndpoints"]]

        await eventually(active, ["edge-7-1"])
        moved = time.monotonic() - at
        after = {g["metadata"]["name"]: g["metadata"]["resourceVersion"] for g in await _all(client)}
        changed = {name for name, version in after.items() if versions[name] != version}
        spent = running.cpu() - cpu
        print(
            f"{REGIONS} Gateways, {REGIONS * EACH} Nodes, a Peer each: {rss >> 20} MiB, idle {idle:.2%} of a core,"
            f" all written {took:.1f} s after the start, one role moved in {moved * 1000:.0f} ms ({spent:.3f} s CPU)"
        )
        assert changed == {"region-7"}
        assert rss <= MAX_RSS
        assert idle < MAX_IDLE


async def _all(client: Client) -> list[Object]:
    return [g async for page in client.list(GATEWAYS) for g in page.items]
