"""The nft table: its inputs, detection of edits, and its listing by a real nft."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from node.box import Box
from node.worlds import gateway

from ravenvpn.mesh.hoststate import HostState, PacketFilter
from ravenvpn.node import nft, nft_ruleset


def filter_of(wanted: HostState) -> PacketFilter:
    assert wanted.packet_filter is not None
    return wanted.packet_filter


def test_a_remote_prefix_does_not_change_the_table() -> None:
    """The rules match devices; the routes decide which prefixes are remote."""
    wanted = gateway()
    grown = replace(wanted, packet_filter=replace(filter_of(wanted), remote=(ip_network("10.250.0.0/16"),)))

    assert nft_ruleset.build_ruleset(grown) == nft_ruleset.build_ruleset(wanted)


def test_another_own_source_changes_the_table() -> None:
    wanted = gateway()
    moved = replace(wanted, packet_filter=replace(filter_of(wanted), own_sources=(ip_address("10.0.0.5"),)))
    one, other = nft_ruleset.build_ruleset(wanted), nft_ruleset.build_ruleset(moved)

    assert one is not None
    assert other is not None
    assert one.facts.shape != other.facts.shape


def test_overlapping_and_neighbouring_prefixes_are_collapsed() -> None:
    """An interval set refuses elements that overlap, such as a pod CIDR and a node address inside it."""
    local = ("10.244.1.0/24", "10.244.1.7/32", "10.244.0.0/24", "fd00::/64", "fd00::1/128")
    rules = nft_ruleset.build_ruleset(HostState(packet_filter=PacketFilter(local=tuple(map(ip_network, local)))))

    assert rules is not None
    assert rules.facts.elements == {("local4", ip_network("10.244.0.0/23")), ("local6", ip_network("fd00::/64"))}


def test_another_vxlan_source_changes_elements_alone() -> None:
    """Rules that contain the addresses would have to be rewritten at each change, together with the whole table."""
    sources = ("10.0.0.5", "10.0.0.6", "fd00:10::5")
    one, other = (
        nft_ruleset.build_ruleset(HostState(packet_filter=PacketFilter(vxlan_sources=tuple(map(ip_address, chosen)))))
        for chosen in (sources, sources[:1])
    )

    assert one is not None
    assert other is not None
    assert one.facts.shape == other.facts.shape
    assert other.facts.elements == {("vxlan4", ip_network("10.0.0.5/32"))}


@pytest.mark.parametrize(
    "harm",
    [
        lambda items: items.pop(next(at for at, item in enumerate(items) if "rule" in item)),
        lambda items: items.append({"rule": {"chain": "source", "expr": [{"accept": None}]}}),
        lambda items: items.append({"chain": {"name": "theirs"}}),
        lambda items: items.append({"map": {"name": "theirs"}}),
        lambda items: next(item["rule"] for item in items if "rule" in item).update(comment="another [0123456789ab]"),
        lambda items: next(item["chain"] for item in items if "chain" in item).update(prio=0, hook="input"),
        lambda items: next(item["set"] for item in items if "set" in item).update(elem=["10.99.0.1"]),
        lambda items: next(item["set"] for item in items if "set" in item).update(elem=[{"range": ["1", "2"]}]),
    ],
    ids=["rule gone", "rule added", "chain", "map", "rule replaced", "chain moved", "element", "strange element"],
)
def test_every_edit_is_noticed(harm: Callable[[list[dict[str, Any]]], object]) -> None:
    wanted = gateway()
    rules = nft_ruleset.build_ruleset(wanted)
    assert rules is not None
    items = listing(rules)
    assert nft.parse_table({"nftables": items}) == rules.facts

    harm(items)

    assert nft.parse_table({"nftables": items}) != rules.facts


def listing(rules: nft_ruleset.Ruleset) -> list[dict[str, Any]]:
    """Return the listing of nft after the table was written."""
    items: list[dict[str, Any]] = []
    for command in nft.replacement(rules)[2:]:
        ((kind, value),) = command["add"].items()
        if kind == "element":
            holder = next(item["set"] for item in items if item.get("set", {}).get("name") == value["name"])
            holder["elem"] = value["elem"]
        else:
            items.append({kind: json.loads(json.dumps(value))})
    return items


@pytest.mark.root
@pytest.mark.needs("nft")
def test_nft_lists_the_table_that_was_written(box: Callable[[], Box]) -> None:
    rules = nft_ruleset.build_ruleset(gateway())
    assert rules is not None
    one = box()

    one.call(nft.write, nft.replacement(rules))
    assert one.call(nft.observe) == rules.facts
    elements = frozenset([("local4", ip_network("10.7.0.0/16")), ("vxlan4", ip_network("10.0.0.6/31"))])
    one.call(nft.write, nft.refill(elements))
    assert one.call(nft.observe) == replace(rules.facts, elements=elements)
    one.call(nft.write, nft.removal())
    one.call(nft.write, nft.removal())
    assert one.call(nft.observe) is None
