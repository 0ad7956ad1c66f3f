from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from node.box import Box
from node.pod_region import Region
from node.worlds import HOST


@pytest.fixture
def box(netns: Callable[[], str]) -> Iterator[Callable[[], Box]]:
    """Return a function that makes a host in a namespace of its own."""
    boxes: list[Box] = []

    def add() -> Box:
        boxes.append(Box(netns()))
        return boxes[-1]

    yield add
    for one in boxes:
        one.close()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """A stack that is closed when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "sysctls"


@pytest.fixture
def node(box: Callable[[], Box]) -> Box:
    """A host with a LAN, an uplink and pods, without objects of ravenvpn."""
    one = box()
    one.sh(HOST)
    return one


@pytest.fixture
def gateway_node(node: Box, held: ExitStack) -> Box:
    """`node` with ravenvpn0 held open, as by an agent."""
    held.enter_context(node.tun())
    return node


@pytest.fixture
def region(box: Callable[[], Box], state_file: Path, held: ExitStack) -> Region:
    """A gateway and a pod without objects of ravenvpn. The router's MAC is known, so that packets leave."""
    node, pod = box(), box()
    node.sh(HOST)
    node.sh(
        f"""
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip link add pod type veth peer name eth0 netns {pod.name}
        ip link set pod master cni0 up
        ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
        ip neigh add fd00:10::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
        """
    )
    pod.sh(
        """
        ip addr add 10.244.1.9/24 dev eth0; ip addr add fd00:1::9/64 dev eth0; ip link set eth0 up
        ip route add default via 10.244.1.1; ip -6 route add default via fd00:1::1
        """
    )
    return Region(node, pod, held.enter_context(node.tun()), state_file)
