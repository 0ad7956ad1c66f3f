"""Detection of misbound live flows: those with a source that the nft chain would not have chosen."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ravenvpn.node.conntrack import Flow, is_misbound
from ravenvpn.prefixes import PrefixSet

POD, OTHER_POD, FAR, NODE, OWN, SERVICE, OUTSIDE = (
    ip_address(text).packed
    for text in ("10.244.1.9", "10.244.1.8", "10.244.2.9", "10.0.0.5", "10.244.1.1", "10.96.0.10", "192.0.2.1")
)
REMOTE = PrefixSet([ip_network("10.244.2.0/24"), ip_network("fd00:2::/64")])
PODS = PrefixSet([ip_network("10.244.1.0/24")])


def flow(
    source: bytes, destination: bytes, reply_source: bytes, reply_destination: bytes, dnat: bool = False
) -> Flow:
    return Flow(2, source, destination, reply_source, reply_destination, dnat, b"")


@pytest.mark.parametrize(
    ("what", "one", "expected"),
    [
        ("masqueraded by the CNI", flow(POD, FAR, FAR, NODE), True),
        ("a Service's, masqueraded by the CNI", flow(POD, SERVICE, FAR, NODE, dnat=True), True),
        ("with its own source", flow(POD, FAR, FAR, POD), False),
        ("with our own source", flow(POD, SERVICE, FAR, OWN, dnat=True), False),
        ("the node's, with our own source", flow(NODE, FAR, FAR, OWN), False),
        ("a pod's, which an operator's SNAT gave just that", flow(POD, FAR, FAR, OWN), True),
        ("from another region, masqueraded by flannel", flow(FAR, POD, POD, NODE), True),
        ("from another region, as it came", flow(FAR, POD, POD, FAR), False),
        ("from another region to a NodePort, kube-proxy's", flow(FAR, NODE, POD, OWN, dnat=True), False),
        ("to the outside", flow(POD, OUTSIDE, OUTSIDE, NODE), False),
        ("inside the region", flow(POD, OTHER_POD, OTHER_POD, NODE), False),
    ],
)
def test_only_flows_with_a_wrong_source_are_misbound(what: str, one: Flow, expected: bool) -> None:
    assert is_misbound(one, REMOTE, {OWN}, PODS) is expected, what
