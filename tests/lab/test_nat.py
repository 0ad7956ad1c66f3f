"""Routers of a lab translate addresses by their kind of NAT, in both families."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ravenvpn.lab import Lab, LabNode, Nat, Region

pytestmark = pytest.mark.root

PORT = 4500


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(
        Region("friend", pods=0),
        Region("stranger", pods=0),
        Region("cone", nodes=2, pods=0, nat=Nat.FULL_CONE),
        Region("restricted", nodes=2, pods=0, nat=Nat.PORT_RESTRICTED),
        Region("symmetric", pods=0, nat=Nat.SYMMETRIC),
        Region("lossy", pods=0),
    ) as lab:
        yield lab


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def udp(family: int) -> Iterator[Callable[[LabNode, int], socket.socket]]:
    """A UDP socket on a node, bound to its address and this port."""
    with ExitStack() as stack:

        def bound(node: LabNode, port: int = PORT) -> socket.socket:
            made = stack.enter_context(node.socket(socket.AF_INET if family == 4 else socket.AF_INET6))
            made.bind((str(node.v4 if family == 4 else node.v6), port))
            made.settimeout(2)
            return made

        yield bound


def mapping(sender: socket.socket, receiver: socket.socket) -> tuple[str, int]:
    """Return the source address and port with which a datagram of `sender` arrives."""
    sender.sendto(b"hello", receiver.getsockname())
    data, source = receiver.recvfrom(100)
    assert data == b"hello"
    return source[:2]


def first_to_arrive(at: socket.socket, *sent: tuple[socket.socket, bytes, tuple[str, int]]) -> bytes:
    """Send all datagrams, over paths that keep their order, and return the first that arrives."""
    for sender, data, target in sent:
        sender.sendto(data, target)
    return at.recv(100)


def outside(lab: Lab, region: str, family: int) -> str:
    """Return the address of a region's router on the internet."""
    router = lab.router(region)
    return str(router.v4 if family == 4 else router.v6)


def test_a_full_cone_admits_any_host_to_a_mapped_port(lab: Lab, udp, family: int):
    inside, friend, stranger = (udp(lab.node(name)) for name in ("cone-1", "friend-1", "stranger-1"))
    mapped = mapping(inside, friend)
    assert mapped[0] == outside(lab, "cone", family)

    stranger.sendto(b"from a stranger", mapped)
    assert inside.recv(100) == b"from a stranger"


def test_a_full_cone_maps_two_hosts_with_the_same_port_to_two_ports(lab: Lab, udp, family: int):
    one, two, friend, stranger = (udp(lab.node(name)) for name in ("cone-1", "cone-2", "friend-1", "stranger-1"))
    to_one, to_two = mapping(one, friend), mapping(two, friend)
    assert to_one != to_two

    stranger.sendto(b"for one", to_one)
    stranger.sendto(b"for two", to_two)
    assert (one.recv(100), two.recv(100)) == (b"for one", b"for two")


def test_a_port_restricted_nat_has_one_mapping_and_admits_only_called_ports(lab: Lab, udp, family: int):
    inside, friend, stranger = (udp(lab.node(name)) for name in ("restricted-1", "friend-1", "stranger-1"))
    mapped = mapping(inside, friend)
    assert mapped[0] == outside(lab, "restricted", family)

    arrived = first_to_arrive(inside, (stranger, b"from a stranger", mapped), (friend, b"from the friend", mapped))
    assert arrived == b"from the friend"

    other_port = udp(lab.node("friend-1"), PORT + 1)
    arrived = first_to_arrive(
        inside, (other_port, b"from its other port", mapped), (friend, b"from the friend", mapped)
    )
    assert arrived == b"from the friend"

    assert mapping(inside, stranger) == mapped, "one mapping for all destinations, also after an unsolicited packet"
    stranger.sendto(b"welcome now", mapped)
    assert inside.recv(100) == b"welcome now"


def test_a_symmetric_nat_has_another_mapping_for_every_destination(lab: Lab, udp, family: int):
    inside, friend, stranger = (udp(lab.node(name)) for name in ("symmetric-1", "friend-1", "stranger-1"))
    to_friend, to_stranger = mapping(inside, friend), mapping(inside, stranger)
    assert to_friend[0] == to_stranger[0] == outside(lab, "symmetric", family)
    assert to_friend[1] != to_stranger[1]

    arrived = first_to_arrive(
        inside, (stranger, b"by the friend's mapping", to_friend), (stranger, b"by its own", to_stranger)
    )
    assert arrived == b"by its own"


def test_without_nat_the_source_address_is_kept(lab: Lab, udp):
    one, two = udp(lab.node("friend-1")), udp(lab.node("stranger-1"))
    assert mapping(one, two) == one.getsockname()[:2]


@pytest.mark.needs("conntrack")
def test_rebinding_deletes_a_mapping_and_makes_one_with_another_port(lab: Lab, udp):
    inside, friend = udp(lab.node("restricted-2")), udp(lab.node("friend-1"))
    before = mapping(inside, friend)
    for binding, ports in ((1, range(20_000, 21_000)), (2, range(21_000, 22_000))):
        lab.rebind("restricted", binding)
        after = mapping(inside, friend)
        assert after[1] in ports
        arrived = first_to_arrive(inside, (friend, b"the old way", before), (friend, b"the new way", after))
        assert arrived == b"the new way"
        before = after


def test_an_uplink_loses_the_given_share_of_packets(lab: Lab, udp):
    sender, receiver = udp(lab.node("lossy-1")), udp(lab.node("friend-1"))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    receiver.setblocking(False)

    def arrivals(share: float) -> int:
        lab.set_loss("lossy", share)
        for _ in range(1000):
            sender.sendto(b"x", receiver.getsockname())
        count = 0
        while True:
            try:
                receiver.recv(1)
            except BlockingIOError:
                return count
            count += 1

    assert arrivals(0.0) == 1000
    assert 600 < arrivals(0.3) < 800  # 700 ± 7 standard deviations
    assert arrivals(1.0) == 0
    assert arrivals(0.0) == 1000
