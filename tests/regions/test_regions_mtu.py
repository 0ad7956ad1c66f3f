"""Path MTU: a packet that is too large is refused with an ICMP error that has the right MTU and an accepted source.

The error comes from the sender's own node if its tunnel has the small MTU; from its gateway if the path from there
has (`cloud-1` has a route to `harbour` with an MTU); from the far gateway if its own LAN has (`ship`). Pods use 1500.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from region_mesh import TOOLS, Mesh
from region_traffic import PORT, Answer, Pair, Refusal, datagrams, family, pairs, stations, streams, version

from ravenvpn.lab import Lab, LabNode, Nat, Pod, Region
from ravenvpn.lab.topology import Cni

pytestmark = [pytest.mark.root, pytest.mark.needs(*TOOLS), pytest.mark.timeout(240)]

REGIONS = (
    Region("cloud", 2, 1, masquerade=True),
    Region("harbour", 2, 1, masquerade=True),
    Region("ship", 2, 1, Nat.PORT_RESTRICTED, lan_mtu=1400, cni=Cni.CALICO, masquerade=True),
)
DROP_ICMP_ERRORS = """table inet drop_errors {
  chain input {
    type filter hook input priority filter;
    icmp type destination-unreachable drop;
    icmpv6 type packet-too-big drop;
  }
}"""
WIDE, NARROW = 1420, 1320  # in the tunnel: 1500 and 1400, less 80


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        cloud, harbour = lab.node("cloud-1"), lab.node("harbour-1")
        for target in (harbour.v4, harbour.v6):
            way = cloud.ip(f"route get {target}").split(" dev ")[0].split(" via ")[1].split()[0]
            cloud.ip(f"route add {target} via {way} dev {cloud.DEVICE} mtu 1400")
        mesh = Mesh.prepared(lab)
        mesh.start_all()
        yield mesh


def between(mesh: Mesh) -> list[Pair]:
    return [pair for pair in pairs(mesh.lab.pods, mesh.lab.pods) if pair.crosses]


def ask(mesh: Mesh, asked: list[Pair], size: int) -> dict[Pair, Answer]:
    async def everything() -> dict[Pair, Answer]:
        async with stations(mesh.lab.pods):
            return await datagrams(asked, size)

    return asyncio.run(everything())


def address(host: Any, pair: Pair) -> Any:
    return host.v4 if version(pair.target) == 4 else host.v6


def limit(mesh: Mesh, pair: Pair) -> tuple[int, LabNode]:
    """Return the MTU of the path, and the node that has to send the ICMP error."""
    assert isinstance(pair.sender, Pod)
    assert isinstance(pair.receiver, Pod)
    here, there = pair.sender.node, pair.receiver.node
    if here.region.name == "ship":
        return NARROW, here
    if here.region.name == "cloud" and there.region.name == "harbour":
        return NARROW, mesh.node("cloud-1")
    if there.name == "ship-2":  # behind the LAN with the small MTU; the pods of its gateway are in front of it
        return NARROW, mesh.node("ship-1")
    return WIDE, here


def is_right(mesh: Mesh, pair: Pair, answer: Answer) -> bool:
    """Return whether the error has the right MTU and comes from the right node.

    A node of another region is reached only with the source that it announces, one of the sender's region with any of
    its addresses.
    """
    mtu, node = limit(mesh, pair)
    if not isinstance(answer, Refusal) or answer.mtu != mtu:
        return False
    if node.region is region(pair.sender):
        return str(answer.offender) in addresses(node)
    return answer.offender == address(node.source, pair)


def region(host: Pod | LabNode) -> Region:
    return (host.node if isinstance(host, Pod) else host).region


@functools.cache
def addresses(node: LabNode) -> set[str]:
    return {entry["local"] for link in json.loads(node.ip("-j address")) for entry in link["addr_info"]}


def test_each_path_reports_its_mtu(mesh: Mesh):
    asked = between(mesh)
    for size in (NARROW, WIDE):
        able = [pair for pair in asked if limit(mesh, pair)[0] >= size]
        assert able
        fits = ask(mesh, able, size)
        assert {str(p): a for p, a in fits.items() if a != address(p.sender, p)} == {}

        unable = [pair for pair in asked if limit(mesh, pair)[0] == size]
        refused = ask(mesh, unable, size + 1)
        assert {str(p): a for p, a in refused.items() if not is_right(mesh, p, a)} == {}


def test_tcp_works_without_icmp_errors(mesh: Mesh):
    """The MSS is clamped when a connection begins, so TCP works where pods receive no ICMP error."""
    for pod in mesh.lab.pods:
        pod.run(["nft", "-f", "-"], input=DROP_ICMP_ERRORS)

    async def everything() -> dict[Pair, Answer]:
        async with stations(mesh.lab.pods):
            return await streams(asked, 1 << 20)

    asked = between(mesh)
    answers = asyncio.run(everything())
    assert {str(p): a for p, a in answers.items() if a != address(p.sender, p)} == {}


@pytest.mark.parametrize(
    ("one", "other", "mtu"),
    [
        ("cloud-2-pod-1", "harbour-2-pod-1", NARROW),
        ("harbour-2-pod-1", "cloud-2-pod-1", NARROW),
        ("cloud-2-pod-1", "ship-2-pod-1", NARROW),
        ("ship-2-pod-1", "harbour-2-pod-1", NARROW),
        ("ship-1-pod-1", "ship-2-pod-1", 1500),  # inside a region the MSS is not changed
    ],
)
def test_the_mss_fits_the_smallest_mtu_of_the_path(mesh: Mesh, one: str, other: str, mtu: int):
    server, client = mesh.lab.pod(other), mesh.lab.pod(one)
    for target in (server.v4, server.v6):
        with (
            server.socket(family(target), socket.SOCK_STREAM) as listener,
            client.socket(family(target), socket.SOCK_STREAM) as connection,
        ):
            listener.bind((str(target), PORT + 1))
            listener.listen()
            connection.settimeout(5)
            connection.connect((str(target), PORT + 1))
            # IP and TCP header, and 12 bytes for the timestamp option in every segment.
            headers = 20 + 20 + 12 if version(target) == 4 else 40 + 20 + 12
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == mtu - headers
