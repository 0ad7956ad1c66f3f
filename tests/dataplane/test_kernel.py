"""Data planes with real TUN devices, veth pairs, and the kernel's TCP and UDP, in namespaces of the test.

Both data planes run in this process. A thread enters a namespace only to open a descriptor there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import TypeVar

import pytest
from dataplane.packets import udp
from dataplane.rig import ALICE, BOB, keypairs

from ravenvpn import dataplane
from ravenvpn.dataplane.contract import DataPlane, Endpoint, PeerId, Source
from ravenvpn.offloads import Offloads
from ravenvpn.tunnel.linux import udp as outer
from ravenvpn.tunnel.linux.tun import Tun

pytestmark = [pytest.mark.root, pytest.mark.needs("ip")]

Result = TypeVar("Result")
PORT = 51820
CLONE_NEWNET = 0x40000000


def inside(namespace: str, work: Callable[[], Result]) -> Result:
    """Call `work` in a new thread inside `namespace`."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Host:
    """A namespace with an underlay address 192.0.2.N (2001:db8::N) and a tunnel address 10.N.0.1 (fd0N::1)."""

    def __init__(self, namespace: str, number: int, *, peer: PeerId, body: str, offloads: Offloads, mtu: int) -> None:
        self.namespace, self.number, self.peer = namespace, number, peer
        self.tun = inside(namespace, lambda: Tun.open("tun0", tso=offloads.tun_tso, uso=offloads.tun_uso))
        self.sockets = inside(namespace, lambda: outer.bind(PORT))
        self.ip("addr", "add", f"10.{number}.0.1/8", "dev", "tun0")
        self.ip("addr", "add", f"fd00:{number}::1/16", "dev", "tun0", "nodad")
        self.ip("link", "set", "tun0", "mtu", str(mtu), "up")
        self.plane: DataPlane = dataplane.create(
            tun=self.tun.fd, offloads=replace(offloads, tun_uso=offloads.tun_uso and self.tun.uso), body=body
        )
        self.plane.set_mtu(mtu)
        self.plane.set_sockets(*self.sockets.descriptors)
        self.plane.add_peer(peer)
        prefixes = [ip_network(f"10.{3 - number}.0.0/16"), ip_network(f"fd00:{3 - number}::/32")]
        for prefix in prefixes:
            self.plane.route(prefix, [peer])
        self.plane.accept(peer, prefixes)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.namespace, *words], check=True, timeout=10)

    def run(self, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.namespace, *words], check=True, timeout=10, capture_output=True)

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        one = inside(self.namespace, lambda: socket.socket(family, kind))
        one.setblocking(False)
        return one

    def address(self, family: socket.AddressFamily) -> str:
        return f"10.{self.number}.0.1" if family == socket.AF_INET else f"fd00:{self.number}::1"

    def underlay(self, family: int) -> Endpoint:
        return Endpoint(f"192.0.2.{self.number}" if family == 4 else f"2001:db8::{self.number}", PORT)

    def drops(self) -> dict[str, int]:
        """Return the drops except NO_ROUTE.

        The kernel itself causes those (router solicitations, multicast reports).
        """
        return {d.name: n for d, n in self.plane.counters().drops.items() if n and d.name != "NO_ROUTE"}

    def close(self) -> None:
        self.plane.stop()
        self.plane.set_sockets(None, None)
        self.sockets.close()
        self.tun.close()


def join(one: str, two: str, mtu: int) -> None:
    """Create a veth pair between two namespaces, with addresses of both families."""
    ends = ["netns", one, "type", "veth", "peer", "name", "veth0", "netns", two]
    subprocess.run(["ip", "link", "add", "veth0", *ends], check=True, timeout=10)
    for number, name in ((1, one), (2, two)):
        for words in (
            ["addr", "add", f"192.0.2.{number}/24", "dev", "veth0"],
            ["addr", "add", f"2001:db8::{number}/64", "dev", "veth0", "nodad"],
            ["link", "set", "veth0", "mtu", str(mtu), "up"],
        ):
            subprocess.run(["ip", "-n", name, *words], check=True, timeout=10)


@contextlib.asynccontextmanager
async def link(
    netns, body: str, *, family: int = 4, mtu: int = 1420, underlay: int = 1500, offloads: Offloads | None = None
) -> AsyncIterator[tuple[Host, Host]]:
    """Yield two hosts on a veth pair, with keys installed."""
    one, two = netns(), netns()
    join(one, two, underlay)
    hosts: list[Host] = []
    try:
        for number, name, peer in ((1, one, BOB), (2, two, ALICE)):
            hosts.append(Host(name, number, peer=peer, body=body, offloads=offloads or Offloads(), mtu=mtu))
        alice, bob = hosts
        alice.plane.set_endpoint(BOB, bob.underlay(family))
        bob.plane.set_endpoint(ALICE, alice.underlay(family))
        loop = asyncio.get_running_loop()
        for host in hosts:
            host.plane.start(loop, host.plane.drain_events)
        mine, yours = keypairs(dataplane.boottime())
        bob.plane.install_keypair(ALICE, yours)
        alice.plane.install_keypair(BOB, mine)
        yield alice, bob
    finally:
        for host in hosts:
            host.close()


async def transfer(sender: Host, receiver: Host, size: int, family: socket.AddressFamily = socket.AF_INET) -> None:
    """Send `size` random bytes over the kernel's TCP and compare digests."""
    loop = asyncio.get_running_loop()
    data = random.Random(size).randbytes(size)
    listener, client = receiver.socket(family, socket.SOCK_STREAM), sender.socket(family, socket.SOCK_STREAM)
    digest = hashlib.sha256()

    async def receive() -> None:
        served, _ = await loop.sock_accept(listener)
        with served:
            while chunk := await loop.sock_recv(served, 1 << 18):
                digest.update(chunk)

    async def send() -> None:
        await loop.sock_connect(client, (receiver.address(family), 7))
        await loop.sock_sendall(client, data)
        client.shutdown(socket.SHUT_WR)

    with listener, client:
        # The last ACK of an earlier transfer may still be in flight.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((receiver.address(family), 7))
        listener.listen()
        async with asyncio.timeout(30):
            await asyncio.gather(receive(), send())
    assert digest.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("inner", [socket.AF_INET, socket.AF_INET6], ids=["inner4", "inner6"])
@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_tcp_moves_in_superpackets_both_ways(netns, body, family, inner):
    async with link(netns, body, family=family) as (alice, bob):
        await transfer(alice, bob, 3 << 20, inner)
        await transfer(bob, alice, 3 << 20, inner)
        counters, there = alice.plane.counters(), bob.plane.counters()
        assert counters.tun_rx_packets / counters.tun_reads > 3, "superpackets from the TUN (TSO)"
        assert counters.udp_tx_datagrams / counters.udp_writes > 3, "runs on the wire (UDP GSO)"
        assert there.udp_rx_datagrams / there.udp_reads > 3, "runs from the wire (UDP GRO)"
        assert there.tun_tx_packets / there.tun_writes > 3, "superpackets to the TUN (GRO)"
        assert counters.fallbacks == there.fallbacks == {}
        assert alice.drops() == bob.drops() == {}


@pytest.mark.parametrize(
    "off",
    ["tun_tso", "tun_gro", "udp_gso", "udp_gro"],
)
async def test_tcp_moves_without_each_offload(netns, body, off):
    # one call per frame, so that calls can be counted
    offloads = replace(Offloads(), tun_batch=False, **{off: False})
    async with link(netns, body, offloads=offloads) as (alice, bob):
        await transfer(alice, bob, 2 << 20)
        counters, there = alice.plane.counters(), bob.plane.counters()
        ratio = {
            "tun_tso": counters.tun_rx_packets / counters.tun_reads,
            "udp_gso": counters.udp_tx_datagrams / counters.udp_writes,
            "udp_gro": there.udp_rx_datagrams / there.udp_reads,
            "tun_gro": there.tun_tx_packets / there.tun_writes,
        }
        # The native body sends and receives several single datagrams per call (sendmmsg, recvmmsg).
        assert ratio[off] == 1.0 or (body == "native" and off in ("udp_gso", "udp_gro"))
        assert alice.drops() == bob.drops() == {}


@pytest.mark.parametrize("inner", [socket.AF_INET, socket.AF_INET6], ids=["inner4", "inner6"])
async def test_udp_moves_in_superpackets(netns, body, inner):
    """An application sends with UDP_SEGMENT, as QUIC does: one read from the TUN and one write to it (USO, GRO)."""
    async with link(netns, body) as (alice, bob):
        if not alice.tun.uso:
            pytest.skip("NOT RUN, THIS KERNEL'S TUN LACKS USO (LINUX 6.2)")
        loop = asyncio.get_running_loop()
        receiver = bob.socket(inner, socket.SOCK_DGRAM)
        receiver.bind((bob.address(inner), 9))
        sender = alice.socket(inner, socket.SOCK_DGRAM)
        with receiver, sender:
            before, there = alice.plane.counters(), bob.plane.counters()
            data = random.Random(1).randbytes(20 * 1200 + 77)
            sender.sendmsg([data], [(17, 103, struct.pack("=H", 1200))], 0, (bob.address(inner), 9))
            got = [await asyncio.wait_for(loop.sock_recv(receiver, 4096), 5) for _ in range(21)]
            assert b"".join(got) == data
            assert [len(one) for one in got] == [1200] * 20 + [77]
            counters, after = alice.plane.counters(), bob.plane.counters()
            assert counters.tun_rx_packets - before.tun_rx_packets >= 21
            assert counters.tun_reads - before.tun_reads <= 3
            assert after.tun_writes - there.tun_writes <= 3


async def test_segmentation_is_not_blamed_for_a_route_that_leads_nowhere(netns, body):
    """A blackhole route answers EINVAL like a kernel without UDP GSO, but for single messages too."""
    async with link(netns, body) as (alice, bob):
        alice.ip("route", "add", "blackhole", "198.51.100.0/24")
        alice.plane.set_endpoint(BOB, Endpoint("198.51.100.1", PORT))
        with alice.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendmsg([bytes(12_000)], [(17, 103, struct.pack("=H", 1200))], 0, (bob.address(socket.AF_INET), 9))
            async with asyncio.timeout(5):
                while alice.drops() != {"SEND_FAILED": 10}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert alice.plane.offloads().udp_gso
        assert alice.plane.counters().fallbacks == {}


@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_an_underlay_smaller_than_the_tunnel_fragments(netns, body, family):
    """UDP GSO does not fragment (EMSGSIZE), so this peer gets single messages. GSO stays on for other peers."""
    async with link(netns, body, family=family, underlay=1300) as (alice, bob):
        await transfer(alice, bob, 1 << 20)
        assert alice.drops() == {}
        assert alice.plane.offloads().udp_gso
        counters = alice.plane.counters()
        # The first refusal is remembered for this peer.
        assert counters.udp_writes <= counters.udp_tx_datagrams + 1
        for _ in range(10):
            alice.plane.send_inner(BOB, udp("10.1.0.1", "10.2.0.1", bytes(1000)))
        # The last ACKs of the transfer may be among them.
        after = alice.plane.counters()
        assert after.udp_writes - counters.udp_writes == after.udp_tx_datagrams - counters.udp_tx_datagrams >= 10


@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_a_probe_that_may_not_be_fragmented_is_refused_when_too_large(netns, body, family):
    async with link(netns, body, family=family, underlay=1300) as (alice, _):
        alice.plane.send_inner(BOB, udp("10.1.0.1", "10.2.0.1", bytes(1300)), outer_df=True)
        assert alice.drops() == {"SEND_FAILED": 1}
        alice.plane.send_inner(BOB, udp("10.1.0.1", "10.2.0.1", bytes(1100)), outer_df=True)
        alice.plane.send_inner(BOB, udp("10.1.0.1", "10.2.0.1", bytes(1300)))
        assert alice.drops() == {"SEND_FAILED": 1}


@pytest.mark.needs("ethtool")
async def test_a_link_without_checksum_offload_carries_runs_or_single_messages(netns, body):
    """Linux before 6.11 answers EIO, and GSO is disabled. Later kernels compute the checksums in software."""
    async with link(netns, body) as (alice, bob):
        alice.run("ethtool", "-K", "veth0", "tx", "off")
        await transfer(alice, bob, 2 << 20)
        assert alice.plane.counters().fallbacks in ({}, {"udp_gso": 1})
        assert alice.drops() == bob.drops() == {}


async def test_an_address_that_goes_is_no_longer_used(netns, body):
    """A gateway with two addresses loses the one in use."""
    async with link(netns, body) as (alice, bob):
        bob.ip("addr", "add", "192.0.2.22/32", "dev", "veth0")
        alice.plane.set_endpoint(BOB, Endpoint("192.0.2.22", PORT))
        await transfer(alice, bob, 1 << 16)
        source = bob.plane.counters().peers[ALICE].source
        assert isinstance(source, Source)
        assert source.host == "192.0.2.22"
        assert alice.plane.counters().peers[BOB].endpoint == Endpoint("192.0.2.22", PORT)
        bob.ip("addr", "del", "192.0.2.22/32", "dev", "veth0")
        bob.plane.send_keepalive(ALICE)
        async with asyncio.timeout(5):
            while alice.plane.counters().peers[BOB].endpoint != bob.underlay(4):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await transfer(alice, bob, 1 << 16)
        assert bob.drops() == {}


@pytest.mark.needs("tc")
async def test_a_slow_link_holds_packets_back_instead_of_losing_them(netns, body):
    """The socket buffer is full (EAGAIN): reading from the TUN pauses until the socket is writable."""
    async with link(netns, body) as (alice, bob):
        alice.run(
            "tc", "qdisc", "add", "dev", "veth0", "root", "tbf", "rate", "100mbit", "burst", "256kb", "limit", "64mb"
        )
        one = alice.sockets.v4
        assert one is not None
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        await transfer(alice, bob, 4 << 20)
        assert alice.drops() == bob.drops() == {}
        calls = alice.plane.counters()
        assert calls.udp_writes > calls.udp_tx_datagrams // 64 + 20, "some sends found the socket full"


@pytest.mark.needs("tc")
async def test_batches_that_wait_for_a_full_socket_survive_switching_gso_off(netns, body):
    async with link(netns, body) as (alice, bob):
        shaping = ["rate", "100mbit", "burst", "64kb", "limit", "64mb"]
        alice.run("tc", "qdisc", "add", "dev", "veth0", "root", "tbf", *shaping)
        one = alice.sockets.v4
        assert one is not None
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        moving = asyncio.create_task(transfer(alice, bob, 4 << 20))
        await asyncio.sleep(0.1)
        alice.plane.set_offloads(Offloads.without(["udp_gso"]))
        before = alice.plane.counters()
        await moving
        assert alice.drops() == bob.drops() == {}
        after = alice.plane.counters()
        datagrams = after.udp_tx_datagrams - before.udp_tx_datagrams
        assert datagrams > 1000, "most of it was sent after the change"


async def test_a_deleted_tun_does_not_spin(netns, body):
    async with link(netns, body) as (alice, bob):
        await transfer(alice, bob, 1 << 16)
        alice.ip("link", "delete", "tun0")
        reads = alice.plane.counters().tun_reads
        bob.plane.send_inner(ALICE, udp("10.2.0.1", "10.1.0.1", b"x"))
        began = os.times()
        await asyncio.sleep(0.3)
        ended = os.times()
        assert ended.user + ended.system - began.user - began.system < 0.2
        assert alice.plane.counters().tun_reads == reads
        assert set(alice.drops()) == {"TUN_WRITE_FAILED"}
