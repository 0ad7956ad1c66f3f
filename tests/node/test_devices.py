"""Devices on a real kernel: recreated, taken over from upstream, or kept if another program owns them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from node.applying import apply, cleanup
from node.box import Box
from node.worlds import lan_gateway, planned

from ravenvpn.mesh.hoststate import Route, Rule, Sysctl
from ravenvpn.node.apply import ApplyResult
from ravenvpn.node.format import format_object

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge", "sysctl", "iptables-legacy")]


def test_a_moved_underlay_address_recreates_the_vxlan(gateway_node: Box, state_file: Path) -> None:
    gateway_node.call(apply, state_file, lan_gateway())
    gateway_node.sh("ip link add eth1 type veth peer name uplink1; ip link set eth1 up; ip link set uplink1 up")
    gateway_node.sh("ip addr del 10.0.0.5/24 dev eth0; ip addr add 10.0.0.5/24 dev eth1")

    result = gateway_node.call(apply, state_file, lan_gateway())

    assert result.failed == ()
    assert "vxlan id 200 local 10.0.0.5 dev eth1" in gateway_node.sh("ip -d link show raven0")
    assert "10.244.4.0/24 via 240.0.0.6 dev raven0" in gateway_node.sh("ip route show table 9129")
    assert "240.0.0.6 lladdr aa:0f:0a:00:00:06" in gateway_node.sh("ip neigh show dev raven0 nud permanent")
    assert gateway_node.call(apply, state_file, lan_gateway()) == ApplyResult()


def test_the_vxlan_works_over_an_ipv6_underlay(gateway_node: Box, state_file: Path) -> None:
    wanted = lan_gateway()
    assert wanted.vxlan is not None
    entry = replace(wanted.forwarding[0], destination=ip_address("fd00:10::6"))
    wanted = replace(
        wanted, vxlan=replace(wanted.vxlan, local=ip_address("fd00:10::5"), mtu=1350), forwarding=(entry,)
    )

    result = gateway_node.call(apply, state_file, wanted)

    assert result.failed == ()
    assert "vxlan id 200 local fd00:10::5 dev eth0" in gateway_node.sh("ip -d link show raven0")
    assert gateway_node.call(apply, state_file, wanted) == ApplyResult()


def test_neighbours_are_restored_after_a_change_of_the_mac(gateway_node: Box, state_file: Path) -> None:
    """The kernel drops all neighbours of a device whose MAC is set, permanent ones too."""
    gateway_node.call(apply, state_file, lan_gateway())
    gateway_node.sh("ip link set raven0 address aa:0f:00:00:00:77")
    gateway_node.sh("ip neigh replace 240.0.0.6 lladdr aa:0f:0a:00:00:06 dev raven0 nud permanent")

    assert gateway_node.call(apply, state_file, lan_gateway()).failed == ()

    assert "240.0.0.6 lladdr aa:0f:0a:00:00:06" in gateway_node.sh("ip neigh show dev raven0 nud permanent")
    assert gateway_node.call(apply, state_file, lan_gateway()) == ApplyResult()


def test_the_device_that_upstream_left_is_adopted(gateway_node: Box, state_file: Path) -> None:
    """A pool is migrated node by node: raven0 of the upstream agent has its own MTU, learning and addresses."""
    gateway_node.sh(
        """
        ip link add raven0 type vxlan id 200 dstport 4472 local 10.0.0.5 dev eth0 ageing 300
        ip addr add 240.0.0.5/8 dev raven0 scope link
        ip link set raven0 up
        ip neigh add 240.0.0.9 lladdr aa:0f:0a:00:00:09 dev raven0 nud permanent
        bridge fdb append aa:0f:0a:00:00:09 dev raven0 dst 10.0.0.9
        ip route add default via 240.0.0.9 dev raven0 onlink table 9027
        """
    )

    result = gateway_node.call(apply, state_file, lan_gateway())

    assert result.failed == ()
    assert " nolearning " in gateway_node.sh("ip -d link show raven0")
    assert "240.0.0.9" not in gateway_node.sh("ip neigh show dev raven0")
    assert gateway_node.call(apply, state_file, lan_gateway()) == ApplyResult()


def test_the_vxlan_of_upstream_is_taken_over_in_place(node: Box, state_file: Path) -> None:
    """The upstream agent of a plain node was stopped. The device and the entries that lead to the gateway stay.

    Entries that flood or lead elsewhere are removed. Upstream's rule and table are not changed.
    """
    node.sh(
        """
        sysctl -qw net.ipv4.conf.cni0.forwarding=0
        ip link add raven0 address aa:0f:f0:00:00:05 mtu 1400 type vxlan id 200 dstport 4472 nolearning \
            ageing 300 local 10.0.0.5 dev eth0 remote 10.0.0.6
        ip addr add 240.0.0.5/8 dev raven0 scope link
        ip link set raven0 up
        ip neigh add 240.0.0.6 lladdr aa:0f:f0:00:00:06 dev raven0 nud permanent
        bridge fdb append aa:0f:f0:00:00:06 dev raven0 dst 10.0.0.6 self permanent
        ip neigh add 240.0.0.9 lladdr aa:0f:f0:00:00:09 dev raven0 nud permanent
        bridge fdb append aa:0f:f0:00:00:09 dev raven0 dst 10.0.0.9 self permanent
        ip route add default via 240.0.0.6 dev raven0 onlink mtu 1400 table 9027
        ip rule add pref 100 fwmark 0x40 lookup 9027
        """
    )
    index = node.sh("cat /sys/class/net/raven0/ifindex")
    theirs = node.sh("ip route show table 9027; ip rule show pref 100")
    wanted = planned("plain")

    result = node.call(apply, state_file, wanted)

    assert result.failed == ()
    assert [
        f"{operation.verb} {format_object(operation.target)}"
        for operation in result.changed
        if not isinstance(operation.target, Route | Rule | Sysctl) and " fd" not in format_object(operation.target)
    ] == [
        "change device raven0 VXLAN 200 port 4472 local 10.0.0.5 mtu 1420",
        "add nft table ravenvpn",
        "remove forwarding entry 00:00:00:00:00:00 to 10.0.0.6 dev raven0",
        "remove forwarding entry aa:0f:f0:00:00:09 to 10.0.0.9 dev raven0",
        "remove neighbour 240.0.0.9 at aa:0f:f0:00:00:09 dev raven0",
    ]
    assert node.sh("cat /sys/class/net/raven0/ifindex") == index
    assert node.sh("ip route show table 9027; ip rule show pref 100 fwmark 0x40") == theirs
    # Upstream's rule is older, but packets that it marks use ravenvpn's table, since the gateway may move.
    assert "via 240.0.0.6 dev raven0 table 9127 src 10.244.1.1" in node.sh("ip route get 10.244.2.5 mark 0x40")
    assert node.call(apply, state_file, wanted) == ApplyResult()
    # Migration back: the device is removed, because upstream's agent creates its own and fails if one exists.
    assert node.call(cleanup, state_file).failed == ()
    assert node.sh("ip rule show pref 100").split("\t")[1].strip() == "from all fwmark 0x40 lookup 9027"
    assert "raven0" not in node.sh("ip -br link")
    node.sh("ip link add raven0 type vxlan id 200 dstport 4472 nolearning local 10.0.0.5 dev eth0")


@pytest.mark.parametrize("device", ["ravenvpn0", "raven0"])
def test_a_device_of_another_kind_under_our_name_is_reported_and_kept(
    node: Box, state_file: Path, held: ExitStack, device: str
) -> None:
    if device == "raven0":
        held.enter_context(node.tun())
    node.sh(f"ip link add {device} type veth peer name other; ip addr add 192.0.2.9/24 dev {device}")
    node.sh(f"ip link set {device} up")
    before = node.sh(f"ip -d addr show {device}")
    wanted = planned("gateway")

    result = node.call(apply, state_file, wanted)

    errors = [failure.error for failure in result.failed if failure.error.subject.startswith(f"device {device} ")]
    assert [(error.message, error.errno_name) for error in errors] == [
        (f"another program has a device of another kind named {device}", "EEXIST")
    ]
    assert node.sh(f"ip -d addr show {device}") == before
    assert f"dev {device}" not in node.sh("ip route show table 9127; ip route show table 9129 || true")
    assert "unreachable 10.244.2.0/24" in node.sh("ip route show table 9127")
    assert node.call(cleanup, state_file).failed == ()
    assert node.sh(f"ip -d addr show {device}") == before
