"""Public keys for upstream's WireGuard agents, in the place where those look."""

from __future__ import annotations

from controller_world import KEY, OTHER_KEY, Cluster, gateway, node, peer, tunnel

from ravenvpn.k8s.controller import keys
from ravenvpn.k8s.controller.decide import Rights
from ravenvpn.k8s.controller.decode import ADDED


def test_a_peers_key_is_missing_until_the_spec_says_it() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("cloud-1")]), node("cloud-1", "cloud"), peer("cloud-1", "cloud"))
    assert cluster.decide("cloud").keys == (("cloud-1", KEY),)
    said = gateway("cloud", [tunnel("cloud-1", config={"publicKey": KEY})], version=2)
    cluster.put(said)
    assert cluster.decide("cloud").keys == ()
    cluster.put(peer("cloud-1", "cloud", OTHER_KEY))
    assert cluster.decide("cloud").keys == (("cloud-1", OTHER_KEY),)


def test_the_key_of_upstreams_own_agent_is_none_of_ours() -> None:
    cluster = Cluster(
        gateway("cloud", [tunnel("cloud-1", config={"publicKey": OTHER_KEY}), tunnel("cloud-2")]),
        node("cloud-1", "cloud"),
        node("cloud-2", "cloud"),
        peer("cloud-2", "cloud", KEY),
    )
    assert cluster.decide("cloud").keys == (("cloud-2", KEY),)


def test_a_peer_of_a_node_in_another_region_writes_nothing_here() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("edge-1")]), node("edge-1", "factory"), peer("edge-1", "factory"))
    assert cluster.decide("cloud").keys == ()


def test_keys_are_published_though_the_election_is_anothers() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("cloud-1")]), node("cloud-1", "cloud"), peer("cloud-1", "cloud"))
    assert cluster.decide("cloud", Rights(elects=False, added=ADDED, keys=True)).keys == (("cloud-1", KEY),)
    assert cluster.decide("cloud", Rights(elects=True, added=ADDED, keys=False)).keys == ()


def test_the_patch_keeps_everything_else_and_holds_to_the_version_it_was_made_of() -> None:
    document = gateway(
        "cloud",
        [
            tunnel("cloud-1", port=4500, config={"theirs": "x"}, novelty=7),
            {"nodeName": "cloud-1", "type": "proxy"},
            tunnel("cloud-2", config={"publicKey": OTHER_KEY}),
        ],
        version=12,
    )
    assert keys.patch(document, {"cloud-1": KEY}) == {
        "metadata": {"resourceVersion": "12"},
        "spec": {
            "endpoints": [
                {
                    "nodeName": "cloud-1",
                    "type": "tunnel",
                    "port": 4500,
                    "config": {"theirs": "x", "publicKey": KEY},
                    "novelty": 7,
                },
                {"nodeName": "cloud-1", "type": "proxy"},
                {"nodeName": "cloud-2", "type": "tunnel", "config": {"publicKey": OTHER_KEY}},
            ]
        },
    }
    assert keys.patch(document, {"cloud-2": OTHER_KEY}) is None
    assert "publicKey" not in document["spec"]["endpoints"][0]["config"]


def test_a_key_that_somebody_overwrites_again_and_again_is_left_to_them() -> None:
    """Upstream's agent on the same node writes its own whenever it sees another: five tries in ten minutes."""
    quarrels = keys.Quarrels()
    assert [quarrels.allow("cloud", "cloud-1", float(t)) for t in range(8)] == [True] * 5 + [False] * 3
    assert quarrels.allow("cloud", "cloud-2", 8.0)
    assert not quarrels.allow("cloud", "cloud-1", 599.0)
    assert quarrels.allow("cloud", "cloud-1", 601.0)
