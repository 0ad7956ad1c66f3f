"""Changes on a running tunnel (listen port, suites, preshared key, offloads) lose no packet and keep sessions."""

import asyncio
import os
import socket
from dataclasses import replace
from ipaddress import IPv6Address, ip_network

import pytest

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.errors import HostError
from ravenvpn.offloads import OFFLOAD_NAMES, Offloads
from ravenvpn.tunnel import replaced_sockets
from ravenvpn.tunnel.device import PeerSettings
from ravenvpn.tunnel.driver import Listeners, Tunnel
from ravenvpn.tunnel.linux.opener import adopt_resources, open_resources
from ravenvpn.tunnel.linux.udp import bind

ANNA, BERT = IPv6Address("fd00:1::a"), IPv6Address("fd00:1::b")
PROBE = 10277
BOTH = frozenset(Suite)


def probe_packet(source: IPv6Address, destination: IPv6Address, number: int) -> bytes:
    """Return a UDP packet to the probe port with a number as its payload."""
    udp = (40000).to_bytes(2) + PROBE.to_bytes(2) + (16).to_bytes(2) + b"\x00\x01" + number.to_bytes(8)
    return b"\x60\0\0\0" + len(udp).to_bytes(2) + b"\x11\x40" + source.packed + destination.packed + udp


class Node:
    """A tunnel without a TUN device that records the numbers it receives."""

    def __init__(self, name: str, address: IPv6Address, body: str) -> None:
        self.name, self.address = name, address
        self.key = PrivateKey.generate(os.urandom)
        self.numbers: list[int] = []
        self.arrived = asyncio.Event()
        self.tunnel = Tunnel(
            open_resources(), suites=BOTH, listeners=Listeners(on_inner_packet=self._on_inner_packet), body=body
        )
        self.tunnel.set_private_key(self.key)
        self.tunnel.set_own_address(address, PROBE)
        self.tunnel.start()

    def _on_inner_packet(self, _peer: str, packet: bytes, _ce: bool) -> None:
        self.numbers.append(int.from_bytes(packet[-8:]))
        self.arrived.set()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.tunnel.listen_port)

    def knows(self, other: "Node", *, at: Endpoint | None = None, suites: frozenset[Suite] = BOTH) -> None:
        settings = PeerSettings(other.name, (other.key.public,), endpoints=(at,) if at else (), suites=suites)
        self.tunnel.peers.set(settings)
        self.tunnel.peers.accept(other.name, [ip_network(other.address)])

    def send(self, other: "Node", number: int) -> None:
        self.tunnel.peers.send_inner(other.name, probe_packet(self.address, other.address, number))

    async def receive(self, number: int) -> None:
        """Wait until this number has arrived."""
        async with asyncio.timeout(5):
            while number not in self.numbers:
                self.arrived.clear()
                await self.arrived.wait()

    def suite(self) -> Suite | None:
        (peer,) = self.tunnel.peers.statuses()
        return peer.suite


@pytest.fixture(params=["pure", "native"])
async def nodes(request):
    """Two nodes with a session."""
    anna, bert = Node("anna", ANNA, request.param), Node("bert", BERT, request.param)
    bert.knows(anna)
    anna.knows(bert, at=bert.endpoint)
    anna.send(bert, 0)
    await bert.receive(0)
    bert.send(anna, 0)
    await anna.receive(0)
    yield anna, bert
    anna.tunnel.stop()
    bert.tunnel.stop()


async def test_a_change_of_the_listen_port_under_traffic_loses_no_packet(nodes):
    """Both ends send a packet each millisecond, while one of them changes its port eight times."""
    anna, bert = nodes
    ports = {bert.tunnel.listen_port}
    for number in range(1, 801):
        anna.send(bert, number)
        bert.send(anna, number)
        if number % 100 == 50:
            bert.tunnel.listen(port=0)
            ports.add(bert.tunnel.listen_port)
        await asyncio.sleep(0.001)
    await bert.receive(800)
    await anna.receive(800)
    assert len(ports) == 9
    assert bert.numbers == anna.numbers == list(range(801))
    assert anna.tunnel.peers.statuses()[0].endpoint == bert.endpoint


async def test_packets_sent_to_the_old_port_arrive_although_nothing_was_sent_from_the_new_one_yet(nodes):
    """Datagrams in the buffer of the old socket, and datagrams in flight at the change."""
    anna, bert = nodes
    anna.send(bert, 1)
    bert.tunnel.listen(port=0)
    anna.send(bert, 2)
    await bert.receive(2)
    assert bert.numbers == [0, 1, 2]


async def test_peers_learn_a_new_port_at_once_from_a_keepalive(nodes):
    anna, bert = nodes
    bert.tunnel.listen(port=0)
    await asyncio.sleep(0.2)
    assert anna.tunnel.peers.statuses()[0].endpoint == bert.endpoint


async def test_the_old_port_is_free_after_a_moment(nodes, monkeypatch):
    monkeypatch.setattr(replaced_sockets, "LINGER", 0.05)
    _, bert = nodes
    old = bert.tunnel.listen_port
    bert.tunnel.listen(port=0)
    await asyncio.sleep(0.2)
    bind(old).close()


async def test_a_port_can_be_changed_back_while_its_old_sockets_are_still_read(nodes):
    anna, bert = nodes
    old = bert.tunnel.listen_port
    bert.tunnel.listen(port=0)
    bert.tunnel.listen(port=old)
    assert bert.tunnel.listen_port == old
    anna.send(bert, 1)
    await bert.receive(1)


async def test_a_stop_closes_replaced_sockets_too():
    before = set(os.listdir("/proc/self/fd"))
    node = Node("anna", ANNA, "pure")
    node.tunnel.listen(port=0)
    node.tunnel.stop()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_suites_count_from_the_next_handshake_on(nodes):
    anna, bert = nodes
    assert (anna.suite(), bert.suite()) == (Suite.AES256GCM, Suite.AES256GCM)
    anna.tunnel.set_suites(frozenset({Suite.CHACHA20POLY1305}))
    anna.send(bert, 1)
    await bert.receive(1)
    assert anna.suite() is Suite.AES256GCM
    # A new handshake, 50 ms later: timestamps of initiations grow in steps of 16 ms (§5.1).
    await asyncio.sleep(0.05)
    anna.tunnel.peers.remove("bert")
    anna.knows(bert, at=bert.endpoint)
    anna.send(bert, 2)
    await bert.receive(2)
    assert (anna.suite(), bert.suite()) == (Suite.CHACHA20POLY1305, Suite.CHACHA20POLY1305)


async def test_another_preshared_key_leaves_the_session_in_force(nodes):
    anna, bert = nodes
    (before,) = anna.tunnel.peers.statuses()
    anna.tunnel.peers.set(replace(anna.tunnel.peers.settings["bert"], preshared_key=PresharedKey(bytes([7]) * 32)))
    anna.send(bert, 1)
    await bert.receive(1)
    bert.send(anna, 1)
    await anna.receive(1)
    (after,) = anna.tunnel.peers.statuses()
    assert after.last_handshake_ns == before.last_handshake_ns


async def test_offloads_change_under_traffic_without_a_lost_packet(nodes):
    anna, bert = nodes
    number = 0
    for off in ((), *((name,) for name in OFFLOAD_NAMES), OFFLOAD_NAMES, ()):
        for node in nodes:
            node.tunnel.set_offloads(Offloads.without(off))
            in_force = node.tunnel.status().offloads
            assert not any(getattr(in_force, name) for name in off)
        for _ in range(20):
            number += 1
            anna.send(bert, number)
            bert.send(anna, number)
        await asyncio.sleep(0.002)
    await bert.receive(number)
    await anna.receive(number)
    assert bert.numbers == anna.numbers == list(range(number + 1))


# Adopted descriptors.


async def test_a_tunnel_on_adopted_sockets_receives_what_waited_in_them():
    """Descriptors kept over a restart: a datagram that arrived while no process read them is not lost."""
    kept = bind(0)
    descriptors = tuple(None if fd is None else os.dup(fd) for fd in kept.descriptors)
    port = kept.port
    kept.close()
    resources = adopt_resources(None, *descriptors)
    bert = Node("bert", BERT, "pure")
    bert.tunnel.stop()
    anna = Node("anna", ANNA, "pure")
    anna.knows(bert, at=Endpoint("127.0.0.1", port))
    anna.send(bert, 1)
    await asyncio.sleep(0.05)  # the initiation waits in the socket
    numbers: asyncio.Queue[bytes] = asyncio.Queue()
    adopted = Tunnel(resources, listeners=Listeners(on_inner_packet=lambda _, packet, __: numbers.put_nowait(packet)))
    assert adopted.listen_port == port
    adopted.set_private_key(bert.key)
    adopted.set_own_address(BERT, PROBE)
    adopted.peers.set(PeerSettings("anna", (anna.key.public,), suites=BOTH))
    adopted.peers.accept("anna", [ip_network(ANNA)])
    adopted.set_suites(BOTH)
    adopted.start()
    assert (await asyncio.wait_for(numbers.get(), 2))[-1] == 1  # before the retry after 5 s
    anna.tunnel.stop()
    adopted.stop()
    assert not {str(fd) for fd in descriptors} & set(os.listdir("/proc/self/fd"))


def test_adopted_sockets_keep_their_port_and_are_set_up_again():
    kept = bind(0)
    assert kept.v4 is not None
    kept.v4.setblocking(True)
    adopted = adopt_resources(None, *(os.dup(fd) for fd in kept.descriptors if fd is not None))
    assert (adopted.sockets.port, adopted.sockets.mark, adopted.tun) == (kept.port, 0, None)
    assert adopted.sockets.v4 is not None
    assert not adopted.sockets.v4.getblocking()
    assert not adopted.sockets.v4.get_inheritable()
    adopted.close()
    kept.close()


@pytest.mark.parametrize("wrong", ["swapped", "file", "stream", "two ports"])
def test_descriptors_that_are_not_a_pair_of_udp_sockets_are_refused_and_stay_open(wrong):
    kept, other = bind(0), bind(0)
    stream = socket.socket()
    file = os.open(os.devnull, os.O_RDONLY)
    (v4, v6), (_, other6) = kept.descriptors, other.descriptors
    pairs = {"swapped": (v6, v4), "file": (file, v6), "stream": (stream.fileno(), v6), "two ports": (v4, other6)}
    with pytest.raises(HostError):
        adopt_resources(None, *pairs[wrong])
    os.close(file)
    for one in (kept, other, stream):
        one.close()
