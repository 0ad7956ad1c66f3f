"""Offloads changed at run time: they take effect, no packet is lost, and refused offloads stay off."""

from __future__ import annotations

import asyncio
import errno
import platform
import random
import socket
from dataclasses import replace

import pytest
from dataplane.packets import ACK, apart, superpacket, tcp, udp
from dataplane.rig import BOB, BODIES, Eve, two, udp_socket

from ravenvpn.dataplane.contract import Drop
from ravenvpn.dataplane.events import CounterSet
from ravenvpn.dataplane.transmitter import Batch, Transmitter
from ravenvpn.offloads import OFFLOAD_NAMES, Offloads

A, B = "10.1.0.1", "10.2.0.1"
NONE = Offloads.without(OFFLOAD_NAMES)
SOL_UDP, UDP_GRO = 17, 104


def in_force(offloads: Offloads, body: str) -> Offloads:
    """Return the offloads that a body reports for these settings: only the native one has tun_batch."""
    return replace(offloads, tun_batch=offloads.tun_batch and body == "native")


def bulk(packets: int, size: int = 1000) -> bytes:
    return superpacket(tcp(A, B, random.Random(packets).randbytes(packets * size), flags=ACK), size, hdr_len=40)


async def test_every_offload_can_be_changed_at_run_time(body):
    async with two(body) as pair:
        await pair.connect()
        expected = []
        rounds = [Offloads.without([name]) for name in OFFLOAD_NAMES] + [NONE, Offloads()]
        for offloads in rounds:
            for end in (pair.alice, pair.bob):
                end.plane.set_offloads(offloads)
                assert end.plane.offloads() == in_force(offloads, body)
            pair.alice.wire.send(bulk(20))
            pair.alice.put(udp(A, B, b"one by one"))
            expected += [*apart(bulk(20)), udp(A, B, b"one by one")]
            await pair.settle()
        assert pair.bob.packets() == expected
        assert pair.alice.drops() == pair.bob.drops() == {}


async def test_coalescing_for_the_tun_follows_the_setting(body):
    async with two(body) as pair:
        await pair.connect()
        for offloads, frames in ((Offloads.without(["tun_gro"]), 20), (Offloads(), 1)):
            pair.bob.plane.set_offloads(offloads)
            pair.alice.wire.send(bulk(20))
            await pair.settle()
            assert len(pair.bob.frames()) == frames


async def test_segmentation_offload_for_udp_follows_the_setting(body):
    async with two(body) as pair:
        await pair.connect()
        for offloads, calls in ((Offloads.without(["udp_gso"]), 20), (Offloads(), 1)):
            pair.alice.plane.set_offloads(offloads)
            with Eve() as eve:
                eve.socket.setsockopt(SOL_UDP, UDP_GRO, 1)  # datagrams sent in one call arrive in one
                pair.alice.plane.set_endpoint(BOB, eve.endpoint)
                pair.alice.wire.send(bulk(20))
                await pair.settle()
                assert len(eve.captured()) == calls


async def test_coalesced_datagrams_in_the_socket_survive_switching_udp_gro_off(body):
    """The kernel has coalesced them already, and stops reporting their segment size once UDP_GRO is off."""
    async with two(body) as pair:
        await pair.connect()
        pair.bob.plane.stop()
        for _ in range(10):
            pair.alice.wire.send(bulk(20))
        for _ in range(20):
            await asyncio.sleep(0)
        assert pair.bob.frames() == []  # they are in the socket buffer of Bob, whose data plane is stopped
        pair.bob.plane.set_offloads(Offloads.without(["udp_gro"]))
        pair.bob.start()
        await pair.settle()
        assert pair.bob.packets() == apart(bulk(20)) * 10
        assert pair.bob.drops() == {}
        assert pair.bob.v4.getsockopt(SOL_UDP, UDP_GRO) == 0
        pair.bob.plane.set_offloads(Offloads())
        assert pair.bob.v4.getsockopt(SOL_UDP, UDP_GRO) == 1


async def test_offloads_changed_under_traffic_lose_no_packet(body):
    async with two(body) as pair:
        await pair.connect()
        chance = random.Random(1)
        sent = []
        for step in range(200):
            packet = udp(A, B, step.to_bytes(4, "big") + bytes(chance.choice([0, 500, 1000])), ports=(step, 1))
            sent.append(packet)
            pair.alice.put(packet)
            if step % 3 == 0:
                pair.alice.wire.send(bulk(5))
                sent += apart(bulk(5))
            if step % 2 == 0:
                off = [name for name in OFFLOAD_NAMES if chance.random() < 0.5]
                chance.choice([pair.alice, pair.bob]).plane.set_offloads(Offloads.without(off))
            await asyncio.sleep(0)
        await pair.settle()
        assert sorted(pair.bob.packets()) == sorted(sent)
        assert pair.alice.drops() == pair.bob.drops() == {}


def test_a_batch_that_waits_for_a_full_socket_is_split_when_gso_is_switched_off(monkeypatch):
    """Tests the Python body; the native one has the same test in its crate."""
    tally = CounterSet()
    transmitter = Transmitter(tally, gso=True, gro=True)
    with udp_socket(socket.AF_INET, "127.0.0.1") as ours, Eve(host="127.0.0.1") as eve:
        transmitter.set_sockets(ours.fileno(), None)
        transmitter.on_full = lambda fd: True
        eve.socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        address = eve.socket.getsockname()
        batch = Batch(bytes(250), 100, 3, None, address, socket.AF_INET, [], 0)
        with monkeypatch.context() as full:
            full.setattr(Transmitter, "_send_once", lambda self, batch: errno.EAGAIN)
            transmitter.send(batch)
        assert transmitter.is_blocked
        transmitter.set_gso(False)
        transmitter.resume()
        assert [len(datagram) for datagram in eve.captured()] == [100, 100, 50]
        transmitter.set_sockets(None, None)
    assert sum(tally.drops) == 0


async def test_an_offload_that_the_kernel_refused_stays_off(body):
    """The kernel refuses UDP GSO with EINVAL on a socket without UDP checksums."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.v4.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        pair.alice.wire.send(bulk(20))
        await pair.settle()
        assert not pair.alice.plane.offloads().udp_gso
        pair.alice.plane.set_offloads(Offloads.without(["udp_gro"]))
        pair.alice.plane.set_offloads(Offloads())
        assert pair.alice.plane.offloads() == in_force(Offloads.without(["udp_gso"]), body)
        assert pair.alice.counters.fallbacks == {"udp_gso": 1}
        assert pair.alice.counters.drops[Drop.SEND_FAILED] == 0


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 4), reason="io_uring can not write to this kernel's TUN"
)
async def test_writing_several_frames_a_call_follows_the_setting():
    if "native" not in BODIES:
        pytest.skip("THE NATIVE BODY IS NOT BUILT")
    async with two("native") as pair:
        await pair.connect()
        writes = []
        for offloads in (Offloads.without(["tun_batch"]), Offloads(), Offloads.without(["tun_batch"])):
            pair.bob.plane.set_offloads(offloads)
            before = pair.bob.counters.tun_writes
            for flow in range(16):
                pair.alice.put(udp(A, B, bytes(100), ports=(flow, 80)))
            await pair.settle()
            assert len(pair.bob.packets()) == 16
            writes.append(pair.bob.counters.tun_writes - before)
        if not pair.bob.plane.offloads().tun_batch and writes[1] == 16:
            pytest.skip("this host has no io_uring")
        assert writes == [16, 1, 16]
