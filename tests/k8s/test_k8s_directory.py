"""Manifests of a directory while files change: the resulting world, objects that stay in force, and problems."""

from __future__ import annotations

import ipaddress

import pytest

from ravenvpn.k8s.directory import Manifests
from ravenvpn.k8s.problems import Problem

KEYS = ("tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww=", "GMjP3eyBuLdp4jaTxhJzybXahw31w0Hr+pPxQTG0MCM=")


def gateway(name: str, *nodes: str, replicas: int = 1, active: str = "") -> str:
    endpoints = ", ".join(f"{{nodeName: {n}, type: tunnel}}" for n in nodes)
    status = f"status: {{activeEndpoints: [{{nodeName: {active}, type: tunnel}}]}}\n" if active else ""
    return (
        f"apiVersion: raven.openyurt.io/v1beta1\nkind: Gateway\nmetadata: {{name: {name}}}\n"
        f"spec: {{tunnelConfig: {{Replicas: {replicas}}}, endpoints: [{endpoints}]}}\n{status}"
    )


def node(name: str, region: str, cidr: str = "10.1.0.0/24", ready: str = "True") -> str:
    return (
        f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{raven.openyurt.io/gateway: {region}}}}}\n"
        f"spec: {{podCIDRs: [{cidr}]}}\n"
        f"status: {{addresses: [{{type: InternalIP, address: 10.0.0.1}}, {{type: Hostname, address: x}}], "
        f"conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )


def peer(name: str, key: str = KEYS[0]) -> str:
    return f"apiVersion: ravenvpn.io/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{publicKey: '{key}'}}\n"


def documents(*texts: str) -> bytes:
    return "---\n".join(texts).encode()


@pytest.fixture
def manifests() -> Manifests:
    made = Manifests()
    made.update(
        {
            "cloud.yaml": documents(
                gateway("cloud", "c1", "c2"), node("c1", "cloud"), node("c2", "cloud", "10.2.0.0/24")
            ),
            "peers.yaml": documents(peer("c1"), peer("c2", KEYS[1])),
        }
    )
    assert made.problems == ()
    return made


def active(manifests: Manifests, region: str = "cloud") -> list[tuple[str, str]]:
    endpoints = manifests.world.gateways[region].status.active
    return [(e.node, e.config["ravenvpn.io/epoch"]) for e in endpoints]


def test_the_status_of_a_gateway_comes_from_its_nodes(manifests: Manifests) -> None:
    status = manifests.world.gateways["cloud"].status

    assert [(n.node, str(n.private_ip), [str(s) for s in n.subnets]) for n in status.nodes] == [
        ("c1", "10.0.0.1", ["10.1.0.0/24"]),
        ("c2", "10.0.0.1", ["10.2.0.0/24"]),
    ]
    assert active(manifests) == [("c1", "1")]


def test_a_malformed_object_keeps_its_last_good_version_and_others_in_the_file_change(manifests: Manifests) -> None:
    manifests.update(
        {
            "cloud.yaml": documents(
                gateway("cloud", "c1", "c2"), node("c1", "cloud", "nonsense"), node("c2", "cloud", "10.7.0.0/24")
            )
        }
    )

    assert [str(n.pod_cidrs[0]) for n in (manifests.world.nodes["c1"], manifests.world.nodes["c2"])] == [
        "10.1.0.0/24",
        "10.7.0.0/24",
    ]
    assert [(p.file, p.line, p.subject, p.field) for p in manifests.problems] == [
        ("cloud.yaml", 9, "Node c1", "spec.podCIDRs[0]")
    ]


def test_a_file_with_a_syntax_error_keeps_all_its_objects(manifests: Manifests) -> None:
    before = manifests.world

    manifests.update({"cloud.yaml": documents(gateway("cloud", "c1", "c2")) + b"---\n{broken"})

    assert manifests.world == before
    assert [p.fatal for p in manifests.problems] == [True]


def test_correcting_a_file_removes_the_objects_it_no_longer_has(manifests: Manifests) -> None:
    manifests.update({"cloud.yaml": b"{broken"})
    manifests.update({"cloud.yaml": documents(gateway("cloud", "c1"), node("c1", "cloud"))})

    assert set(manifests.world.nodes) == {"c1"}
    assert manifests.problems == ()


def test_an_emptied_file_keeps_its_objects_and_a_removed_one_does_not(manifests: Manifests) -> None:
    manifests.update({"peers.yaml": b""})
    assert set(manifests.world.peers) == {"c1", "c2"}
    assert str(manifests.problems[0]) == (
        "peers.yaml: is empty; its last objects stay in force (remove it or fill it)"
    )

    manifests.update({"peers.yaml": None})
    assert set(manifests.world.peers) == set()
    assert manifests.problems == ()


def test_an_unreadable_file_keeps_its_objects(manifests: Manifests) -> None:
    why = Problem("cannot be read: Permission denied", "make it readable", file="peers.yaml")
    manifests.update({"peers.yaml": why})

    assert set(manifests.world.peers) == {"c1", "c2"}
    assert manifests.problems == (why,)


def test_an_object_in_two_files_is_reported_and_the_first_file_is_used(manifests: Manifests) -> None:
    manifests.update({"more.yaml": documents(peer("c1", KEYS[1]))})

    # more.yaml sorts before peers.yaml
    assert manifests.world.peers["c1"].public_key[:2] == bytes((0x18, 0xC8))
    (problem,) = manifests.problems
    assert str(problem) == (
        "peers.yaml:1: Peer c1: metadata.name: is also in more.yaml, whose version is used "
        "(keep one of the two, or give it another name)"
    )
    manifests.update({"more.yaml": None})
    assert manifests.world.peers["c1"].public_key[:2] == bytes((0xB5, 0x31))
    assert manifests.problems == ()


def test_an_object_twice_in_a_file_is_reported_with_both_lines(manifests: Manifests) -> None:
    manifests.update({"peers.yaml": documents(peer("c1"), peer("c1", KEYS[1]))})

    assert [(p.line, p.message) for p in manifests.problems] == [
        (8, "is already on line 1 of this file, which is used")
    ]


def test_an_object_moved_out_of_a_malformed_file_is_used_from_the_valid_file(manifests: Manifests) -> None:
    manifests.update({"peers.yaml": b"{broken", "new.yaml": documents(peer("c2", KEYS[1]))})

    assert set(manifests.world.peers) == {"c1", "c2"}
    assert [p.file for p in manifests.problems] == ["peers.yaml"]


def test_an_object_that_did_not_change_is_not_a_change_of_the_world(manifests: Manifests) -> None:
    before = manifests.world
    manifests.update(
        {
            "cloud.yaml": documents(
                gateway("cloud", "c1", "c2"), node("c1", "cloud"), node("c2", "cloud", "10.2.0.0/24")
            )
            + b"# touched\n"
        }
    )

    assert manifests.world.changes(before) == (set(), set(), set())

    manifests.update(
        {"peers.yaml": documents(peer("c1"), peer("c2", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="))}
    )
    assert manifests.world.changes(before) == (set(), set(), {"c2"})


def test_the_active_node_stays_active_until_it_is_not_ready(manifests: Manifests) -> None:
    def with_nodes(first: str, second: str, order: tuple[str, str]) -> None:
        texts = (
            gateway("cloud", *order),
            node("c1", "cloud", ready=first),
            node("c2", "cloud", "10.2.0.0/24", second),
        )
        manifests.update({"cloud.yaml": documents(*texts)})

    with_nodes("False", "True", ("c1", "c2"))
    assert active(manifests) == [("c2", "2")]
    with_nodes("True", "True", ("c1", "c2"))
    assert active(manifests) == [("c2", "2")]  # no fail-back
    with_nodes("False", "False", ("c1", "c2"))
    assert active(manifests) == []
    with_nodes("True", "True", ("c2", "c1"))
    assert active(manifests) == [("c2", "3")]  # the epoch survives a time without an active endpoint


def test_a_manifest_that_names_the_active_endpoint_moves_the_role(manifests: Manifests) -> None:
    nodes = (node("c1", "cloud"), node("c2", "cloud", "10.2.0.0/24"))

    manifests.update({"cloud.yaml": documents(gateway("cloud", "c1", "c2", active="c2"), *nodes)})
    assert [name for name, _ in active(manifests)] == ["c2"]

    # The same status in the manifest again does not revert the election since.
    manifests.update(
        {
            "cloud.yaml": documents(
                gateway("cloud", "c1", "c2", active="c2"), nodes[0], node("c2", "cloud", ready="False")
            )
        }
    )
    assert [name for name, _ in active(manifests)] == ["c1"]
    manifests.update({"cloud.yaml": documents(gateway("cloud", "c2", "c1", active="c2"), *nodes)})
    assert [name for name, _ in active(manifests)] == ["c1"]


def test_a_gateway_without_node_manifests_uses_the_nodes_of_its_own_status() -> None:
    manifests = Manifests()
    text = gateway("shop", "s1", active="s1").replace(
        "status: {", "status: {nodes: [{nodeName: s1, privateIP: 10.0.0.9, subnets: [10.9.0.0/24]}], "
    )
    manifests.update({"shop.yaml": text.encode()})

    assert manifests.world.gateways["shop"].status.nodes[0].subnets == (ipaddress.ip_network("10.9.0.0/24"),)
    assert [name for name, _ in active(manifests, "shop")] == ["s1"]


def test_lists_are_read_and_a_problem_names_the_item() -> None:
    manifests = Manifests()
    manifests.update(
        {
            "all.json": b'{"kind": "List", "apiVersion": "v1", "items": [\n'
            b'{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}},\n'
            b'{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "b"},\n'
            b' "spec": {"podCIDR": "10.0.0.0"}}]}'
        }
    )

    assert set(manifests.world.nodes) == {"a"}
    assert [str(p) for p in manifests.problems] == [
        "all.json:4: Node b: items[1].spec.podCIDR: '10.0.0.0' has no prefix length (for a single address append /32)"
    ]


def test_the_number_of_problems_of_a_file_is_bounded() -> None:
    manifests = Manifests()
    manifests.update({"wrong.yaml": b"---\nkind: Pod\napiVersion: v1\n" * 1000})

    assert len(manifests.problems) == 101
    assert manifests.problems[-1].message == "has 900 more problems"
