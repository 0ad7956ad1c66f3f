"""Live flows with other regions that conntrack bound before the host state was applied or changed."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from node.applying import change_host
from node.box import Box
from node.pod_region import FAMILIES, POD, Region, check_flows, masquerade, send
from node.worlds import gateway, planned

from ravenvpn.node.apply import ApplyResult, Host

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "iptables-nft", "iptables-legacy", "conntrack")]


def flows(node: Box, family: int) -> dict[str, tuple[str, str]]:
    """Return destination → (id of the entry, destination of its replies) of each flow."""
    listed = node.sh(f"conntrack -L -o id -f ipv{family} 2>/dev/null").splitlines()
    fields = [re.findall(r"(dst|id)=(\S+)", line) for line in listed]
    return {found[0][1]: (found[2][1], found[1][1]) for found in fields if len(found) == 3}


@FAMILIES
@pytest.mark.parametrize("role", ["gateway", "plain"])
def test_misbound_flows_of_before_the_start_are_deleted(region: Region, family: int, role: str) -> None:
    """Flows bound by MASQUERADE: the entries of those with other regions are deleted, and no others."""
    region.node.sh(masquerade("iptables-legacy", family))
    far, outside, mate = {4: ("10.244.2.9", "192.0.2.1", "10.244.4.9"), 6: ("fd00:2::9", "2001:db8::1", "fd00:4::9")}[
        family
    ]
    for destination in (far, outside, mate):
        region.pod.call(send, None, destination)
    before = flows(region.node, family)
    uplink = {4: "10.0.0.5", 6: "fd00:10::5"}[family]
    assert {destination: before[destination][1] for destination in (far, outside, mate)} == {
        far: uplink,
        outside: uplink,
        mate: uplink,
    }

    region.apply(planned(role))

    after = flows(region.node, family)
    assert far not in after
    assert {outside: after[outside], mate: after[mate]} == {outside: before[outside], mate: before[mate]}
    region.pod.call(send, None, far)
    bound = flows(region.node, family)[far]
    assert bound[1] == POD[family]
    # A restart, and a table that another program deleted: correctly bound flows stay.
    region.apply(planned(role))
    region.node.sh("nft delete table inet ravenvpn")
    region.apply(planned(role))
    assert flows(region.node, family)[far] == bound


def test_flows_bound_to_a_former_own_source_are_deleted(region: Region) -> None:
    """Flows of the node itself after its announced address changed."""
    wanted = gateway()
    assert wanted.packet_filter is not None
    sources = (ip_address("10.244.1.2"), ip_address("fd00:1::1"))
    changed = replace(wanted, packet_filter=replace(wanted.packet_filter, own_sources=sources))
    region.node.sh("ip addr add 10.244.1.2/24 dev cni0")
    with region.node.call(Host, region.state_file) as host:
        region.node.call(lambda: check_flows(host.apply(wanted)))
        region.node.call(send, "10.0.0.5", "10.244.2.9")
        assert flows(region.node, 4)["10.244.2.9"][1] == "10.244.1.1"

        region.node.call(lambda: check_flows(change_host(host, wanted, changed)))

        assert "10.244.2.9" not in flows(region.node, 4)
    region.node.call(send, "10.0.0.5", "10.244.2.9")
    assert flows(region.node, 4)["10.244.2.9"][1] == "10.244.1.2"


def test_misbound_flows_of_a_region_that_joins_are_deleted(region: Region) -> None:
    """A delta that makes a prefix remote deletes the misbound flows with it; other flows stay."""
    region.node.sh(masquerade("iptables-legacy", 4))
    wanted = gateway()
    first = replace(wanted, routes=wanted.routes[:2])
    region.apply(first)
    region.pod.call(send, None, "10.244.2.9")
    region.pod.call(send, None, "10.244.3.9")

    def change() -> ApplyResult:
        with Host(region.state_file) as host:
            return check_flows(change_host(host, first, wanted))

    assert region.node.call(change).failed == ()

    flows = region.node.sh("conntrack -L 2>/dev/null")
    assert "dst=10.244.3.9" not in flows
    assert "dst=10.244.2.9" in flows
