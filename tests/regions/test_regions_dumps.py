"""The dumps that compare hosts show every kind of entry that an agent can leave behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab.host_dumps import differences
from region_dumps import dump
from region_mesh import IPTABLES, TOOLS

from ravenvpn.lab import Lab, LabNode, Region

pytestmark = [pytest.mark.root, pytest.mark.needs(*TOOLS, *IPTABLES, "bridge")]

_LINK = "ip link add raven0 type vxlan id 200 dstport 4472"


@pytest.fixture(scope="module")
def node() -> Iterator[LabNode]:
    with Lab(Region("one", masquerade=True)) as lab:
        lab.nodes[0].run(_LINK.replace("raven0", "other").replace("4472", "4473").split())
        yield lab.nodes[0]


@pytest.mark.parametrize(
    ("shown_by", "done", "undone"),
    [
        ("ip -j link", _LINK, "ip link del raven0"),
        ("ip -j link", "ip link set cni0 mtu 1400", "ip link set cni0 mtu 1500"),
        ("ip -j address", "ip address add 240.1.2.3/8 dev cni0", "ip address del 240.1.2.3/8 dev cni0"),
        (
            "ip -j -4 route show table all",
            "ip route add unreachable 10.9.0.0/16 table 9127",
            "ip route flush table 9127",
        ),
        (
            "ip -j -6 route show table all",
            "ip -6 route add unreachable fd09::/16 table 9129",
            "ip -6 route flush table 9129",
        ),
        ("ip -j rule", "ip rule add pref 100 lookup 9127", "ip rule del pref 100"),
        ("ip -j -6 rule", "ip -6 rule add pref 102 nop", "ip -6 rule del pref 102"),
        (
            "ip -j neigh show nud permanent",
            "ip neigh add 240.1.2.4 lladdr aa:0f:f0:01:02:04 dev cni0 nud permanent",
            "ip neigh del 240.1.2.4 dev cni0",
        ),
        (
            "bridge -j fdb show",
            "bridge fdb append aa:0f:f0:01:02:04 dev other dst 10.1.2.4 self permanent",
            "bridge fdb del aa:0f:f0:01:02:04 dev other dst 10.1.2.4 self permanent",
        ),
        ("nft -j list ruleset", "nft add table inet ravenvpn", "nft delete table inet ravenvpn"),
        *(
            (f"{program}-save", f"{program} -A FORWARD -j ACCEPT", f"{program} -D FORWARD -j ACCEPT")
            for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy")
        ),
        (
            "sysctl -a --pattern ^net\\.(ipv4|ipv6)",
            "sysctl -qw net.ipv4.conf.cni0.rp_filter=2",
            "sysctl -qw net.ipv4.conf.cni0.rp_filter=0",
        ),
    ],
)
def test_a_dump_shows_an_added_entry(node: LabNode, shown_by: str, done: str, undone: str):
    if "tables" in done:  # the first rule makes the table, which stays
        node.run(done.split())
        node.run(undone.split())
    before = dump(node)
    assert differences(before, dump(node)) == {}

    node.run(done.split())
    assert shown_by in differences(before, dump(node))

    node.run(undone.split())
    assert differences(before, dump(node)) == {}
