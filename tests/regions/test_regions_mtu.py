"""What is too big for a way is refused with the size that fits, by whoever knows it and in words the sender accepts.

Who knows: the sender's own node where its tunnel is narrow; its gateway where the way from there is (`cloud-1` has a
route to `harbour` with an MTU); the far gateway where its region's own network is (the LAN of `ship`). Pods believe
in 1500 everywhere.
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

from ravenvpn.lab import Lab, LabNode, LabRegion, Nat, Pod
from ravenvpn.lab.topology import Cni

pytestmark = [pytest.mark.root, pytest.mark.needs(*TOOLS), pytest.mark.timeout(240)]

REGIONS = (
    LabRegion("cloud", 2, 1, masquerade=True),
    LabRegion("harbour", 2, 1, masquerade=True),
    LabRegion("ship", 2, 1, Nat.PORT_RESTRICTED, lan_mtu=1400, cni=Cni.CALICO, masquerade=True),
)
DEAF = """table inet deaf {
  chain hear {
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
    """What fits, and the node that is to say so."""
    assert isinstance(pair.sender, Pod)
    assert isinstance(pair.receiver, Pod)
    here, there = pair.sender.node, pair.receiver.node
    if here.region.name == "ship":
        return NARROW, here
    if here.region.name == "cloud" and there.region.name == "harbour":
        return NARROW, mesh.node("cloud-1")
    if there.name == "ship-2":  # behind the LAN that is narrow; the pods of its gateway are before it
        return NARROW, mesh.node("ship-1")
    return WIDE, here


def is_right(mesh: Mesh, pair: Pair, answer: Answer) -> bool:
    """The right figure, from the right node. Another region's node is heard only with the source it announces, one of
    the sender's own region with any of its addresses."""
    mtu, node = limit(mesh, pair)
    if not isinstance(answer, Refusal) or answer.mtu != mtu:
        return False
    if node.region is region(pair.sender):
        return str(answer.offender) in addresses(node)
    return answer.offender == address(node.source, pair)


def region(host: Pod | LabNode) -> LabRegion:
    return (host.node if isinstance(host, Pod) else host).region


@functools.cache
def addresses(node: LabNode) -> set[str]:
    return {entry["local"] for link in json.loads(node.ip("-j address")) for entry in link["addr_info"]}


def test_each_way_says_what_fits(mesh: Mesh):
    asked = between(mesh)
    for size in (NARROW, WIDE):
        able = [pair for pair in asked if limit(mesh, pair)[0] >= size]
        assert able
        fits = ask(mesh, able, size)
        assert {str(p): a for p, a in fits.items() if a != address(p.sender, p)} == {}

        unable = [pair for pair in asked if limit(mesh, pair)[0] == size]
        refused = ask(mesh, unable, size + 1)
        assert {str(p): a for p, a in refused.items() if not is_right(mesh, p, a)} == {}


def test_tcp_needs_no_such_words(mesh: Mesh):
    """Its segments are made to fit when a connection begins: it works where pods hear no ICMP at all."""
    for pod in mesh.lab.pods:
        pod.run(["nft", "-f", "-"], input=DEAF)

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
        ("ship-1-pod-1", "ship-2-pod-1", 1500),  # inside a region nothing is ours
    ],
)
def test_segments_are_as_large_as_the_narrowest_part_of_the_way(mesh: Mesh, one: str, other: str, mtu: int):
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
            # The headers, and 12 for the timestamps that every segment carries.
            headers = 20 + 20 + 12 if version(target) == 4 else 40 + 20 + 12
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == mtu - headers
