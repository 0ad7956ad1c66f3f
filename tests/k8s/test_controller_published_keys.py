"""Public keys in spec.endpoints[].config.publicKey, where OpenYurt's WireGuard agents read them."""

from __future__ import annotations

from controller_world import KEY, OTHER_KEY, Cluster, gateway, node, peer, tunnel

from ravenvpn.k8s.controller.decide import WriteScope
from ravenvpn.k8s.controller.decode import EXTRA_FIELDS
from ravenvpn.k8s.controller.published_keys import KeyWriteLimit, key_patch


def test_the_key_of_a_peer_is_missing_until_the_spec_has_it() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("cloud-1")]), node("cloud-1", "cloud"), peer("cloud-1", "cloud"))
    assert cluster.decide("cloud").keys == (("cloud-1", KEY),)
    published = gateway("cloud", [tunnel("cloud-1", config={"publicKey": KEY})], version=2)
    cluster.put(published)
    assert cluster.decide("cloud").keys == ()
    cluster.put(peer("cloud-1", "cloud", OTHER_KEY))
    assert cluster.decide("cloud").keys == (("cloud-1", OTHER_KEY),)


def test_the_key_of_a_node_without_a_peer_is_not_touched() -> None:
    cluster = Cluster(
        gateway("cloud", [tunnel("cloud-1", config={"publicKey": OTHER_KEY}), tunnel("cloud-2")]),
        node("cloud-1", "cloud"),
        node("cloud-2", "cloud"),
        peer("cloud-2", "cloud", KEY),
    )
    assert cluster.decide("cloud").keys == (("cloud-2", KEY),)


def test_a_peer_whose_node_is_in_another_region_publishes_no_key() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("edge-1")]), node("edge-1", "factory"), peer("edge-1", "factory"))
    assert cluster.decide("cloud").keys == ()


def test_keys_are_published_although_another_controller_elects() -> None:
    cluster = Cluster(gateway("cloud", [tunnel("cloud-1")]), node("cloud-1", "cloud"), peer("cloud-1", "cloud"))
    assert cluster.decide("cloud", WriteScope(elects=False, extra_fields=EXTRA_FIELDS, keys=True)).keys == (
        ("cloud-1", KEY),
    )
    assert cluster.decide("cloud", WriteScope(elects=True, extra_fields=EXTRA_FIELDS, keys=False)).keys == ()


def test_the_patch_keeps_unknown_fields_and_carries_the_resource_version() -> None:
    document = gateway(
        "cloud",
        [
            tunnel("cloud-1", port=4500, config={"theirs": "x"}, novelty=7),
            {"nodeName": "cloud-1", "type": "proxy"},
            tunnel("cloud-2", config={"publicKey": OTHER_KEY}),
        ],
        version=12,
    )
    assert key_patch(document, {"cloud-1": KEY}) == {
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
    assert key_patch(document, {"cloud-2": OTHER_KEY}) is None
    assert "publicKey" not in document["spec"]["endpoints"][0]["config"]


def test_a_key_is_written_at_most_five_times_in_ten_minutes() -> None:
    """OpenYurt's agent on the same node writes its own key whenever it finds another one."""
    limit = KeyWriteLimit()
    assert [limit.admit("cloud", "cloud-1", float(t)) for t in range(8)] == [True] * 5 + [False] * 3
    assert limit.admit("cloud", "cloud-2", 8.0)
    assert not limit.admit("cloud", "cloud-1", 599.0)
    assert limit.admit("cloud", "cloud-1", 601.0)
