"""The world from a real API server, the saved world, and the agent's own Peer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_follow import KEY, delete, looking, patient, peer, put_gateway, put_peer, until
from control_plane import ControlPlane, define_kinds

from ravenvpn.k8s.assembly import Feed
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.peer_outbox import PeerContent, PeerStatusCondition, PeerStatusReport
from ravenvpn.k8s.peer_writer import FIELD_MANAGER, PeerWriter
from ravenvpn.k8s.resource import GATEWAYS, NAMESPACES, PEERS
from ravenvpn.k8s.world_cache import WorldCache
from ravenvpn.mesh.model import PeerObject


@pytest.fixture
async def client(watched: ControlPlane) -> AsyncIterator[Client]:
    async with Client.connect(str(watched.admin)) as client:
        await clear(client)
        yield client
        await clear(client)


async def clear(client: Client) -> None:
    for resource in (GATEWAYS, PEERS):
        async for page in client.list(resource):
            await delete(client, *(item["metadata"]["name"] for item in page.items))


async def test_the_world_is_read_watched_and_named_by_the_uid_of_the_cluster(client: Client, tmp_path: Path) -> None:
    await put_gateway(client, "factory", "factory-1", "factory-2")
    await put_peer(client, "factory-1", "factory", "gateway")
    async with looking(client, "factory-2", tmp_path / "world") as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "read")
        assert looker.peers == ["factory-1"]
        uid = (await client.get(NAMESPACES, "kube-system"))["metadata"]["uid"]
        assert looker.snapshots[-1].world.mesh == uid

        await put_gateway(client, "harbour", "harbour-1")
        await looker.until(lambda: looker.gateways == ["factory", "harbour"], "followed")
        await delete(client, "harbour")
        await looker.until(lambda: looker.gateways == ["factory"], "gone")


async def test_peers_are_those_of_all_gateways_and_of_our_region(client: Client, tmp_path: Path) -> None:
    await put_gateway(client, "factory", "f1", "f2", "f3")
    await put_gateway(client, "harbour", "h1", "h2")
    for name, region, role in (
        ("f1", "factory", "gateway"),
        ("f2", "factory", "plain"),
        ("h1", "harbour", "gateway"),
        ("h2", "harbour", "plain"),
        ("router", "", ""),  # created by an operator, without labels
        ("stray", "", "none"),
    ):
        await put_peer(client, name, region, role)
    async with looking(client, "f3", tmp_path / "world") as looker:
        await looker.until(lambda: looker.peers == ["f1", "f2", "h1", "router"], "selected")

        # The own node moves into the other region.
        await put_gateway(client, "factory", "f1", "f2")
        await put_gateway(client, "harbour", "h1", "h2", "f3")
        await looker.until(lambda: looker.peers == ["f1", "h1", "h2", "router"], "in the other region")

        # A plain node of the own region becomes a gateway, and a gateway becomes plain: neither Peer disappears
        # meanwhile.
        count = len(looker.snapshots)
        await put_peer(client, "h2", "harbour", "gateway")
        await put_peer(client, "h1", "harbour", "plain")
        await put_peer(client, "last", "", "")
        await looker.until(lambda: "last" in looker.peers, "the last change")
        assert all({"h1", "h2"} <= set(snapshot.world.peers) for snapshot in looker.snapshots[count:])


async def test_a_malformed_object_is_reported_and_its_last_good_version_stays(client: Client, tmp_path: Path) -> None:
    """The API server accepts every object that its schema allows."""
    await put_gateway(client, "factory", "f1", public_ip="203.0.113.7")
    async with looking(client, "f1", tmp_path / "world") as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "read")
        await put_gateway(client, "factory", "f1", public_ip="999.0.113.7")
        await looker.until(lambda: bool(looker.snapshots[-1].problems), "told")
        last = looker.snapshots[-1]
        assert "Gateway factory" in str(last.problems[0])
        assert "999.0.113.7" in str(last.problems[0])
        assert last.world.gateways["factory"].endpoints[0].public_ip == "203.0.113.7"
        await put_gateway(client, "factory", "f1", public_ip="203.0.113.8")
        await looker.until(lambda: not looker.snapshots[-1].problems, "mended")
        assert looker.snapshots[-1].world.gateways["factory"].endpoints[0].public_ip == "203.0.113.8"


async def test_a_second_start_resumes_the_watches_of_the_first(client: Client, tmp_path: Path) -> None:
    """It sends no list and misses no change."""
    await put_gateway(client, "factory", "f1")
    await put_peer(client, "f1", "factory", "gateway")
    async with looking(client, "f1", tmp_path / "world") as looker:
        await looker.until(lambda: looker.peers == ["f1"], "read")
    await put_peer(client, "f2", "factory", "plain")

    async with looking(client, "f1", tmp_path / "world") as looker:
        await looker.until(lambda: looker.peers == ["f1", "f2"], "what came meanwhile")
        assert sorted(looker.snapshots[0].world.peers) == ["f1"], "the saved world comes first"
        await looker.until(lambda: looker.source.api.saved_at is None, "the server's word counts")
        assert looker.source.api.lists == 0
        assert looker.source.api.watches == 3


async def test_the_last_change_is_saved_when_the_agent_ends(client: Client, tmp_path: Path) -> None:
    """The agent is stopped within the second before it saves a change."""
    await put_gateway(client, "factory", "f1")
    await put_peer(client, "f1", "factory", "gateway")
    async with looking(client, "f1", tmp_path / "world") as looker:
        await looker.until(lambda: looker.peers == ["f1"], "read")
        await looker.until((tmp_path / "world").exists, "saved")
        await put_gateway(client, "harbour", "h1")
        await looker.until(lambda: looker.gateways == ["factory", "harbour"], "followed")
    saved = WorldCache(tmp_path / "world").load()
    assert saved is not None
    assert {"factory", "harbour"} <= {json.loads(kept.document)["metadata"]["name"] for kept in saved.objects}
    assert saved.versions.keys() == set(Feed), "so that the next start lists nothing"


async def test_without_the_server_the_saved_world_is_in_force_at_once(
    client: Client, watched: ControlPlane, tmp_path: Path
) -> None:
    await put_gateway(client, "factory", "f1")
    async with looking(client, "f1", tmp_path / "world") as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "read")
    away = tmp_path / "away.kubeconfig"
    away.write_text(watched.admin.read_text().replace(watched.url, "https://127.0.0.1:1"))

    async with (
        Client.connect(str(away)) as nobody,
        looking(nobody, "f1", tmp_path / "world") as looker,
    ):
        await asyncio.wait_for(looker.until(lambda: looker.gateways == ["factory"], "saved"), 2.0)
        await looker.until(lambda: bool(looker.source.api.error), "told")
        api = looker.source.api
        assert api.connected_since is None
        assert api.saved_at is not None
        assert "127.0.0.1:1" in api.error


@pytest.mark.parametrize("damage", ["truncated", "changed", "newer"])
async def test_a_damaged_saved_world_is_renamed_and_not_used(
    client: Client, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await put_gateway(client, "factory", "f1")
    file = tmp_path / "world"
    async with looking(client, "f1", file) as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "read")
    content = file.read_bytes()
    file.write_bytes(
        {
            "truncated": content[:-30],
            "changed": content.replace(b"factory", b"faktory"),
            "newer": content.replace(b'"ravenvpn_world":1', b'"ravenvpn_world":9'),
        }[damage]
    )

    async with looking(client, "f1", file) as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "from the server")
        assert looker.source.api.lists == 3, "nothing of it was believed"
    assert "the saved world is not used" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["world", f"world.{'newer' if damage == 'newer' else 'corrupt'}"]


async def test_the_saved_world_of_another_cluster_is_replaced_once_ours_is_known(
    client: Client, tmp_path: Path
) -> None:
    """The kubeconfig points to another cluster than before."""
    await put_gateway(client, "factory", "f1")
    file = tmp_path / "world"
    async with looking(client, "f1", file) as looker:
        await looker.until(lambda: looker.gateways == ["factory"], "read")
    uid = (await client.get(NAMESPACES, "kube-system"))["metadata"]["uid"]
    other = json.dumps(uid).replace(uid[:4], "0000").encode()
    file.write_bytes(file.read_bytes().replace(json.dumps(uid).encode(), other))
    await delete(client, "factory")
    await put_gateway(client, "harbour", "f1")

    async with looking(client, "f1", file) as looker:
        await looker.until(lambda: looker.gateways == ["harbour"], "ours")
        first = looker.snapshots[0].world
        assert (sorted(first.gateways), first.mesh[:4]) == (["factory"], "0000")
        assert looker.snapshots[-1].world.mesh == uid
        assert all(len(snapshot.world.gateways) == 1 for snapshot in looker.snapshots), "never a mixture"


async def test_a_full_disk_does_not_stop_the_source(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    async with looking(client, "f1", folder / "world") as looker:
        await put_gateway(client, "factory", "f1")
        await looker.until(lambda: looker.gateways == ["factory"], "read")
        shutil.rmtree(folder)
        await put_gateway(client, "harbour", "h1")
        await looker.until(lambda: looker.gateways == ["factory", "harbour"], "followed")


# The node's own Peer.

SELF = PeerContent(PeerObject("f1", b"\1" * 32, listen_port=4500), "factory", "gateway")


@contextlib.asynccontextmanager
async def announcing(client: Client) -> AsyncIterator[PeerWriter]:
    writer = PeerWriter(client)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def standing(client: Client, name: str = "f1") -> dict:  # type: ignore[type-arg]
    return await patient(lambda: client.get(PEERS, name))


async def has_status(client: Client) -> bool:
    return "status" in await standing(client)


async def another(client: Client, part: str, field: str, than: str) -> bool:
    return (await standing(client))[part][field] != than


async def test_a_peer_is_written_with_its_labels_and_its_status(client: Client) -> None:
    async with announcing(client) as writer:
        writer.set_content(SELF)
        thing = await standing(client)
        assert thing["metadata"]["labels"] == {
            "raven.openyurt.io/gateway": "factory",
            "ravenvpn.io/role": "gateway",
        }
        assert thing["spec"]["listenPort"] == 4500
        assert {entry["manager"] for entry in thing["metadata"]["managedFields"]} == {FIELD_MANAGER}

        writer.set_status(
            PeerStatusReport("1.0", "native", 4, 3, (PeerStatusCondition("Ready", True, "DataPathWorks"),))
        )
        await until(lambda: has_status(client), "a status")
        thing = await standing(client)
        assert thing["status"]["sessions"] == {"wanted": 4, "up": 3}
        assert [(c["type"], c["status"]) for c in thing["status"]["conditions"]] == [("Ready", "True")]


async def test_a_peer_that_is_deleted_or_changed_is_written_again(client: Client, tmp_path: Path) -> None:
    await put_gateway(client, "factory", "f1")
    async with announcing(client) as writer, looking(client, "f1", tmp_path / "world") as looker:

        async def tell() -> None:
            while True:
                if looker.snapshots:
                    writer.observe(looker.snapshots[-1].world.peers.get("f1"))
                await asyncio.sleep(0.02)

        telling = asyncio.create_task(tell())
        try:
            writer.set_content(SELF)
            await looker.until(lambda: looker.peers == ["f1"], "written")
            first = (await standing(client))["metadata"]["uid"]
            await asyncio.sleep(0.1)

            await client.delete(PEERS, "f1")
            await until(lambda: another(client, "metadata", "uid", first), "another one")

            await looker.until(lambda: looker.peers == ["f1"], "written again")
            await asyncio.sleep(0.1)
            await client.merge(PEERS, "f1", {"spec": {"publicKey": KEY}})
            await until(lambda: another(client, "spec", "publicKey", KEY), "our own key again")
        finally:
            telling.cancel()


async def test_a_refused_peer_is_reported_and_written_again_later(client: Client, watched: ControlPlane) -> None:
    """The account gets its permission later; then the Peer is written."""
    stranger = watched.kubeconfig("stranger", "/CN=stranger")
    async with Client.connect(str(stranger)) as forbidden, announcing(forbidden) as writer:
        writer.set_content(SELF)
        await until(lambda: writer.error, "refused")
        assert "forbidden" in writer.error
        assert not writer.is_published
        binding = ("clusterrolebinding", "stranger", "--clusterrole=cluster-admin", "--user=stranger")
        watched.kubectl("create", *binding)
        try:
            await until(lambda: writer.is_published, "written")
            assert writer.error == ""
        finally:
            watched.kubectl("delete", *binding[:2])


async def test_a_peer_that_the_schema_refuses_does_not_stop_the_writer(client: Client) -> None:
    wrong = PeerContent(PeerObject("f1", b"", listen_port=4500), "factory", "gateway")
    async with announcing(client) as writer:
        writer.set_content(wrong)
        await until(lambda: writer.error, "refused")
        assert "publicKey" in writer.error
        writer.set_content(SELF)
        assert (await standing(client))["metadata"]["name"] == "f1"


async def test_peers_work_with_each_supported_version_of_kubernetes(any_cluster: ControlPlane) -> None:
    """Server-side apply of Peer and status, label selectors, list and watch."""
    define_kinds(any_cluster)
    async with Client.connect(str(any_cluster.admin)) as client:
        assert await client.served("ravenvpn.io") == ("v1alpha1",)
        assert await client.served("nobody.example") == ()
        await put_peer(client, "old-1", "factory", "plain")
        seen = [page async for page in client.list(PEERS, labels="ravenvpn.io/role notin (none)")]
        assert "old-1" in [item["metadata"]["name"] for page in seen for item in page.items]
        status = {**peer("old-1"), "status": {"sessions": {"up": 1, "wanted": 1}}}
        del status["spec"]
        made = await client.apply(PEERS, status, field_manager=FIELD_MANAGER, subresource="status")
        assert made["status"]["sessions"]["up"] == 1
        version = made["metadata"]["resourceVersion"]
        await client.delete(PEERS, "old-1")
        async for events in client.watch(PEERS, resource_version=version, timeout=20):
            deleted = [event.object["metadata"]["name"] for event in events if event.type == "DELETED"]
            if deleted:
                assert deleted == ["old-1"]
                break
