"""Discovery of host facts on a real kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from node.box import Box
from node.worlds import HOST, gateway

from ravenvpn.mesh.hoststate import HostState
from ravenvpn.node.apply import Host
from ravenvpn.node.discovery import HostFacts

pytestmark = [pytest.mark.root, pytest.mark.needs("nft")]

PODS = [ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")]


def look(state_file: Path) -> HostFacts:
    with Host(state_file) as host:
        return host.discover([ip_address("203.0.113.9"), ip_address("10.0.0.7")], PODS)


def test_addresses_mtus_and_forwarding_are_discovered(box: Callable[[], Box], state_file: Path) -> None:
    node = box()
    node.sh(HOST)
    node.sh(
        """
        sysctl -qw net.ipv6.conf.eth0.accept_dad=1
        ip link set eth0 mtu 1450; ip route add 203.0.113.0/24 via 10.0.0.1 mtu 1400
        ip -6 route add default via fd00:10::1 dev eth0 proto ra metric 100
        ip link add veth-pod type veth peer name other; ip link set veth-pod up
        ip route add 10.244.1.77/32 dev veth-pod
        sysctl -qw net.ipv4.conf.cni0.forwarding=0 net.ipv4.conf.veth-pod.forwarding=1
        """
    )

    facts = node.call(look, state_file)

    assert [(item.device, str(item.address)) for item in facts.addresses] == [
        ("cni0", "10.244.1.1/24"),
        ("eth0", "10.0.0.5/24"),
        ("cni0", "fd00:1::1/64"),
        ("eth0", "fd00:10::5/64"),
    ]
    assert facts.default_mtu == 1450
    assert dict(facts.mtus) == {"203.0.113.9": 1400}
    assert facts.pod_devices == ("cni0",)
    assert facts.advertised == ("eth0",)
    assert (facts.ipv6, facts.ipv6_disabled) == (True, False)
    assert facts.local_facts().addresses == {
        ip_address(text) for text in ("10.244.1.1", "10.0.0.5", "fd00:1::1", "fd00:10::5")
    }


def test_tentative_addresses_are_left_out(box: Callable[[], Box], state_file: Path) -> None:
    """The kernel refuses an IPv6 route with a tentative address as its preferred source."""
    node = box()
    node.sh(
        """
        cd /proc/sys/net/ipv6/conf
        echo 1 | tee all/accept_dad default/accept_dad >/dev/null; echo 100 >default/dad_transmits
        ip link add eth0 type veth peer name uplink; ip link set uplink up; ip link set eth0 up
        ip addr add fd00::1/64 dev eth0
        """
    )

    assert node.call(look, state_file).addresses == ()


def test_a_sysctl_that_we_set_counts_with_its_original_value(box: Callable[[], Box], state_file: Path) -> None:
    """With the current value the next plan would drop the sysctl and restore it, and the one after set it again."""
    node = box()
    node.sh(HOST + "sysctl -qw net.ipv4.conf.cni0.forwarding=0")

    def apply() -> None:
        with Host(state_file) as host:
            forwarding = HostState(sysctls=gateway().sysctls[3:])
            assert host.apply(forwarding).failed == ()

    node.call(apply)

    assert node.sh("sysctl -n net.ipv4.conf.cni0.forwarding").strip() == "1"
    assert node.call(look, state_file).pod_devices == ("cni0",)
    assert node.call(look, state_file.with_name("none")).pod_devices == ()


def test_ipv6_disabled_by_sysctl_is_discovered(box: Callable[[], Box], state_file: Path) -> None:
    node = box()
    node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")

    facts = node.call(look, state_file)

    assert (facts.ipv6, facts.ipv6_disabled) == (True, True)


def test_our_own_devices_and_routes_are_left_out(box: Callable[[], Box], state_file: Path) -> None:
    """The MTU to a peer is that of the outer packets' route, even if a remote prefix covers its address."""
    node = box()
    node.sh(HOST + "ip route add 203.0.113.0/24 via 10.0.0.1 mtu 1400")
    wanted = gateway()
    cover = replace(wanted.routes[0], prefix=ip_network("203.0.113.0/24"), source=None)
    with node.tun():

        def apply_and_look() -> HostFacts:
            with Host(state_file) as host:
                assert host.apply(replace(wanted, routes=(*wanted.routes, cover))).failed == ()
            return look(state_file)

        facts = node.call(apply_and_look)

    assert dict(facts.mtus) == {"203.0.113.9": 1400}
    assert "ravenvpn0" not in {item.device for item in facts.addresses}
