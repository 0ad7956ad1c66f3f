"""Addresses of a lab: a pure function of its regions."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from ravenvpn.lab.topology import AddressPair, Nat, Region, assign_addresses


def test_a_public_region_has_a_public_lan_and_a_natted_one_a_private_lan():
    cloud, factory = assign_addresses((Region("cloud"), Region("factory", nat=Nat.SYMMETRIC)))

    assert cloud.lan == (IPv4Network("198.51.100.0/28"), IPv6Network("2001:db8:1::/64"))
    assert factory.lan == (IPv4Network("10.2.0.0/24"), IPv6Network("fd00:2::/64"))
    assert factory.uplink.host(2) == AddressPair(IPv4Address("203.0.113.10"), IPv6Address("2001:db8:ffff:2::2"))


def test_every_node_of_the_cluster_has_pod_networks_of_its_own():
    cloud, factory = assign_addresses(
        (Region("cloud", nodes=2, pods=1), Region("factory", pods=2, nat=Nat.FULL_CONE))
    )

    nodes = cloud.nodes + factory.nodes
    assert [node.name for node in nodes] == ["cloud-1", "cloud-2", "factory-1"]
    assert [str(node.pod_cidrs.v4) for node in nodes] == ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]
    assert str(factory.nodes[0].pod_cidrs.v6) == "fd00:10:244:3::/64"
    assert factory.nodes[0].pods == ("factory-1-pod-1", "factory-1-pod-2")


def test_two_homes_may_use_the_same_private_lan():
    home = IPv4Network("192.168.1.0/24")
    one, two = assign_addresses(tuple(Region(name, nat=Nat.PORT_RESTRICTED, lan=home) for name in ("one", "two")))

    assert one.lan.v4 == two.lan.v4 == home
    assert one.uplink != two.uplink


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ((Region("a"), Region("a")), "two regions have the same name"),
        ((Region("a", nodes=14),), "13 public addresses"),
        (tuple(Region(f"r{number}") for number in range(17)), "16 regions without NAT"),
        (tuple(Region(f"r{number}", nodes=0) for number in range(64)), "addresses for 63"),
        ((Region("a", nodes=255, nat=Nat.SYMMETRIC),), "there are podCIDRs for 254"),
    ],
)
def test_regions_without_enough_addresses_are_refused(regions: tuple[Region, ...], message: str):
    with pytest.raises(ValueError, match=message):
        assign_addresses(regions)
