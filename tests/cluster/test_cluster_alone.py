"""One node on its own: API server away at start, damaged saved world, missing key, duplicate key."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from agent.agent_mesh import Measured
from cluster_mesh import PEERS, Mesh
from cluster_pairs import Pairs

from ravenvpn.errors import AgentUnreachableError
from ravenvpn.k8s.world_saver import SAVE_AFTER
from ravenvpn.lab.agents import STATE, wait_until
from ravenvpn.lab.host import LabNode

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]

BAR = 3.0  # seconds from the start of the process to traffic
CHANCES = 3  # attempts, since the machine may be busy


@contextmanager
def without_api(mesh: Mesh) -> Iterator[None]:
    mesh.cluster.plane.kill()
    try:
        yield
    finally:
        mesh.cluster.plane.start()
        for node in mesh.lab.nodes:
            mesh.agents.process(node).send_signal(signal.SIGHUP)  # reconnect now instead of after up to 30 s
        mesh.wait_until_connected()


def wait_until_saved(node: LabNode) -> None:
    """Wait until the saved world has not changed for a while, so that no write is pending."""
    file = node.path(f"{STATE}/world")
    wait_until(lambda: file.exists() and time.time() - file.stat().st_mtime > 2 * SAVE_AFTER, "it is saved", 40)


def across(mesh: Mesh, node: LabNode) -> Pairs:
    """Return the pairs between the node's pods and the pods of one node in each other region."""
    others = [mesh.node(name) for name in ("cloud-1", "cloud-3", "factory-2", "ship-2")]
    chosen = [node, *(other for other in others if other.region is not node.region)]
    return Pairs([pod for one in chosen for pod in one.pods], across=True)


@pytest.mark.parametrize("name", ["factory-1", "factory-3"])  # a gateway, and a plain node
def test_started_without_the_api_server_it_carries_traffic_within_three_seconds(
    mesh: Mesh, measured: Measured, name: str
) -> None:
    node = mesh.node(name)
    taken: list[float] = []
    wait_until_saved(node)
    with without_api(mesh), across(mesh, node) as pairs:
        pairs.until_complete(20)
        while len(taken) < CHANCES and min(taken, default=BAR + 1) > BAR:
            mesh.agents.end(node, signal.SIGKILL)
            mesh.agents.cli(node, "cleanup")  # the state after a boot
            begin = time.monotonic()
            mesh.start_agent(node)
            try:
                taken.append(pairs.until_complete(30, since=begin))
            except AssertionError as error:
                said = mesh.agents.cli(node, "peers"), mesh.agents.log(node, 40)
                raise AssertionError("\n".join((str(error), *said))) from error
            measured(f"{name} started to traffic, s", taken[-1])
        api = mesh.status(node).api
        assert api is not None
        assert api.connected_since is None
        assert api.saved_at is not None
        assert "the world saved" in mesh.agents.log(node, 100)
        wait_until(lambda: "has been away" in str(mesh.status(node).reasons), "it says so", 20)
    wait_until(lambda: mesh.status(node).api.saved_at is None, "by the server's word again", 40)  # type: ignore[union-attr]
    assert min(taken) <= BAR


def test_a_truncated_world_is_reported_and_the_server_is_used(mesh: Mesh) -> None:
    node = mesh.node("factory-3")
    mesh.agents.end(node)
    file = node.path(f"{STATE}/world")
    file.write_bytes(file.read_bytes()[:-100])
    mesh.start_agent(node)
    with across(mesh, node) as pairs:
        pairs.until_complete(30)
    why = "the saved world is not used: it is truncated or changed"
    wait_until(lambda: why in mesh.agents.log(node, 100), "it says so", 30)
    assert node.path(f"{STATE}/world.corrupt").exists()
    wait_until(file.exists, "it is written anew", 20)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["factory-1", "factory-3"])
def test_a_node_without_its_key_makes_another_and_the_mesh_uses_it(mesh: Mesh, measured: Measured, name: str) -> None:
    node = mesh.node(name)
    before = key_of(mesh, name)
    with across(mesh, node) as pairs:
        pairs.until_complete(20)
        mesh.agents.end(node)
        node.path(f"{STATE}/private.key").unlink()
        begin = time.monotonic()
        mesh.start_agent(node)
        wait_until(lambda: key_of(mesh, name) != before, "the Peer says another", 30)
        measured(f"{name} another key to traffic, s", pairs.until_complete(30, since=begin))
    assert mesh.status(node).public_key == key_of(mesh, name)


def test_two_nodes_with_one_key_are_reported_by_both(mesh: Mesh) -> None:
    """Two nodes have the same key, as after cloning a disk.

    The older Peer keeps the key; the other node reports the remedy.
    """
    first, second = mesh.node("ship-2"), mesh.node("ship-3")
    own = second.read(f"{STATE}/private.key")
    mesh.agents.end(second)
    second.write(f"{STATE}/private.key", first.read(f"{STATE}/private.key"), mode=0o600)
    mesh.start_agent(second)
    try:
        wait_until(lambda: conflicts(mesh, second) != [], "the clone sees it", 30)
        assert "one public key in two Peers" in conflicts(mesh, second)[0]
        for node in (first, second):
            wait_until(lambda node=node: condition(mesh, node.name, "KeyIsOurs") == "False", "said in both Peers", 60)
    finally:
        mesh.agents.end(second)
        second.write(f"{STATE}/private.key", own, mode=0o600)
        mesh.start_agent(second)
    for node in (first, second):
        wait_until(lambda node=node: condition(mesh, node.name, "KeyIsOurs") == "True", "and mended", 60)


def test_a_deleted_peer_is_written_again(mesh: Mesh) -> None:
    before = mesh.cluster.api.get(f"{PEERS}/cloud-2")
    mesh.cluster.api.delete(f"{PEERS}/cloud-2")
    wait_until(lambda: peer(mesh, "cloud-2").get("spec") == before["spec"], "written again", 20)
    assert peer(mesh, "cloud-2")["metadata"]["labels"] == before["metadata"]["labels"]


def peer(mesh: Mesh, name: str) -> dict:  # type: ignore[type-arg]
    items = mesh.cluster.api.get(PEERS)["items"]
    return next((item for item in items if item["metadata"]["name"] == name), {})


def key_of(mesh: Mesh, name: str) -> str:
    return str(peer(mesh, name)["spec"]["publicKey"])


def condition(mesh: Mesh, name: str, kind: str) -> str:
    conditions = peer(mesh, name).get("status", {}).get("conditions") or ()
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")


def conflicts(mesh: Mesh, node: LabNode) -> list[str]:
    with contextlib.suppress(AgentUnreachableError):
        return [problem.message for problem in mesh.status(node).problems if problem.kind == "conflict"]
    return []
