"""Hostile input through the real entry points: drops are counted, state and memory stay, no exception is raised."""

from __future__ import annotations

import random
import socket
import struct
import tracemalloc

import pytest
from dataplane.packets import superpacket, tcp, udp
from dataplane.rig import ALICE, Eve, message, two

from ravenvpn.dataplane.contract import EndpointMoved

# `make soak` sends 10⁶ datagrams without a session, 7·10⁵ of peers, and 5·10⁵ frames.
SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 350))]

A, B = "10.1.0.1", "10.2.0.1"
A6, B6 = "fd01::1", "fd02::1"


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return the data with some bits flipped and some bytes cut off, doubled or overwritten."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(5)
        if not changed:
            break
        at = chance.randrange(len(changed))
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randint(1, 40))
        else:
            changed[at : at + 2] = chance.choice([b"\0\0", b"\xff\xff", b"\xff\xd8", b"\x80\0"])
    return bytes(changed)


def inner_packets() -> list[bytes]:
    return [
        udp(A, B, b"payload" * 9),
        udp(A6, B6, b"payload" * 9),
        tcp(A, B, bytes(300)),
        tcp(A6, B6, bytes(300), tcp_options=bytes(12)),
        b"",
    ]


@pytest.mark.parametrize("seed", SEEDS)
async def test_datagrams_of_strangers(body, seed):
    """Random datagrams, and mutations of genuine ones with a valid receiver index."""
    chance = random.Random(seed)
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            before = pair.bob.counters.peers[ALICE]
            genuine = [message(yours, 100 + n, packet) for n, packet in enumerate(inner_packets())]
            for n in range(3000):
                data = chance.randbytes(chance.randrange(200))
                if n % 3:
                    data = mutated(chance, chance.choice(genuine))
                if data in genuine:
                    continue
                eve.send(data, pair.bob.endpoint(), ds_field=chance.randrange(4))
                if n % 100 == 0:
                    await pair.settle()
            await pair.settle()
            after = pair.bob.counters.peers[ALICE]
            assert after == before, "nothing of it was the peer's"
            assert pair.bob.happened(EndpointMoved) == []
            assert pair.bob.frames() == []
            known = {"MALFORMED", "UNKNOWN_INDEX", "BAD_TAG", "EXPIRED_KEYPAIR", "REPLAYED"}
            assert set(pair.bob.drops()) <= known
            # Genuine messages of the peer still arrive.
            pair.alice.put(udp(A, B, b"genuine"))
            await pair.settle()
            assert len(pair.bob.packets()) == 1


@pytest.mark.root
async def test_what_comes_from_port_zero_is_dropped(body):
    """RFC 768 allows source port 0 (no reply is expected), so any host can send it. No reply can be sent to it."""
    async with two(body) as pair:
        _, yours = await pair.connect()
        before = pair.bob.counters.peers[ALICE]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            for data in (b"\x01" + bytes(147), message(yours, 100, udp(A, B))):
                header = struct.pack("!HHHH", 0, pair.bob.endpoint().port, 8 + len(data), 0)
                raw.sendto(header + data, ("127.0.0.1", 0))
                await pair.settle()
        assert pair.bob.drops() == {"MALFORMED": 2}
        assert pair.bob.happened() == []
        assert pair.bob.packets() == []
        assert pair.bob.counters.peers[ALICE] == before


@pytest.mark.parametrize("seed", SEEDS)
async def test_packets_of_an_authenticated_but_hostile_peer(body, seed):
    """Packets sealed with the valid key, in GSO runs and alone.

    The TUN gets only whole packets from accepted sources.
    """
    chance = random.Random(seed)
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            genuine = inner_packets()
            for n in range(2000):
                packet = chance.choice(genuine)
                inner = chance.choice([packet, mutated(chance, packet), chance.randbytes(chance.randrange(120))])
                eve.send(message(yours, 100 + n, inner), pair.bob.endpoint(), ds_field=chance.randrange(4))
                if n % 100 == 0:
                    await pair.settle()
            await pair.settle()
            for packet in pair.bob.packets():
                if packet[0] >> 4 == 4:
                    assert int.from_bytes(packet[2:4], "big") == len(packet)
                    assert packet[12:14] == b"\x0a\x01"
                else:
                    assert packet[0] >> 4 == 6
                    assert int.from_bytes(packet[4:6], "big") + 40 == len(packet)
                    assert packet[8:16] == b"\xfd\x01" + bytes(6)
            assert set(pair.bob.drops()) <= {
                "MALFORMED_INNER", "SOURCE_NOT_ACCEPTED", "CONGESTION_UNMARKABLE", "TUN_WRITE_FAILED"
            }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
async def test_frames_from_the_tun(body, seed):
    """The kernel is trusted, but its offload headers may come from guests, containers and other drivers."""
    chance = random.Random(seed)
    async with two(body) as pair:
        await pair.connect()
        genuine = [bytes(10) + packet for packet in inner_packets() if packet]
        genuine += [
            superpacket(tcp(A, B, bytes(5000)), 1000),
            superpacket(tcp(A6, B6, bytes(5000), tcp_options=bytes(12)), 1000),
            superpacket(udp(A, B, bytes(3000)), 500),
            superpacket(udp(A6, B6, bytes(3000)), 500),
        ]
        for n in range(1500):
            frame = mutated(chance, chance.choice(genuine)) or b"\0"
            pair.alice.wire.send(frame)
            if n % 20 == 0:
                await pair.settle()
                pair.bob.frames()
        await pair.settle()
        allowed = {"NOT_IP", "BAD_OFFLOAD", "NO_ROUTE", "SEND_FAILED"}
        assert set(pair.alice.drops()) <= allowed
        assert pair.alice.plane.offloads().udp_gso
        pair.bob.frames()
        pair.alice.put(udp(A, B, b"genuine"))
        await pair.settle()
        assert len(pair.bob.packets()) == 1


async def test_a_flood_of_rubbish_costs_no_memory(body):
    chance = random.Random(1)
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            forged = [message(yours, n, bytes(50))[:-1] + b"!" for n in range(100)]

            async def flood(rounds: int) -> None:
                for n in range(rounds):
                    eve.send(chance.choice(forged), pair.bob.endpoint())
                    eve.send(b"\4" + bytes(3) + chance.randbytes(60), pair.bob.endpoint())
                    inner = udp(f"10.1.{chance.randrange(256)}.{chance.randrange(256)}", B)
                    eve.send(message(yours, 1000 + flood.sent, inner), pair.bob.endpoint())
                    flood.sent += 1
                    if n % 50 == 0:
                        await pair.settle()
                        pair.bob.frames()
                await pair.settle()
                pair.bob.frames()

            flood.sent = 0
            await flood(5000)  # until caches reach their bounds
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                await flood(1500)
                assert tracemalloc.get_traced_memory()[0] - before < 200_000
            finally:
                tracemalloc.stop()
            assert pair.bob.happened(EndpointMoved)[1:] == []
