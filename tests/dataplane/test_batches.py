"""Offloads in a whole body: few calls move many packets, and no packet is lost if the kernel refuses an offload."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import random
import socket
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
from dataplane.packets import ACK, PSH, VirtioHeader, apart, superpacket, tcp, udp
from dataplane.rig import BOB, Clock, End, Eve, message, settle, two

from ravenvpn.dataplane.coalesce import Coalescer
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.dataplane.events import CounterSet
from ravenvpn.dataplane.tun_writer import TunWriter
from ravenvpn.offloads import Offloads

A, B = "10.1.0.1", "10.2.0.1"
A6, B6 = "fd01::1", "fd02::1"
OFF = [offload.name for offload in fields(Offloads)]


def bulk(size: int, *, addresses=(A, B), sequence: int = 1, **more) -> bytes:
    return tcp(*addresses, random.Random(size).randbytes(size), sequence=sequence, flags=ACK, **more)


@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
@pytest.mark.parametrize("addresses", [(A, B), (A6, B6)], ids=["inner4", "inner6"])
async def test_a_superpacket_crosses_in_four_system_calls(body, family, addresses):
    """One read, one send, one receive, one write. The superpacket arrives unchanged."""
    async with two(body, family=family) as pair:
        await pair.connect()
        before, there = pair.alice.counters, pair.bob.counters
        frame = superpacket(bulk(45 * 1360, addresses=addresses), 1360, hdr_len=40 if addresses == (A, B) else 60)
        pair.alice.wire.send(frame)
        await pair.settle()
        assert pair.bob.frames() == [frame]
        alice, bob = pair.alice.counters, pair.bob.counters
        calls = (
            alice.tun_reads - before.tun_reads,
            alice.udp_writes - before.udp_writes,
            bob.udp_reads - there.udp_reads,
            bob.tun_writes - there.tun_writes,
        )
        assert calls == (1, 1, 1, 1)
        assert alice.tun_rx_packets - before.tun_rx_packets == 45
        assert bob.tun_tx_packets - there.tun_tx_packets == 45


@pytest.mark.parametrize("off", [(), *[(name,) for name in OFF], tuple(OFF)], ids=lambda off: "+".join(off) or "none")
async def test_every_offload_can_be_switched_off(body, off):
    offloads = replace(Offloads(), **dict.fromkeys(off, False))
    async with two(body, offloads=offloads) as pair:
        await pair.connect()
        assert pair.alice.plane.offloads() == replace(offloads, tun_batch=offloads.tun_batch and body == "native")
        whole = bulk(10 * 1000 + 7)
        datagrams = udp(A, B, bytes(5 * 200 + 3), ports=(7, 8))
        pair.alice.wire.send(superpacket(whole, 1000))
        pair.alice.wire.send(superpacket(datagrams, 200))
        await pair.settle()
        got = pair.bob.packets()
        assert b"".join(p[40:] for p in got if p[9] == 6) == whole[40:]
        assert [len(p) - 28 for p in got if p[9] == 17] == [200] * 5 + [3]
        assert pair.alice.drops() == pair.bob.drops() == {}
        if off == tuple(OFF):
            assert pair.alice.counters.udp_tx_datagrams == 1 + 11 + 6


@pytest.mark.parametrize("offload", [True, False])
async def test_frames_that_came_together_are_written_by_one_call(body, offload):
    async with two(body, offloads=Offloads(tun_batch=offload)) as pair:
        await pair.connect()
        before = pair.bob.counters
        packets = [udp(A, B, bytes(100), ports=(flow, 80)) for flow in range(16)]
        for packet in packets:
            pair.alice.put(packet)
        await pair.settle()
        assert pair.bob.packets() == packets
        together = pair.bob.plane.offloads().tun_batch
        assert pair.bob.counters.tun_writes - before.tun_writes == (1 if together else 16)
        assert pair.bob.counters.tun_tx_packets - before.tun_tx_packets == 16
        if not offload or body == "pure":
            assert not together
        elif tuple(map(int, platform.release().split(".")[:2])) >= (6, 4) and not _io_uring_is_disabled():
            assert together


def _io_uring_is_disabled() -> bool:
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    return switch.exists() and int(switch.read_text()) != 0


async def test_sixteen_flows_at_once_are_all_joined(body):
    async with two(body) as pair:
        await pair.connect()
        for step in range(4):
            for flow in range(16):
                pair.alice.put(tcp(A, B, bytes(500), ports=(flow, 80), sequence=1 + 500 * step, flags=ACK))
        await pair.settle()
        frames = pair.bob.frames()
        assert sum(len(apart(frame)) for frame in frames) == 64
        assert len(frames) <= 32, "several packets a write, though no two neighbours belong together"


async def test_order_within_a_flow_survives_everything(body):
    """Sizes, flags and other flows are random: each flow's bytes arrive in order, each packet once."""
    chance = random.Random(5)
    async with two(body) as pair:
        await pair.connect()
        sent: dict[int, bytes] = dict.fromkeys(range(5), b"")
        for _ in range(200):
            flow = chance.randrange(5)
            size = chance.choice([0, 1, 100, 1380, 1380, 1380, 20_000])
            data = chance.randbytes(size)
            packet = tcp(
                A, B, data, ports=(flow, 80), sequence=1 + len(sent[flow]), flags=chance.choice([ACK, ACK, ACK | PSH])
            )
            sent[flow] += data
            pair.alice.wire.send(superpacket(packet, 1380) if size > 1380 else bytes(10) + packet)
            if chance.random() < 0.1:
                await pair.settle()
        await pair.settle()
        received: dict[int, bytes] = dict.fromkeys(range(5), b"")
        for packet in pair.bob.packets():
            flow, _, sequence = struct.unpack_from("!HHI", packet, 20)
            assert sequence == 1 + len(received[flow])
            received[flow] += packet[40:]
        assert received == sent


@pytest.mark.parametrize(
    ("packets", "runs"),
    [
        ([100] * 64, [64]),
        ([100] * 65, [64, 1]),
        ([100] * 3 + [20] + [100] * 2, [4, 2]),  # a shorter packet ends a run
        ([20] + [100] * 2, [1, 2]),  # a longer packet begins a run
        ([1392] * 46, [45, 1]),  # 65,507 bytes of UDP payload
    ],
    ids=["64", "65", "a tail", "growing", "the largest datagram"],
)
async def test_runs_keep_the_limits_of_udp_gso(body, packets, runs):
    async with two(body) as pair:
        await pair.connect()
        with Eve() as eve:
            eve.socket.setsockopt(17, 104, 1)  # UDP_GRO: datagrams sent in one call arrive in one
            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            for frame in range(0, len(packets), 16):
                pair.alice.put(*[udp(A, B, bytes(size)) for size in packets[frame : frame + 16]])
            await pair.settle()
            found = []
            for data, ancillary, _, _ in iter(lambda: receive(eve.socket), None):
                segment = next((struct.unpack("=i", v)[0] for level, _, v in ancillary if level == 17), len(data))
                found.append(-(-len(data) // segment))
            assert sum(found) == len(packets)
            if len(packets) <= 16:
                assert found == runs
            else:
                assert max(found) <= max(runs)


def receive(one: socket.socket):
    try:
        return one.recvmsg(1 << 16, 256)
    except BlockingIOError:
        return None


async def test_a_large_superpacket_fills_its_run_to_the_limit(body):
    async with two(body) as pair:
        await pair.connect()
        with Eve() as eve:
            eve.socket.setsockopt(17, 104, 1)
            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            pair.alice.wire.send(superpacket(udp(A, B, bytes(130 * 100)), 100))
            await pair.settle()
            sizes = [len(data) for data, *_ in iter(lambda: receive(eve.socket), None)]
            assert sizes == [64 * 160, 64 * 160, 2 * 160]


async def test_segmentation_that_is_refused_is_given_up_and_nothing_is_lost(body):
    """The kernel refuses UDP GSO with EINVAL on a socket without UDP checksums."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.v4.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        frame = superpacket(bulk(20 * 1000), 1000, hdr_len=40)
        for _ in range(2):
            pair.alice.wire.send(frame)
            await pair.settle()
        assert [packet for frame in pair.bob.frames() for packet in apart(frame)] == apart(frame) * 2
        assert pair.alice.counters.fallbacks == {"udp_gso": 1}
        assert not pair.alice.plane.offloads().udp_gso
        assert pair.alice.drops() == {}


async def test_refused_datagrams_are_counted_and_segmentation_is_not_blamed(body):
    """A broadcast without SO_BROADCAST fails with and without segmentation."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.set_endpoint(BOB, Endpoint("255.255.255.255", 9))
        pair.alice.wire.send(superpacket(bulk(5000), 1000))
        await pair.settle()
        assert pair.alice.drops() == {"SEND_FAILED": 5}
        assert pair.alice.plane.offloads().udp_gso


def joined(packets: list[bytes]) -> Coalescer:
    buffer = bytearray(b"".join(packets))
    coalescer = Coalescer(buffer, memoryview(buffer), tcp=True, udp=True)
    at = 0
    for packet in packets:
        coalescer.add(at, len(packet), None)
        at += len(packet)
    return coalescer


@pytest.mark.parametrize(
    ("packets", "given_up"),
    [
        ([tcp(A, B, bytes(100), sequence=1 + 100 * n) for n in range(5)], "tun_gro"),
        ([udp(A6, B6, bytes(100)) for n in range(5)], "tun_gro_udp"),
    ],
    ids=["tcp", "udp"],
)
def test_joining_that_is_refused_is_given_up_and_nothing_is_lost(packets, given_up):
    """The behaviour of Linux 6.6.44. The refusal is simulated, since other kernels accept valid frames."""
    written = []

    def refusing(fd, parts):
        frame = b"".join(parts)
        if VirtioHeader.of(frame).gso_type:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        written.append(frame)
        return len(frame)

    tally = CounterSet()
    outlet = TunWriter(-1, tally, refusing)
    for turn in range(3):
        coalescer = joined(packets)
        outlet.write(coalescer)
        assert (coalescer.tcp, coalescer.udp) == (
            (turn < 2 or given_up != "tun_gro"),
            (turn < 2 or given_up != "tun_gro_udp"),
        )
    assert written == [bytes(10) + packet for packet in packets] * 3
    assert tally.fallbacks == {given_up: 1}
    assert tally.tun_tx_packets == 15
    assert sum(tally.drops) == 0


async def test_a_full_tun_loses_packets_and_says_so(body):
    async with two(body) as pair:
        _, yours = await pair.connect()
        with Eve() as eve:
            pair.bob.inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            lost = 0
            for counter in range(100, 3000):
                eve.send(message(yours, counter, udp(A, B, bytes(1000), ports=(counter, 1))), pair.bob.endpoint())
                if counter % 50 == 0:
                    await pair.settle()
            await pair.settle()
            lost = pair.bob.drops().get("TUN_WRITE_FAILED", 0)
            assert lost > 0
            assert len(pair.bob.packets()) == 2900 - lost


async def test_what_the_kernel_dropped_is_counted(body):
    """The kernel reports its drops by SO_RXQ_OVFL."""
    clock = Clock()
    bob = End(body, clock)
    with Eve() as eve:
        try:
            bob.v4.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
            for n in range(100):
                eve.send(b"\1" + bytes([n]), bob.endpoint())
            bob.start()
            await settle(bob)
            eve.send(b"\1", bob.endpoint())
            await settle(bob)
            got = len(bob.happened())
            assert got < 101
            assert bob.drops() == {"SOCKET_OVERFLOW": 101 - got}
        finally:
            bob.close()


async def test_a_quiet_direction_is_not_starved(body):
    """A budget per turn: a TUN that is never empty must not block the other direction."""
    async with two(body) as pair:
        await pair.connect()
        for n in range(2000):
            pair.alice.put(udp(A, B, bytes(100), ports=(n, 1)))
        pair.bob.put(udp(B, A, b"answer"))
        for _ in range(6):
            await asyncio.sleep(0)
        assert len(pair.alice.packets()) == 1
        assert pair.alice.counters.tun_rx_packets < 2000
        await pair.settle()
        assert len(pair.bob.packets()) == 2000


async def test_nothing_leaks_a_descriptor(body):
    """Descriptors are borrowed: the data plane opens none and closes none."""
    before = sorted(os.listdir("/proc/self/fd"))
    async with two(body) as pair:
        await pair.connect()
        open_here = sorted(os.listdir("/proc/self/fd"))
        pair.alice.plane.set_sockets(None, None)
        pair.alice.plane.set_sockets(pair.alice.v4.fileno(), None)
        pair.alice.plane.freeze()
        assert sorted(os.listdir("/proc/self/fd")) == open_here
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [65_475, 65_476, 65_535])
async def test_a_packet_too_large_for_any_datagram_is_counted(body, size):
    """IPv4 allows 65,507 bytes of UDP payload, of which WireGuard takes 32. The TUN's MTU may be larger."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.set_mtu(size)
        pair.alice.put(udp(A, B, bytes(size - 28)))
        await pair.settle()
        fits = size == 65_475
        assert len(pair.bob.packets()) == fits
        assert pair.alice.drops() == ({} if fits else {"SEND_FAILED": 1})
