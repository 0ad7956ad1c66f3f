"""Events from the data plane to the tunnel: datagrams other than type 4, inner packets, traffic facts."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv6Address, ip_network

import pytest
from dataplane.packets import ip, tcp, udp
from dataplane.rig import ALICE, BOB, PREFIXES, Clock, End, Eve, keypairs, message, settle, two

from ravenvpn.dataplane.contract import (
    MAX_DATAGRAMS,
    MAX_WAITING_INITIATIONS,
    Datagram,
    Endpoint,
    HandshakeNeeded,
    InnerPacket,
    Source,
    Traffic,
)

A, B = "10.1.0.1", "10.2.0.1"
A6, B6 = "fd01::1", "fd02::1"

NOT_ECT, ECT_0, CE = 0, 2, 3


# Every message type except 4.


async def test_other_datagrams_go_up_unjudged(body):
    async with two(body) as pair:
        with Eve() as eve:
            for data in (b"\1\0\0\0" + bytes(144), b"\1\1\0\0" + bytes(144), b"\xff", b"\0" * 2000):
                eve.send(data, pair.bob.endpoint())
                await pair.settle()
                (event,) = pair.bob.happened(Datagram)
                assert event == Datagram(data, eve.endpoint, Source("127.0.0.1", socket.if_nametoindex("lo")))
            assert pair.bob.drops() == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"\4", b"\4\0\0\0" + bytes(27), b"\4\1\0\0" + bytes(28), b"\4\0\0\1" + bytes(60)],
    ids=["nothing", "one byte", "31 bytes", "reserved byte", "last reserved byte"],
)
async def test_malformed_transport_messages_are_counted(body, data):
    async with two(body) as pair:
        with Eve() as eve:
            eve.send(data, pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.drops() == {"MALFORMED": 1}
            assert pair.bob.happened() == []


async def test_an_unknown_index_is_counted(body):
    async with two(body) as pair:
        with Eve() as eve:
            eve.send(b"\4\0\0\0" + bytes(28), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.drops() == {"UNKNOWN_INDEX": 1}


async def test_at_most_4096_datagrams_wait(body):
    async with two(body) as pair:
        with Eve() as eve:
            for n in range(MAX_DATAGRAMS + 10):
                eve.send(struct.pack("<II", 1, n), pair.bob.endpoint())
                if n % 100 == 0:
                    await pair.settle()
            await pair.settle()
            waiting = pair.bob.happened(Datagram)
            assert [event.data[4:8] for event in waiting] == [struct.pack("<I", n) for n in range(MAX_DATAGRAMS)]
            assert pair.bob.drops() == {"HANDSHAKE_QUEUE_FULL": 10}
            eve.send(b"\1", pair.bob.endpoint())
            await pair.settle()
            assert len(pair.bob.happened(Datagram)) == 1


async def test_initiations_that_prove_nothing_wait_until_there_is_room_for_them(body):
    async with two(body) as pair:
        plane = pair.bob.plane
        with Eve() as eve:
            for n in range(MAX_WAITING_INITIATIONS + 10):
                eve.send(initiation(n), pair.bob.endpoint())
                if n % 100 == 0:
                    await pair.settle()
            await pair.settle()
            assert plane.waiting_initiations() == MAX_WAITING_INITIATIONS
            assert pair.bob.drops() == {"HANDSHAKE_QUEUE_FULL": 10}
            others = [initiation(9000, mac2=bytes(15) + b"\1"), b"\2\0\0\0" + bytes(88), b"\1" + bytes(148)]
            for data in others:
                eve.send(data, pair.bob.endpoint())
            await pair.settle()
            assert [event.data for event in plane.drain_events(0)] == others
            assert [event.data for event in plane.drain_events(3)] == [initiation(n) for n in range(3)]
            assert plane.waiting_initiations() == MAX_WAITING_INITIATIONS - 3
            assert len(plane.drain_events()) == MAX_WAITING_INITIATIONS - 3
            assert plane.waiting_initiations() == 0


async def test_only_the_first_of_them_is_news(body):
    async with two(body) as pair:
        with Eve() as eve:
            eve.send(initiation(1), pair.bob.endpoint())
            await pair.settle()
            woken = pair.bob.woken
            assert pair.bob.plane.drain_events(0) == []
            eve.send(initiation(2), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.woken == woken, "the tunnel knows that one waits"
            assert len(pair.bob.plane.drain_events()) == 2
            eve.send(initiation(3), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.woken == woken + 1


def initiation(number: int, mac2: bytes = bytes(16)) -> bytes:
    return struct.pack("<II", 1, number) + bytes(124) + mac2


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["outer4", "outer6"])
async def test_our_datagrams_are_marked_af41(body, family):
    async with two(body) as pair:
        with Eve(family) as eve:
            pair.alice.plane.send_datagram(b"an initiation", eve.endpoint)
            assert eve.captured_with_ds() == [(b"an initiation", 0x88)]


async def test_our_datagrams_leave_from_the_source_asked_for(body):
    async with two(body) as pair:
        with Eve() as eve:
            pair.alice.plane.send_datagram(b"a response", eve.endpoint, Source("127.0.0.3", 1))
            assert eve.socket.recvfrom(100)[1][0] == "127.0.0.3"
            pair.alice.plane.send_datagram(b"a response", eve.endpoint, Source("192.0.2.1", 1))
            assert eve.socket.recvfrom(100)[1][0] == "127.0.0.1", "rather than not at all"


# Inner packets of the agent.

OURS = IPv6Address("fd02::77")


@pytest.mark.parametrize("outer", [NOT_ECT, CE], ids=["", "CE"])
async def test_probes_to_our_own_address_are_events(body, outer):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            pair.bob.plane.set_own_address(OURS, 10277)
            probe = udp(A6, str(OURS), b"probe", ports=(10277, 10277), tos=ECT_0)
            eve.send(message(yours, 100, probe), pair.bob.endpoint(), ds_field=outer)
            await pair.settle()
            (event,) = pair.bob.happened(InnerPacket)
            assert (event.peer, event.outer_ce) == (ALICE, outer == CE)
            assert event.packet[40:] == probe[40:]
            assert pair.bob.frames() == []


@pytest.mark.parametrize(
    "packet",
    [
        udp(A6, str(OURS), b"x", ports=(10277, 10276)),
        udp(A6, B6, b"x", ports=(10277, 10277)),
        tcp(A6, str(OURS), b"x", ports=(10277, 10277)),
        ip(A6, str(OURS), 58, b"\x80\0\0\0\0\0\0\0"),
        udp(A, B, b"x", ports=(10277, 10277)),
    ],
    ids=["another port", "another address", "TCP", "ping", "IPv4"],
)
async def test_all_else_goes_through_the_tun(body, packet):
    async with two(body) as pair:
        await pair.connect()
        pair.bob.plane.set_own_address(OURS, 10277)
        pair.alice.put(packet)
        await pair.settle()
        assert pair.bob.packets() == [packet]
        assert pair.bob.happened(InnerPacket) == []


async def test_a_probe_from_a_wrong_source_is_dropped(body):
    async with two(body) as pair:
        await pair.connect()
        pair.bob.plane.set_own_address(OURS, 10277)
        pair.alice.plane.send_inner(BOB, udp("fd03::1", str(OURS), ports=(10277, 10277)))
        await pair.settle()
        assert pair.bob.happened(InnerPacket) == []
        assert pair.bob.drops() == {"SOURCE_NOT_ACCEPTED": 1}


async def test_send_inner_goes_past_the_routes(body):
    async with two(body) as pair:
        await pair.connect()
        for prefix in PREFIXES[BOB]:
            pair.alice.plane.route(ip_network(prefix), [])
        packet = udp(A6, B6, b"mine")
        pair.alice.plane.send_inner(BOB, packet)
        await pair.settle()
        assert pair.bob.packets() == [packet]


async def test_send_inner_waits_for_a_key_like_any_other(body):
    async with two(body) as pair:
        packet = udp(A6, B6, b"mine")
        pair.alice.plane.send_inner(BOB, packet)
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        pair.handshake()
        await pair.settle()
        assert pair.bob.packets() == [packet]


@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_forbidding_fragments_is_for_one_packet(body, family):
    async with two(body, family=family) as pair:
        await pair.connect()
        option = (socket.IPPROTO_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)
        sender = pair.alice.v4 if family == 4 else pair.alice.v6
        before = sender.getsockopt(*option)
        pair.alice.plane.send_inner(BOB, udp(A, B, bytes(1000)), outer_df=True)
        await pair.settle()
        assert len(pair.bob.packets()) == 1
        assert sender.getsockopt(*option) == before


# Traffic facts.


async def test_traffic_is_told_as_facts(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.happened()
        pair.bob.happened()
        pair.clock.now = 1010.0
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.happened(Traffic) == [Traffic(BOB, 1010.0, 1010.0, 0.0, 0.0, 1010.0, 0.0)]
        assert pair.bob.happened(Traffic) == [Traffic(ALICE, 0.0, 0.0, 1010.0, 1010.0, 0.0, 1010.0)]

        pair.clock.now = 1011.0
        pair.alice.put(udp(A, B))
        pair.bob.plane.send_keepalive(ALICE)
        await pair.settle()
        # The first unanswered data was sent at 1010. The keepalive answered it and came before the second data.
        assert pair.alice.happened(Traffic)[0][:5] == (BOB, 1011.0, 1011.0, 0.0, 1011.0)
        assert pair.bob.happened(Traffic)[0][:5] == (ALICE, 0.0, 1011.0, 1011.0, 1011.0)

        assert pair.alice.happened(Traffic) == [], "nothing moved since"


async def test_an_answer_clears_what_is_unanswered(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.put(udp(A, B))
        await pair.settle()
        pair.bob.put(udp(B, A))
        await pair.settle()
        (alice,), (bob,) = pair.alice.happened(Traffic), pair.bob.happened(Traffic)
        assert (alice.unanswered_since, alice.unacknowledged_since) == (0.0, 1000.0)
        assert (bob.unanswered_since, bob.unacknowledged_since) == (1000.0, 0.0)


async def test_forged_messages_are_no_traffic(body):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            forged = message(yours, 100, udp(A, B))[:-1] + b"!"
            eve.send(forged, pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.happened(Traffic) == []


@pytest.mark.parametrize("end", ["installed", "given up"])
async def test_what_happens_after_a_handshake_is_news_again(body, end):
    """Unanswered and unacknowledged data was reported before the handshake; data after it is reported again."""
    async with two(body) as pair:
        await pair.connect()
        for since in (1000.0, 1050.0):
            woken = pair.alice.woken, pair.bob.woken
            pair.alice.put(udp(A, B))
            await pair.settle()
            async with asyncio.timeout(1.0):  # a body may delay it by up to a tenth of a second
                while pair.alice.woken == woken[0] or pair.bob.woken == woken[1]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            (sent,), (received,) = pair.alice.happened(Traffic), pair.bob.happened(Traffic)
            assert (sent.unanswered_since, received.unacknowledged_since) == (since, since)
            pair.clock.advance(50.0)
            for one, other in ((pair.alice, BOB), (pair.bob, ALICE)):
                if end == "installed":
                    one.plane.install_keypair(other, keypairs(pair.clock())[1])
                else:
                    one.plane.purge_staged(other)
                one.happened()


async def test_the_tunnel_is_woken_once_until_it_takes_events(body):
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            for _ in range(2):
                woken = pair.bob.woken
                for n in range(20):
                    eve.send(bytes([1, n]), pair.bob.endpoint())
                    eve.send(bytes([2] * n + [1]), pair.bob.endpoint())
                await pair.settle()
                assert pair.bob.woken == woken + 1
                assert len(pair.bob.happened(Datagram)) == 40


async def test_events_from_before_the_start_wake_the_tunnel(body):
    clock = Clock()
    alice = End(body, clock)
    try:
        alice.knows(BOB, Endpoint("127.0.0.1", 9))
        alice.plane.send_keepalive(BOB)
        alice.start()
        await settle(alice)
        assert alice.woken == 1
        assert alice.happened() == [HandshakeNeeded(BOB)]
    finally:
        alice.close()


async def test_a_stopped_body_reads_nothing_and_can_start_again(body):
    async with two(body) as pair:
        await pair.connect()
        pair.bob.plane.stop()
        pair.bob.plane.stop()
        pair.alice.put(udp(A, B))
        await settle(pair.alice)
        assert pair.bob.frames() == []
        pair.bob.start()
        await pair.settle()
        assert len(pair.bob.packets()) == 1


async def test_a_tun_that_ends_does_not_spin(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.wire.close()
        before = pair.alice.counters.tun_reads
        pair.bob.put(udp(B, A))
        await settle(pair.bob)
        assert pair.alice.counters.tun_reads <= before + 1
        await settle(pair.bob)
        assert pair.alice.drops() == {"TUN_WRITE_FAILED": 1}
