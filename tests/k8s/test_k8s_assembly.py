"""Assembly of API objects into a world."""

from __future__ import annotations

from typing import Any

from ravenvpn.k8s.assembly import Assembly, Feed, trimmed_json

KEY = "A" * 42 + "E="


def gateway(name: str, version: str = "1", *, nodes: tuple[str, ...] = (), port: Any = 4500) -> dict[str, Any]:
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": name, "resourceVersion": version, "managedFields": [{"manager": "x" * 1000}]},
        "spec": {"endpoints": [{"nodeName": f"{name}-1", "type": "tunnel", "port": port}]},
        "status": {"nodes": [{"nodeName": node, "privateIP": "", "subnets": []} for node in nodes]},
    }


def peer(name: str, version: str = "1", key: str = KEY) -> dict[str, Any]:
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {"publicKey": key},
        "status": {"sessions": {"up": 1}},
    }


def test_objects_are_added_changed_and_removed() -> None:
    assembly = Assembly("mesh")
    assembly.put(Feed.GATEWAYS, gateway("factory"))
    assembly.put(Feed.PEERS, peer("factory-1"))
    assert sorted(assembly.world.gateways) == ["factory"]
    assert sorted(assembly.world.peers) == ["factory-1"]

    assembly.put(Feed.GATEWAYS, gateway("factory", "2", port=4501))
    assert assembly.world.gateways["factory"].endpoints[0].port == 4501

    assembly.remove(Feed.GATEWAYS, "factory")
    assembly.remove(Feed.PEERS, "factory-1")
    assert not assembly.world.gateways
    assert not assembly.world.peers
    assert not assembly.objects


def test_a_change_of_a_peer_status_keeps_the_same_world_object() -> None:
    """An agent plans again only if the world is a different object."""
    assembly = Assembly()
    assembly.put(Feed.PEERS, peer("a"))
    world = assembly.world
    assembly.put(Feed.PEERS, {**peer("a", "2"), "status": {"sessions": {"up": 2}}})
    assert assembly.world is world


def test_a_malformed_object_is_a_problem_and_its_last_good_version_stays() -> None:
    assembly = Assembly()
    assembly.put(Feed.PEERS, peer("a"))
    assembly.put(Feed.PEERS, peer("a", "2", key="short"))

    assert [str(problem) for problem in assembly.problems] != []
    assert "Peer a" in str(assembly.problems[0])
    assert sorted(assembly.world.peers) == ["a"]
    assert assembly.resource_versions(Feed.PEERS) == {"a": "1"}, "so it is read again after a restart"

    assembly.put(Feed.PEERS, peer("a", "3"))
    assert assembly.problems == ()


def test_removing_a_malformed_object_removes_its_problem() -> None:
    assembly = Assembly()
    assembly.put(Feed.PEERS, peer("a", key="short"))
    assert assembly.problems
    assembly.remove(Feed.PEERS, "a")
    assert assembly.problems == ()


def test_hostile_objects_raise_nothing() -> None:
    assembly = Assembly()
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    for obj in (
        {},
        {"kind": "Gateway"},
        {"kind": 5, "metadata": None},
        {**gateway("a"), "spec": {"endpoints": deep}},
        {**gateway("f"), "spec": {"endpoints": [None]}},
        {**gateway("c"), "kind": "Peer"},
        {**gateway("d"), "metadata": {"name": "d", "labels": 4}},
        {**gateway("e"), "spec": {"endpoints": [{"nodeName": "x" * 100_000, "type": "tunnel"}]}},
    ):
        assembly.put(Feed.GATEWAYS, obj)
    assert not assembly.world.gateways
    assert not assembly.objects
    assert len(assembly.problems) >= 6
    assert all(len(str(problem)) < 1000 for problem in assembly.problems)
    # Unknown fields are ignored. A document nested too deeply for this Python is rejected. Neither case raises.
    assembly.put(Feed.GATEWAYS, {**gateway("b"), "spec": deep})


def test_a_peer_that_two_feeds_show_stays_until_neither_does() -> None:
    """A gateway of the own region becomes a plain node: only the selector of the own region still matches it."""
    assembly = Assembly()
    assembly.put(Feed.PEERS, peer("a"))
    assembly.put(Feed.REGION, peer("a"))
    world = assembly.world
    assembly.remove(Feed.PEERS, "a")
    assert assembly.world is world
    assembly.remove(Feed.REGION, "a")
    assert not assembly.world.peers


def test_a_removed_feed_removes_the_objects_that_only_it_showed() -> None:
    assembly = Assembly()
    assembly.put(Feed.PEERS, peer("gateway"))
    assembly.put(Feed.REGION, peer("gateway"))
    assembly.put(Feed.REGION, peer("plain"))
    assembly.remove_feed(Feed.REGION)
    assert sorted(assembly.world.peers) == ["gateway"]


def test_saved_objects_restore_the_same_world() -> None:
    assembly = Assembly("mesh")
    assembly.put(Feed.GATEWAYS, gateway("factory", "7", nodes=("factory-1", "factory-2")))
    assembly.put(Feed.PEERS, peer("factory-1", "8"))
    assembly.put(Feed.REGION, peer("factory-1", "8"))

    again = Assembly("mesh")
    again.restore(assembly.objects.values())

    assert again.world.gateways["factory"] == assembly.world.gateways["factory"]
    assert again.world.peers["factory-1"] == assembly.world.peers["factory-1"]
    assert again.resource_versions(Feed.GATEWAYS) == {"factory": "7"}
    assert again.resource_versions(Feed.REGION) == again.resource_versions(Feed.PEERS) == {"factory-1": "8"}
    assert again.regions_of("factory-2") == ["factory"]


def test_fields_that_are_not_read_are_not_saved() -> None:
    thing = peer("a")
    thing["metadata"] |= {
        "managedFields": [{"manager": "kubectl"}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "stays"},
    }
    kept = trimmed_json(thing).decode()
    assert "managedFields" not in kept
    assert "last-applied" not in kept
    assert "sessions" not in kept
    assert '"mine":"stays"' in kept
