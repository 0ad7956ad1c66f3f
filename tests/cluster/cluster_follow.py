"""Gateways and Peers for tests of the API client, and tasks that record what a watch or a source yields."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.cluster import ClusterSource
from ravenvpn.k8s.files import Snapshot
from ravenvpn.k8s.resource import GATEWAYS, PEERS, ApiError
from ravenvpn.k8s.watch import Reflector, WatchBatch
from ravenvpn.k8s.world_cache import WorldCache

KEY = "A" * 42 + "E="
PATIENCE = 45.0  # seconds; an idle machine needs far less


def gateway(name: str, *nodes: str, public_ip: str = "203.0.113.1") -> dict[str, Any]:
    endpoints = [{"nodeName": node, "type": "tunnel", "port": 4500, "publicIP": public_ip} for node in nodes[:1]]
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {"endpoints": endpoints},
    }


def gateway_status(name: str, *nodes: str) -> dict[str, Any]:
    infos = [{"nodeName": node, "privateIP": f"10.9.0.{i}", "subnets": []} for i, node in enumerate(nodes, 1)]
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": name},
        "status": {"nodes": infos},
    }


def peer(name: str, region: str = "", role: str = "") -> dict[str, Any]:
    labels = {"raven.openyurt.io/gateway": region, "ravenvpn.io/role": role}
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": name, "labels": {key: value for key, value in labels.items() if value}},
        "spec": {"publicKey": KEY},
    }


async def patient(ask: Callable[[], Any]) -> Any:
    """Await `ask()` and retry it while the server starts: a new definition answers 404 and 429 for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except ApiError as error:
            if time.monotonic() > deadline or error.status not in (0, 404, 429, 500, 503):
                raise
            await asyncio.sleep(0.05)


async def until(so: Callable[[], Any], what: str) -> None:
    """Wait until `so()` is true, or the result of awaiting it is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = so()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, f"not so within {PATIENCE} s: {what}"
        await asyncio.sleep(0.02)


async def put_gateway(client: Client, name: str, *nodes: str, **more: Any) -> None:
    await patient(lambda: client.apply(GATEWAYS, gateway(name, *nodes, **more), field_manager="scene"))
    await patient(
        lambda: client.apply(GATEWAYS, gateway_status(name, *nodes), field_manager="scene", subresource="status")
    )


async def put_peer(client: Client, *what: str) -> None:
    await patient(lambda: client.apply(PEERS, peer(*what), field_manager="scene"))


async def delete(client: Client, *names: str) -> None:
    for name in names:
        for resource in (GATEWAYS, PEERS):
            with contextlib.suppress(ApiError):
                await client.delete(resource, name)


class Follower:
    """Follow one collection in a task of its own. `there` holds the objects by name."""

    def __init__(self, reflector: Reflector) -> None:
        self.reflector = reflector
        self.batches: list[WatchBatch] = []
        self.there: dict[str, dict[str, Any]] = {}
        self.accepted_at: list[float] = []  # monotonic
        self._news = asyncio.Event()

    @property
    def connection(self) -> Any:
        return self.reflector.connection

    async def run(self) -> None:
        batches = self.reflector.follow()
        async with aclosing(batches):
            async for batch in batches:
                self.batches.append(batch)
                for thing in batch.changed:
                    self.there[thing["metadata"]["name"]] = thing
                for key in batch.deleted:
                    del self.there[key]
                self._news.set()

    async def until(self, so: Callable[[], bool], what: str = "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not so():
            if time.monotonic() > deadline:
                raise AssertionError(f"not so within {PATIENCE} s: {what} {self.connection} {sorted(self.there)}")
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 0.05)


@asynccontextmanager
async def following(reflector: Reflector) -> AsyncIterator[Follower]:
    follower = Follower(reflector)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Looker:
    """Record the snapshots of a source in a task of its own."""

    def __init__(self, source: ClusterSource) -> None:
        self.source = source
        self.snapshots: list[Snapshot] = []

    @property
    def gateways(self) -> list[str]:
        return sorted(self.snapshots[-1].world.gateways) if self.snapshots else []

    @property
    def peers(self) -> list[str]:
        return sorted(self.snapshots[-1].world.peers) if self.snapshots else []

    async def run(self) -> None:
        snapshots = self.source.snapshots()
        async with aclosing(snapshots):  # type: ignore[type-var]
            async for snapshot in snapshots:
                self.snapshots.append(snapshot)

    async def until(self, so: Callable[[], bool], what: str = "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not so():
            if time.monotonic() > deadline:
                raise AssertionError(f"not so: {what} {self.source.api} {self.gateways} {self.peers}")
            await asyncio.sleep(0.02)


@asynccontextmanager
async def looking(client: Client, node: str, file: Path, **more: Any) -> AsyncIterator[Looker]:
    looker = Looker(ClusterSource(client, node, WorldCache(file), **more))
    task = asyncio.create_task(looker.run())
    try:
        yield looker
    finally:
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(done[0], asyncio.CancelledError):
            raise AssertionError(f"the source ended: {done[0]!r}")
