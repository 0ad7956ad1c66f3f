"""A new cluster at the address of the old one, with certificates that are still valid."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from cluster_follow import looking, put_gateway, put_peer
from control_plane import ControlPlane, define_kinds

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import NAMESPACES


def replace(plane: ControlPlane) -> None:
    """Replace the storage. Address, CA and identities stay."""
    for program in ("kube-apiserver", "etcd"):
        plane.kill(program)
    shutil.rmtree(plane.folder / "etcd")
    plane.start()


async def uid(client: Client) -> str:
    return str((await client.get(NAMESPACES, "kube-system"))["metadata"]["uid"])


async def test_the_world_of_a_replaced_cluster_stays_in_force_until_that_of_the_new_one_is_complete(
    own_cluster: ControlPlane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    define_kinds(own_cluster)
    file = tmp_path / "world"
    async with (
        Client.connect(str(own_cluster.admin)) as client,
        looking(client, "f1", file, draw=lambda: 0.02) as looker,
    ):
        await put_gateway(client, "factory", "f1", "f2")
        await put_peer(client, "f1", "factory", "gateway")
        await looker.until(lambda: (looker.gateways, looker.peers) == (["factory"], ["f1"]), "read")
        before = await uid(client)
        assert (looker.source.api.cluster, looker.source.api.world_of) == (before, before)

        own_cluster.kill()
        await looker.until(lambda: looker.source.api.connected_since is None, "lost")
        await asyncio.to_thread(own_cluster.start)
        await looker.until(lambda: looker.source.api.connected_since is not None, "there again")
        assert "cluster" not in caplog.text, "a server that restarts is still the same cluster"

        await asyncio.to_thread(replace, own_cluster)
        await looker.until(lambda: looker.source.api.cluster not in ("", before), "noticed")
        after = await uid(client)
        assert (looker.source.api.cluster, looker.source.api.world_of) == (after, before)
        assert (
            f"the API server belongs to cluster {after}; the world of cluster {before} stays in force" in caplog.text
        )
        looker.source.reload()  # reload by an operator
        count = len(looker.snapshots)
        await looker.until(lambda: len(looker.snapshots) > count, "answered")

        # Objects are created in an order in which a mixture of both worlds would show.
        await asyncio.to_thread(define_kinds, own_cluster)
        await put_peer(client, "h1", "harbour", "gateway")
        await put_gateway(client, "harbour", "h1", "f1")
        await looker.until(lambda: looker.gateways == ["harbour"], "the new one's")
        await looker.until(lambda: looker.peers == ["h1"], "with its Peer")

        assert looker.source.api.world_of == after
        assert f"the world of cluster {after} replaces that of {before}" in caplog.text
        theirs = {before: ({"factory"}, {"f1"}), after: ({"harbour"}, {"h1"})}
        for world in (snapshot.world for snapshot in looker.snapshots):
            gateways, peers = theirs[world.mesh]
            assert gateways >= set(world.gateways), "never a mixture"
            assert peers >= set(world.peers), "never a mixture"
    head = json.loads(file.read_bytes().partition(b"\n")[0])
    assert (head["cluster"], head["mesh"]) == (after, after)
