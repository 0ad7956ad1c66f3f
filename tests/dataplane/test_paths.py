"""Paths and checks of messages: endpoints, source addresses, routes, accepted prefixes, ECN."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_network

import pytest
from dataplane.packets import is_valid, tcp, udp
from dataplane.rig import ALICE, BOB, CAROL, Clock, End, Eve, keypairs, message, settle, two, udp_socket

from ravenvpn.dataplane.contract import Endpoint, EndpointMoved, Source

A, B, C = "10.1.0.1", "10.2.0.1", "10.3.0.1"
A6, B6 = "fd01::1", "fd02::1"

NOT_ECT, ECT_1, ECT_0, CE = range(4)


# Roaming and sources.


@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_the_endpoint_follows_authenticated_messages(body, family):
    async with two(body, family=family) as pair:
        with Eve(socket.AF_INET if family == 4 else socket.AF_INET6) as eve:
            _, yours = await pair.connect()
            eve.send(message(yours, 100, udp(A, B)), pair.bob.endpoint(family))
            await pair.settle()
            (moved,) = pair.bob.happened(EndpointMoved)
            assert (moved.peer, moved.endpoint) == (ALICE, eve.endpoint)
            assert moved.source.host == ("127.0.0.1" if family == 4 else "::1")
            pair.bob.put(udp(B, A))
            await pair.settle()
            assert len(eve.captured()) == 1


async def test_the_endpoint_may_change_its_family(body):
    async with two(body) as pair:
        with Eve(socket.AF_INET6) as eve:
            _, yours = await pair.connect()
            eve.send(message(yours, 100, b""), pair.bob.endpoint(6))
            await pair.settle()
            pair.bob.put(udp(B, A))
            await pair.settle()
            assert len(eve.captured()) == 1


async def test_forged_and_replayed_messages_move_nothing(body):
    """Only an authenticated, new message changes the endpoint."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            genuine = message(yours, 100, udp(A, B))
            forged = genuine[:-1] + bytes([genuine[-1] ^ 1])
            eve.send(forged, pair.bob.endpoint())
            pair.alice.v4.sendto(genuine, pair.bob.endpoint()[:2])
            await pair.settle()
            eve.send(genuine, pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.drops() == {"BAD_TAG": 1, "REPLAYED": 1}
            assert pair.bob.happened(EndpointMoved) == []
            assert pair.bob.counters.peers[ALICE].endpoint == pair.alice.endpoint()


async def test_without_roaming_a_new_place_is_reported_once_and_not_used(body):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            pair.bob.plane.set_roaming(ALICE, False)
            for counter in (100, 101, 102):
                eve.send(message(yours, counter, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert [event.endpoint for event in pair.bob.happened(EndpointMoved)] == [eve.endpoint]
            assert len(pair.bob.packets()) == 3
            pair.bob.put(udp(B, A))
            await pair.settle()
            assert eve.captured() == []
            assert len(pair.alice.packets()) == 1


async def test_answers_leave_from_the_address_that_was_addressed(body):
    """A gateway with several addresses replies from 127.0.0.2 to a message sent to 127.0.0.2."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            port = pair.bob.endpoint().port
            eve.socket.sendto(message(yours, 100, udp(A, B)), ("127.0.0.2", port))
            await pair.settle()
            assert pair.bob.counters.peers[ALICE].source == Source("127.0.0.2", socket.if_nametoindex("lo"))
            pair.bob.put(udp(B, A))
            await pair.settle()
            _, address = eve.socket.recvfrom(2048)
            assert address == ("127.0.0.2", port)


async def test_the_source_can_be_forgotten(body):
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            pair.bob.plane.set_endpoint(ALICE, eve.endpoint, Source("127.0.0.2", 1))
            pair.bob.plane.clear_source(ALICE)
            assert pair.bob.counters.peers[ALICE].source is None
            pair.bob.put(udp(B, A))
            await pair.settle()
            assert eve.socket.recvfrom(2048)[1][0] == "127.0.0.1"


@pytest.mark.parametrize(("family", "gone"), [(4, "192.0.2.9"), (6, "2001:db8::9")], ids=["outer4", "outer6"])
async def test_a_source_that_went_away_is_forgotten_and_nothing_is_lost(body, family, gone):
    async with two(body, family=family) as pair:
        await pair.connect()
        pair.alice.plane.set_endpoint(BOB, pair.bob.endpoint(family), Source(gone, 1))
        pair.alice.put(udp(A, B, b"1"), udp(A, B, b"2"))
        await pair.settle()
        assert [packet[-1:] for packet in pair.bob.packets()] == [b"1", b"2"]
        assert pair.alice.drops() == {}
        source = pair.alice.counters.peers[BOB].source
        assert source is None or source.host != gone
        assert pair.alice.plane.offloads().udp_gso, "it was not segmentation's fault"


async def test_a_replaced_socket_is_read_as_long_as_it_is_pumped(body):
    """A change of the listen port: datagrams in flight to the old port arrive; replies leave from the new one."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            bob = pair.bob
            old, eve_to_old = bob.v4, bob.endpoint()
            bob.v4 = udp_socket(socket.AF_INET)
            bob.plane.set_sockets(bob.v4.fileno(), bob.v6.fileno())
            with old:
                eve.send(message(yours, 100, udp(A, B)), eve_to_old)
                await pair.settle()
                assert bob.packets() == []
                bob.plane.pump_replaced_socket(old.fileno(), False)
                assert len(bob.packets()) == 1
                bob.plane.pump_replaced_socket(old.fileno(), False)  # an empty socket
            assert bob.drops() == {}
            bob.put(udp(B, A))
            await pair.settle()
            assert eve.socket.recvfrom(2048)[1] == (bob.endpoint().host, bob.endpoint().port)


async def test_new_sockets_forget_sources(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.set_endpoint(BOB, pair.bob.endpoint(), Source("127.0.0.2", 1))
        pair.alice.plane.set_sockets(pair.alice.v4.fileno(), pair.alice.v6.fileno())
        assert pair.alice.counters.peers[BOB].source is None
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert len(pair.bob.packets()) == 1


async def test_a_peer_without_endpoint_gets_nothing_until_it_calls(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.set_endpoint(BOB, None)
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.drops() == {"NO_ENDPOINT": 1}
        pair.bob.plane.send_keepalive(ALICE)
        await pair.settle()
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert len(pair.bob.packets()) == 1


async def test_a_family_without_socket_fails_and_is_counted(body):
    async with two(body, family=6) as pair:
        await pair.connect()
        pair.alice.plane.set_sockets(pair.alice.v4.fileno(), None)
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.drops() == {"SEND_FAILED": 1}


@pytest.mark.parametrize("host", ["vpn.example.com", "10.0.0", "", "::g"])
async def test_an_endpoint_is_a_numeric_address(body, host):
    async with two(body) as pair:
        with pytest.raises(ValueError, match="not a numeric address"):
            pair.alice.plane.set_endpoint(BOB, Endpoint(host, 1))


# Routes.


async def test_a_route_moves_at_once_and_can_be_removed(body):
    clock = Clock()
    ends = alice, bob, carol = End(body, clock), End(body, clock), End(body, clock)
    try:
        for peer, end in ((BOB, bob), (CAROL, carol)):
            alice.knows(peer, end.endpoint())
            end.knows(ALICE, alice.endpoint())
            mine, yours = keypairs(clock())
            end.plane.install_keypair(ALICE, yours)
            alice.plane.install_keypair(peer, mine)
        for end in ends:
            end.start()
        prefix = ip_network("192.168.0.0/24")
        for peers, reached in (([BOB], bob), ([CAROL], carol), ([BOB, CAROL], bob), ([], None)):
            alice.plane.route(prefix, peers)
            alice.put(udp(A, "192.168.0.1"))
            await settle(*ends)
            assert [end for end in (bob, carol) if end.packets()] == ([reached] if reached else [])
        assert alice.drops() == {"NO_ROUTE": 1}
        # A longer prefix inside another peer's prefix.
        alice.plane.route(ip_network("10.2.0.1/32"), [CAROL])
        alice.put(udp(A, B), udp(A, "10.2.0.2"))
        await settle(*ends)
        assert (len(bob.packets()), len(carol.packets())) == (1, 1)
    finally:
        for end in ends:
            end.close()


async def test_unknown_peers_are_key_errors(body):
    async with two(body) as pair:
        for call in (
            lambda plane: plane.remove_peer(CAROL),
            lambda plane: plane.set_endpoint(CAROL, None),
            lambda plane: plane.set_roaming(CAROL, True),
            lambda plane: plane.clear_source(CAROL),
            lambda plane: plane.route(ip_network("10.9.0.0/16"), [CAROL]),
            lambda plane: plane.accept(CAROL),
            lambda plane: plane.install_keypair(CAROL, keypairs(1.0)[0]),
            lambda plane: plane.expire_keypairs(CAROL),
            lambda plane: plane.drop_keypairs(CAROL),
            lambda plane: plane.purge_staged(CAROL),
            lambda plane: plane.send_inner(CAROL, udp(A, B)),
        ):
            with pytest.raises(KeyError):
                call(pair.alice.plane)


# Accepted prefixes.


@pytest.mark.parametrize("source", [C, "10.9.9.9", "fd03::1"])
async def test_a_source_outside_the_accepted_prefixes_is_dropped(body, source):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            destination = B if "." in source else B6
            eve.send(message(yours, 100, udp(source, destination)), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.frames() == []
            assert pair.bob.drops() == {"SOURCE_NOT_ACCEPTED": 1}


async def test_the_longest_accepted_prefix_of_all_peers_decides(body):
    """A peer with a wide prefix may not send from a narrower prefix of another peer."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            plane = pair.bob.plane
            plane.add_peer(CAROL)
            plane.accept(ALICE, [ip_network("0.0.0.0/0")])
            plane.accept(CAROL, [ip_network("10.3.0.0/16")])

            async def passes(source: str, counter: int) -> bool:
                eve.send(message(yours, counter, udp(source, B)), pair.bob.endpoint())
                await pair.settle()
                return bool(pair.bob.packets())

            assert await passes("8.8.8.8", 100)
            assert not await passes(C, 101)
            plane.accept(ALICE, [ip_network("10.3.0.0/16")])  # both peers may, while a role moves
            assert await passes(C, 102)
            plane.accept(ALICE, remove=[ip_network("10.3.0.0/16")])
            assert not await passes(C, 103)
            plane.remove_peer(CAROL)
            assert await passes(C, 104)


async def test_a_flow_is_not_joined_by_another_peer(body):
    """Bulk TCP uses a fast path past the checks; it is open only to the peer that has passed them."""
    clock = Clock()
    bob = End(body, clock)
    with Eve() as eve:
        try:
            mine = {}
            for peer in (ALICE, CAROL):
                bob.knows(peer, eve.endpoint)
                mine[peer] = keypairs(clock())[1]
                bob.plane.install_keypair(peer, mine[peer])
            bob.start()
            first, second = (tcp(A, B, bytes(100), sequence=1 + 100 * i) for i in range(2))
            eve.send(message(mine[ALICE], 0, first), bob.endpoint())
            eve.send(message(mine[CAROL], 0, second), bob.endpoint())
            await settle(bob)
            assert bob.packets() == [first]
            assert bob.drops() == {"SOURCE_NOT_ACCEPTED": 1}
        finally:
            bob.close()


def v6_length(packet: bytes, length: int) -> bytes:
    return packet[:4] + struct.pack("!H", length) + packet[6:]


@pytest.mark.parametrize(
    ("what", "inner"),
    [
        ("no version", b"\0" * 40),
        ("version 5", b"\x50" + bytes(39)),
        ("IPv4 shorter than its header", udp(A, B)[:19]),
        ("IPv6 shorter than its header", udp(A6, B6)[:39]),
        ("IPv4 that says it is shorter than its header", b"\x45\0" + struct.pack("!H", 19) + udp(A, B)[4:]),
        ("IPv4 that says it is longer than it is", b"\x45\0" + struct.pack("!H", 29) + udp(A, B)[4:]),
        ("IPv6 that says it is longer than it is", v6_length(udp(A6, B6), 9)),
        ("IPv6 with a length that wraps around 16 bits", v6_length(udp(A6, B6), 65_500)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_malformed_inner_packets_are_counted(body, what, inner):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            eve.send(message(yours, 100, inner), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.frames() == [], what
            assert pair.bob.drops() == {"MALFORMED_INNER": 1}


@pytest.mark.parametrize("packet", [udp(A, B, b"data"), udp(A6, B6, b"data")], ids=["v4", "v6"])
async def test_padding_is_trimmed(body, packet):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            eve.send(message(yours, 100, packet + bytes(200)), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.frames() == [bytes(10) + packet]


@pytest.mark.parametrize(
    ("frame", "drop"),
    [
        (b"", "NOT_IP"),
        (b"\x45" * 5, "NOT_IP"),
        (bytes(10), "NOT_IP"),
        (bytes(10) + b"\x45" * 19, "NOT_IP"),
        (bytes(10) + b"\x60" * 39, "NOT_IP"),
        (bytes(10) + b"\x75" * 60, "NOT_IP"),
        (b"\1\1" + bytes(8) + tcp(A, B, bytes(100)), "BAD_OFFLOAD"),
    ],
    ids=["empty", "half a header", "no packet", "short IPv4", "short IPv6", "no version", "no segment size"],
)
async def test_strange_frames_from_the_tun_are_counted(body, frame, drop):
    async with two(body) as pair:
        await pair.connect()
        if frame:
            pair.alice.wire.send(frame)
            await pair.settle()
            assert pair.alice.drops() == {drop: 1}
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert len(pair.bob.packets()) == 1


# ECN.


@pytest.mark.parametrize("codepoint", [NOT_ECT, ECT_1, ECT_0, CE], ids=["not-ECT", "ECT1", "ECT0", "CE"])
@pytest.mark.parametrize("inner", [(A, B), (A6, B6)], ids=["inner4", "inner6"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["outer4", "outer6"])
async def test_the_outer_header_gets_the_inner_ecn_and_no_dscp(body, family, inner, codepoint):
    async with two(body) as pair:
        with Eve(family) as eve:
            await pair.connect()
            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            pair.alice.put(udp(*inner, tos=46 << 2 | codepoint))
            await pair.settle()
            ((_, ds_field),) = eve.captured_with_ds()
            assert ds_field == codepoint


async def test_each_packet_of_a_batch_has_its_own_ecn(body):
    """Messages in one call share the outer header's codepoint, so packets with different ECN need separate calls."""
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            codepoints = [ECT_0, ECT_0, NOT_ECT, CE, ECT_1, ECT_1]
            pair.alice.put(*[udp(A, B, tos=codepoint) for codepoint in codepoints])
            await pair.settle()
            assert [ds_field for _, ds_field in eve.captured_with_ds()] == codepoints


@pytest.mark.parametrize(
    ("inner", "outer", "combined"),
    [
        # RFC 6040, figure 4.
        (NOT_ECT, NOT_ECT, NOT_ECT), (NOT_ECT, ECT_0, NOT_ECT), (NOT_ECT, ECT_1, NOT_ECT), (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, ECT_0), (ECT_0, ECT_0, ECT_0), (ECT_0, ECT_1, ECT_1), (ECT_0, CE, CE),
        (ECT_1, NOT_ECT, ECT_1), (ECT_1, ECT_0, ECT_1), (ECT_1, ECT_1, ECT_1), (ECT_1, CE, CE),
        (CE, NOT_ECT, CE), (CE, ECT_0, CE), (CE, ECT_1, CE), (CE, CE, CE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("addresses", [(A, B), (A6, B6)], ids=["inner4", "inner6"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["outer4", "outer6"])
async def test_congestion_outside_is_marked_inside(  # noqa: PLR0917
    body, family, addresses, inner, outer, combined
):
    """The inner DSCP stays, the outer one is not copied, and the IPv4 header checksum is updated."""
    async with two(body) as pair:
        with Eve(family) as eve:
            _, yours = await pair.connect()
            packet = udp(*addresses, b"x", tos=10 << 2 | inner, identification=0x1234)
            to = pair.bob.endpoint(4 if family == socket.AF_INET else 6)
            eve.send(message(yours, 100, packet), to, ds_field=46 << 2 | outer)
            await pair.settle()
            if combined is None:
                assert pair.bob.frames() == []
                assert pair.bob.drops() == {"CONGESTION_UNMARKABLE": 1}
            else:
                (marked,) = pair.bob.packets()
                assert marked == udp(*addresses, b"x", tos=10 << 2 | combined, identification=0x1234)
                assert is_valid(marked)


async def test_bulk_takes_no_short_way_past_congestion(body):
    """The second packet of a flow arrives with CE outside, in the same batch as the first."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            for inner, expected in ((ECT_0, [ECT_0, CE]), (NOT_ECT, [NOT_ECT])):
                for n, outer in enumerate((NOT_ECT, CE)):
                    packet = tcp(A, B, bytes(100), ports=(inner, 1), sequence=1 + 100 * n, tos=inner)
                    eve.send(message(yours, 100 + 10 * inner + n, packet), pair.bob.endpoint(), ds_field=outer)
                await pair.settle()
                assert [packet[1] for packet in pair.bob.packets()] == expected
