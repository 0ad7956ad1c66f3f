"""Watches of a real API server that is killed, hangs, loses its history, or gets other certificates."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from cluster_follow import Follower, following, gateway, patient
from control_plane import ControlPlane

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import GATEWAYS, NAMESPACES, ApiError
from ravenvpn.k8s.watch import Reflector


@pytest.fixture
def plane(watched: ControlPlane) -> ControlPlane:
    return watched


async def put(client: Client, *names: str) -> None:
    for name in names:
        await patient(lambda name=name: client.apply(GATEWAYS, gateway(name), field_manager="scene"))


async def delete(client: Client, *names: str) -> None:
    for name in names:
        await patient(lambda name=name: client.delete(GATEWAYS, name))


async def settled(client: Client, follower: Follower) -> None:
    """Delete all objects and wait until the follower has observed it."""
    for name in list(follower.there):
        await delete(client, name)
    await follower.until(lambda: not follower.there, "all is deleted")


def told(follower: Follower) -> list[str]:
    """Return the names of changed objects and, with a minus, of deleted ones, in order, since the last call."""
    said = [
        name
        for batch in follower.batches
        for name in (*(thing["metadata"]["name"] for thing in batch.changed), *(f"-{key}" for key in batch.deleted))
    ]
    follower.batches.clear()
    return said


async def test_after_a_restart_of_the_server_only_differences_are_yielded(plane: ControlPlane) -> None:
    """A server's watch cache starts empty, so a client may have to list again."""
    async with (
        Client.connect(str(plane.admin)) as client,
        following(Reflector(client, GATEWAYS)) as follower,
    ):
        await put(client, "a", "b")
        await follower.until(lambda: {"a", "b"} <= set(follower.there), "a and b")
        told(follower)
        plane.kill()
        await follower.until(lambda: follower.connection.connected_since is None, "lost")
        assert follower.connection.lost_since is not None
        assert set(follower.there) == {"a", "b"}, "what is known stays known"
        assert "gateways" in follower.connection.error

        await asyncio.to_thread(plane.start)
        await delete(client, "a")
        await put(client, "c")
        await asyncio.to_thread(plane.compact)
        await follower.until(lambda: set(follower.there) == {"b", "c"}, "b and c")
        await follower.until(lambda: follower.connection.connected_since is not None, "connected")

        assert sorted(told(follower)) == ["-a", "c"]
        assert follower.connection.error == ""
        await settled(client, follower)


async def refusal(client: Client, version: str) -> int:
    """Return the status with which a watch from `version` is refused, or 0 if it is accepted. 429: still starting."""
    deadline = time.monotonic() + 30
    while True:
        try:
            async for events in client.watch(GATEWAYS, resource_version=version, timeout=10):
                if events:
                    return 0
        except ApiError as error:
            if error.status != 429 or time.monotonic() > deadline:
                return error.status
        await asyncio.sleep(0.05)


async def test_an_expired_version_is_410_and_the_list_is_compared_with_what_is_known(plane: ControlPlane) -> None:
    """The client knows b and x from the first version. Then x is deleted, b stays unchanged, and c is created."""
    async with Client.connect(str(plane.admin)) as client:
        await put(client, "b", "c")
        await asyncio.to_thread(plane.compact)
        pages = [page async for page in client.list(GATEWAYS)]
        versions = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in pages[0].items}
        plane.kill()  # the old watch cache reaches back to before the compaction; a new one does not
        await asyncio.to_thread(plane.start)

        assert await refusal(client, "1") == 410

        known = {"b": versions["b"], "x": "1"}
        async with following(Reflector(client, GATEWAYS, version="1", known=known)) as follower:
            follower.there = {"b": {}, "x": {}}
            await follower.until(lambda: set(follower.there) == {"b", "c"}, "compared")
            told = [thing["metadata"]["name"] for batch in follower.batches for thing in batch.changed]
            assert told == ["c"], "b is as it was, and nobody is told of it"
            assert [key for batch in follower.batches for key in batch.deleted] == ["x"]
            assert follower.connection.lists == 1
            follower.there["b"] = {}
            await settled(client, follower)


async def test_a_hung_server_is_detected_and_the_watch_resumes(plane: ControlPlane) -> None:
    """SIGSTOP: connections stay open and the kernel acknowledges, but no byte arrives."""
    async with (
        Client.connect(str(plane.admin)) as client,
        following(Reflector(client, GATEWAYS, silence=3.0)) as follower,
    ):
        await put(client, "a")
        await follower.until(lambda: "a" in follower.there, "a")
        await follower.until(lambda: follower.connection.connected_since is not None, "watching")
        with plane.hung():
            began = time.monotonic()
            await follower.until(lambda: follower.connection.connected_since is None, "noticed")
            assert time.monotonic() - began < 10.0
            assert "no answer in time" in follower.connection.error
        await put(client, "b")
        await follower.until(lambda: "b" in follower.there, "b")
        assert follower.connection.lists == 1
        await settled(client, follower)


async def test_a_replaced_serving_certificate_and_ca_are_accepted_with_the_new_kubeconfig(
    plane: ControlPlane,
) -> None:
    """All identities are new, and the kubeconfig is replaced while the client runs.

    The delays between attempts are short here; other tests measure them.
    """
    async with (
        Client.connect(str(plane.admin)) as client,
        following(Reflector(client, GATEWAYS, draw=lambda: 0.1)) as follower,
    ):
        await put(client, "a")
        await follower.until(lambda: "a" in follower.there, "a")

        plane.kill()
        plane.forget_serving_certificate()
        await asyncio.to_thread(plane.start)
        await put(client, "b")
        await follower.until(lambda: "b" in follower.there, "b, over another certificate of the same CA")

        plane.kill()
        plane.forget_serving_certificate(new_ca=True)
        plane.admin.unlink()
        await asyncio.to_thread(plane.start)
        await put(client, "c")
        await follower.until(lambda: "c" in follower.there, "c, over another CA")
        assert set(follower.there) == {"a", "b", "c"}
        await settled(client, follower)


async def test_a_client_with_only_the_old_ca_refuses_the_server(plane: ControlPlane, tmp_path: Path) -> None:
    stale = tmp_path / "stale.kubeconfig"
    stale.write_bytes(plane.admin.read_bytes())
    plane.kill()
    plane.forget_serving_certificate(new_ca=True)
    plane.admin.unlink()
    await asyncio.to_thread(plane.start)
    async with Client.connect(str(stale)) as client:
        with pytest.raises(ApiError) as refused:
            await client.get(NAMESPACES, "kube-system")
        assert refused.value.status == 0
        assert "certificate" in str(refused.value)
        # The operator replaces the file; no restart is needed.
        stale.write_bytes(plane.admin.read_bytes())
        assert (await client.get(NAMESPACES, "kube-system"))["metadata"]["name"] == "kube-system"


async def test_a_pods_token_and_ca_rotate(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet replaces the file under the same name. The old token is invalid by then."""
    account = "rotating"
    plane.kubectl("create", "serviceaccount", account, "-n", "kube-system")
    plane.kubectl("create", "clusterrolebinding", account, "--clusterrole=cluster-admin",
                  f"--serviceaccount=kube-system:{account}")  # fmt: skip
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("e30.e30.e30")
    (folder / "ca.crt").write_bytes(plane.ca.read_bytes())
    host, _, port = plane.url.removeprefix("https://").rpartition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr("ravenvpn.k8s.client.SERVICE_ACCOUNT", folder)

    async with Client.connect() as client:
        with pytest.raises(ApiError) as refused:
            await client.get(NAMESPACES, "kube-system")
        assert refused.value.status == 401

        fresh = folder / "..fresh"
        fresh.write_text(plane.token(account) + "\n")
        os.replace(fresh, folder / "token")
        assert (await client.get(NAMESPACES, "kube-system"))["metadata"]["name"] == "kube-system"


async def test_temporary_files_with_keys_of_a_kubeconfig_are_removed(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library writes keys to temporary files in order to load them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert b"client-key-data" in plane.admin.read_bytes()
    async with Client.connect(str(plane.admin)) as client:
        assert (await client.version()).startswith("v")
        assert os.listdir(tmp_path) == []


async def test_a_hundred_watches_are_accepted_again_spread_over_seconds(plane: ControlPlane) -> None:
    """All watches lose the server at the same instant."""
    async with Client.connect(str(plane.admin)) as client:
        returned: list[float] = []

        async def follow() -> None:
            def changed() -> None:
                if reflector.connection.connected_since is not None:
                    returned.append(time.monotonic())

            reflector = Reflector(client, GATEWAYS, on_connection=changed)
            async for _ in reflector.follow():
                pass

        tasks = [asyncio.create_task(follow()) for _ in range(100)]
        try:
            await until_many(returned, 100)
            for _ in range(3):  # attempts: a server without CPU time answers attempts of different times all at once
                returned.clear()
                plane.kill()
                await asyncio.to_thread(plane.start)
                await until_many(returned, 100)
                at_once = max(sum(at <= one < at + 0.1 for one in returned) for at in returned)
                if max(returned) - min(returned) > 1.0 and at_once <= 35:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    raise AssertionError(f"{at_once} of 100 came back within a tenth of a second")


async def until_many(found: list[float], count: int) -> None:
    deadline = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} of {count} are there"
        await asyncio.sleep(0.02)
