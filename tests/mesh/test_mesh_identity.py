"""Derived addresses, compared with SHA-256 sums of sha256sum(1)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest

from ravenvpn.mesh import identity

# printf ravenvpn | sha256sum → 6f8e5ed3a7 702dc8…; printf edge-1 | sha256sum → df594d71a145abdc 3d2b8d6c…


def test_the_mesh_prefix_is_derived_from_the_mesh_name() -> None:
    assert identity.mesh_network("ravenvpn") == IPv6Network("fd6f:8e5e:d3a7::/48")


def test_the_tunnel_address_is_derived_from_the_node_name() -> None:
    assert identity.tunnel_address("ravenvpn", "edge-1") == IPv6Address("fd6f:8e5e:d3a7:1:df59:4d71:a145:abdc")


def test_the_ipv6_next_hop_is_derived_from_the_node_name() -> None:
    assert identity.vxlan_next_hop("ravenvpn", "edge-1") == IPv6Address("fd6f:8e5e:d3a7:2:df59:4d71:a145:abdc")


@pytest.mark.parametrize(
    ("private", "vxlan", "mac"),
    [
        ("10.1.2.3", "240.1.2.3", "aa:0f:f0:01:02:03"),  # example of OpenYurt
        ("192.168.255.254", "240.168.255.254", "aa:0f:f0:a8:ff:fe"),
    ],
)
def test_vxlan_address_and_mac_are_derived_as_openyurt_does(private: str, vxlan: str, mac: str) -> None:
    assert identity.vxlan_address(IPv4Address(private)) == IPv4Address(vxlan)
    assert identity.vxlan_mac("edge-1", IPv4Address(private)) == mac


def test_the_mac_of_a_node_without_ipv4_is_derived_from_its_name() -> None:
    assert identity.vxlan_mac("edge-1", IPv6Address("2001:db8::1")) == "aa:0f:df:59:4d:71"
    assert identity.vxlan_mac("edge-1", None) == "aa:0f:df:59:4d:71"
