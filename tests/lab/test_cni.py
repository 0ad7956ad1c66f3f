"""Models of CNIs: which addresses pods reach, with which source, and the packet filters on their nodes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.cni import host_device
from ravenvpn.lab.topology import Cni, Flavour, assign_addresses

TOOLS = [f"{ip}tables-{kind}-restore" for ip in ("ip", "ip6") for kind in ("nft", "legacy")]
# By the name of its region, which is short since devices are named after it.
MODELS = {f"{cni}{number}": (cni, flavour) for cni in Cni for number, flavour in enumerate(Flavour)}
EACH_MODEL = pytest.mark.parametrize("region", MODELS, ids=["-".join(model) for model in MODELS.values()])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(
        Region("outside", nodes=1, pods=0),
        *(
            Region(name, 2, 2, Nat.PORT_RESTRICTED, cni=cni, masquerade=True, flavour=flavour)
            for name, (cni, flavour) in MODELS.items()
        ),
    ) as lab:
        yield lab


def test_a_calico_node_has_two_blocks_of_each_family_and_pods_in_both():
    (plan,) = assign_addresses((Region("factory", pods=3, cni=Cni.CALICO),))

    node = plan.nodes[0]
    assert [[str(cidr) for cidr in block] for block in node.blocks] == [
        ["10.244.1.0/26", "fd00:10:244:1::/122"],
        ["10.244.1.128/26", "fd00:10:244:1::80/122"],
    ]
    assert [str(node.pod_address(i).v4) for i in range(3)] == ["10.244.1.1", "10.244.1.129", "10.244.1.2"]
    assert str(node.pod_address(1).v6) == "fd00:10:244:1::81"


@pytest.mark.root
@pytest.mark.needs(*TOOLS)
@EACH_MODEL
def test_pods_keep_their_source_address_inside_the_region_except_towards_other_nodes(lab: Lab, region: str):
    """A node's own address is outside of the range that a CNI does not masquerade."""
    one, neighbour = lab.pod(f"{region}-1-pod-1"), lab.node(f"{region}-2")
    for other in (lab.pod(f"{region}-1-pod-2"), *neighbour.pods, neighbour, one.node):
        seen_as = one.node if other is neighbour else one
        for target, own in ((other.v4, seen_as.v4), (other.v6, seen_as.v6)):
            with other.socket(_family(target)) as server, one.socket(_family(target)) as client:
                server.bind((str(target), 7000))
                server.settimeout(2)
                client.sendto(b"hello", (str(target), 7000))
                assert ip_address(server.recvfrom(100)[1][0]) == own


@pytest.mark.root
@pytest.mark.needs(*TOOLS)
@EACH_MODEL
def test_pods_are_masqueraded_towards_all_other_addresses(lab: Lab, region: str):
    pod, outside = lab.pod(f"{region}-1-pod-2"), lab.node("outside-1")
    with pod.node.capture(pod.node.DEVICE, "udp port 7001") as seen, pod.socket() as client:
        client.sendto(b"to elsewhere", (str(outside.v4), 7001))
        pod.run(["ping", "-c", "1", "-W", "2", str(outside.v4)])
    sources = {frame[26:30] for frame in seen.frames()}
    assert sources == {pod.node.v4.packed}


@pytest.mark.root
@pytest.mark.needs(*TOOLS)
@EACH_MODEL
def test_the_rules_are_loaded_by_the_program_of_the_flavour(lab: Lab, region: str):
    node, flavour = lab.node(f"{region}-1"), MODELS[region][1]
    found = {
        Flavour.NFT: "table inet cni" in node.run(["nft", "list", "ruleset"]).stdout,
        Flavour.IPTABLES_NFT: "MASQUERADE" in node.run(["iptables-nft-save", "-t", "nat"]).stdout,
        Flavour.IPTABLES_LEGACY: "MASQUERADE" in node.run(["iptables-legacy-save", "-t", "nat"]).stdout,
    }
    assert [name for name, there in found.items() if there] == [flavour]


@pytest.mark.root
@pytest.mark.needs(*TOOLS)
def test_calico_filters_by_reverse_path_and_has_a_blackhole_for_unused_addresses(lab: Lab):
    pod = lab.pod("calico0-1-pod-1")
    node, device = pod.node, host_device(pod)
    assert node.run(["sysctl", "-n", f"net.ipv4.conf.{device}.rp_filter"]).stdout == "1\n"
    assert f"blackhole {node.blocks[0].v4}" in node.ip("route show")
    unused = pod.run(["ping", "-c", "1", "-W", "0.2", str(node.blocks[0].v4[9])], check=False)
    assert unused.returncode == 1


def _family(address: object) -> int:
    return 10 if ":" in str(address) else 2
