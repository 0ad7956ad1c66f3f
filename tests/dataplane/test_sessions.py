"""Keys, slots, counters and staged packets."""

from __future__ import annotations

import struct
from ipaddress import ip_network

import pytest
from dataplane.packets import tcp, udp
from dataplane.rig import ALICE, BOB, CAROL, Clock, End, Eve, keypairs, message, settle, two

from ravenvpn.crypto.aead import Suite, cipher
from ravenvpn.dataplane.contract import HandshakeNeeded, KeypairRetired, KeyPromoted, Timing

A, B = "10.1.0.1", "10.2.0.1"
A6, B6 = "fd01::1", "fd02::1"


@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.value)
@pytest.mark.parametrize("family", [4, 6], ids=["outer4", "outer6"])
async def test_packets_of_both_families_go_both_ways(body, suite, family):
    async with two(body, family=family) as pair:
        await pair.connect(suite)
        there = [udp(A, B, b"hello"), tcp(A6, B6, b"world")]
        back = [udp(B, A, b"hello"), tcp(B6, A6, b"world")]
        pair.alice.put(*there)
        pair.bob.put(*back)
        await pair.settle()
        assert pair.bob.packets() == there
        assert pair.alice.packets() == back
        assert pair.alice.drops() == pair.bob.drops() == {}


async def test_nothing_readable_is_on_the_wire(body):
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            (datagram,) = await pair.intercept(eve, udp(A, B, b"a secret that must not be seen"))
            assert b"secret" not in datagram


async def test_packets_wait_for_a_key_and_then_leave_in_order(body):
    async with two(body) as pair:
        packets = [udp(A, B, bytes([n])) for n in range(5)]
        pair.alice.put(*packets)
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        assert pair.alice.counters.peers[BOB].staged == 5
        pair.handshake()
        await pair.settle()
        assert pair.bob.packets() == packets
        assert pair.alice.counters.peers[BOB].staged == 0


async def test_only_128_packets_wait_and_the_oldest_go(body):
    async with two(body) as pair:
        pair.alice.put(*[udp(A, B, struct.pack("!H", n)) for n in range(130)])
        await pair.settle()
        assert pair.alice.drops() == {"STAGED_OVERFLOW": 2}
        pair.handshake()
        await pair.settle()
        assert [packet[-2:] for packet in pair.bob.packets()] == [struct.pack("!H", n) for n in range(2, 130)]


async def test_a_handshake_is_wanted_again_after_rekey_timeout(body):
    async with two(body) as pair:
        pair.alice.put(udp(A, B))
        await pair.settle()
        pair.clock.advance(4.9)
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        pair.clock.advance(0.1)
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]


async def test_what_waited_is_dropped_when_the_handshake_is_given_up(body):
    async with two(body) as pair:
        pair.alice.put(udp(A, B), udp(A, B))
        await pair.settle()
        pair.alice.plane.purge_staged(BOB)
        assert pair.alice.drops() == {"STAGED_EXPIRED": 2}
        pair.alice.happened()
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]


async def test_the_initiator_confirms_the_key_at_once(body):
    """Without staged packets a keepalive confirms it. Until then the responder stages its packets."""
    async with two(body) as pair:
        with Eve() as eve:
            initiators, responders = keypairs(pair.clock())
            pair.bob.plane.install_keypair(ALICE, responders)
            pair.bob.put(udp(B, A, b"early"))
            await pair.settle()
            assert pair.alice.packets() == []
            assert pair.bob.counters.peers[ALICE].tx_packets == 0

            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            pair.alice.plane.install_keypair(BOB, initiators)
            (confirmation,) = eve.captured()
            assert len(confirmation) == 32

            pair.bob.plane.set_roaming(ALICE, False)
            eve.send(confirmation, pair.bob.endpoint())
            await pair.settle()
            assert KeyPromoted(ALICE, responders.local_index) in pair.bob.happened()
            assert [packet[-5:] for packet in pair.alice.packets()] == [b"early"]


async def test_a_keepalive_is_32_bytes_and_reaches_no_tun(body):
    async with two(body) as pair:
        await pair.connect()
        before = pair.alice.counters.peers[BOB].tx_bytes
        pair.alice.plane.send_keepalive(BOB)
        await pair.settle()
        assert pair.alice.counters.peers[BOB].tx_bytes - before == 32
        assert pair.bob.frames() == []
        assert pair.bob.drops() == {}


async def test_a_keepalive_without_a_key_asks_for_one(body):
    async with two(body) as pair:
        pair.alice.plane.send_keepalive(BOB)
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        assert pair.alice.counters.peers[BOB].staged == 0


async def test_the_previous_key_still_opens(body):
    """Messages in flight when the key changed are not lost."""
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            (late,) = await pair.intercept(eve, udp(A, B, b"under the old key"))
            pair.alice.plane.set_endpoint(BOB, pair.bob.endpoint())
            await pair.connect()
            eve.send(late, pair.bob.endpoint())
            await pair.settle()
            assert [packet[-17:] for packet in pair.bob.packets()] == [b"under the old key"]


async def test_a_key_leaves_after_two_more_handshakes(body):
    async with two(body) as pair:
        first_mine, first_yours = await pair.connect()
        await pair.connect()
        pair.handshake()
        await pair.settle()
        assert KeypairRetired(BOB, first_mine.local_index) in pair.alice.happened()
        assert KeypairRetired(ALICE, first_yours.local_index) in pair.bob.happened()


async def test_a_key_that_the_initiator_never_used_is_replaced(body):
    async with two(body) as pair:
        _, unused = keypairs(pair.clock())
        pair.bob.plane.install_keypair(ALICE, unused)
        await pair.connect()
        assert KeypairRetired(ALICE, unused.local_index) in pair.bob.events


async def test_an_index_in_use_is_refused(body):
    async with two(body) as pair:
        mine, _ = await pair.connect()
        with pytest.raises(ValueError, match="in use"):
            pair.alice.plane.install_keypair(BOB, mine)


async def test_a_key_sends_and_receives_for_180_seconds(body):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            pair.clock.advance(179.9)
            pair.alice.put(udp(A, B, b"in time"))
            await pair.settle()
            assert len(pair.bob.packets()) == 1
            pair.alice.happened()

            pair.clock.advance(0.1)
            pair.alice.put(udp(A, B, b"too late"))
            await pair.settle()
            assert pair.alice.counters.peers[BOB].staged == 1
            eve.send(message(yours, 1000, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.packets() == []
            assert pair.bob.drops() == {"EXPIRED_KEYPAIR": 1}


async def test_the_initiator_renews_after_120_seconds_of_sending(body):
    async with two(body) as pair:
        await pair.connect()
        pair.clock.advance(119.9)
        pair.alice.put(udp(A, B))
        pair.bob.put(udp(B, A))
        await pair.settle()
        assert pair.alice.happened() == []
        pair.clock.advance(0.1)
        pair.alice.put(udp(A, B))
        pair.bob.put(udp(B, A))
        await pair.settle()
        pair.alice.put(udp(A, B))
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        assert pair.bob.happened() == [], "only the initiator renews by age"


async def test_the_initiator_renews_after_165_seconds_of_receiving(body):
    async with two(body) as pair:
        await pair.connect()
        for pause, wanted in ((164.9, []), (0.1, [HandshakeNeeded(BOB)]), (1.0, [])):
            pair.clock.advance(pause)
            pair.bob.plane.send_keepalive(ALICE)
            await pair.settle()
            assert pair.alice.happened() == wanted
        pair.alice.plane.purge_staged(BOB)  # the handshake was given up
        pair.bob.plane.send_keepalive(ALICE)
        await pair.settle()
        assert pair.alice.happened() == [], "once per keypair"


async def test_a_renewed_key_asks_anew(body):
    timing = Timing(rekey_after_time=1.0)
    async with two(body, timing=timing) as pair:
        for _ in range(2):
            await pair.connect()
            pair.clock.advance(1.0)
            pair.alice.put(udp(A, B))
            await pair.settle()
            assert pair.alice.happened() == [HandshakeNeeded(BOB)]


async def test_expired_keypairs_receive_only(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.expire_keypairs(BOB)
        pair.alice.put(udp(A, B))
        pair.bob.put(udp(B, A, b"still welcome"))
        await pair.settle()
        assert pair.alice.happened() == [HandshakeNeeded(BOB)]
        assert pair.bob.packets() == []
        assert len(pair.alice.packets()) == 1


async def test_dropped_keypairs_are_gone(body):
    async with two(body) as pair:
        mine, _ = await pair.connect()
        pair.alice.plane.drop_keypairs(BOB)
        assert pair.alice.happened() == [KeypairRetired(BOB, mine.local_index)]
        pair.bob.put(udp(B, A))
        await pair.settle()
        assert pair.alice.drops() == {"UNKNOWN_INDEX": 1}
        assert pair.alice.counters.peers[BOB].suite is None


async def test_a_removed_peer_leaves_nothing(body):
    async with two(body) as pair:
        mine, _ = await pair.connect()
        pair.alice.plane.remove_peer(BOB)
        assert pair.alice.happened() == [KeypairRetired(BOB, mine.local_index)]
        pair.alice.put(udp(A, B))
        pair.bob.put(udp(B, A))
        await pair.settle()
        assert pair.alice.drops() == {"NO_ROUTE": 1, "UNKNOWN_INDEX": 1}
        assert pair.alice.counters.peers == {}
        with pytest.raises(KeyError):
            pair.alice.plane.send_keepalive(BOB)


async def test_a_replayed_message_is_delivered_once(body):
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            (datagram,) = await pair.intercept(eve, udp(A, B, b"once"))
            for _ in range(3):
                eve.send(datagram, pair.bob.endpoint())
            await pair.settle()
            assert len(pair.bob.packets()) == 1
            assert pair.bob.drops() == {"REPLAYED": 2}


async def test_a_message_may_be_8128_late_and_no_more(body):
    """RFC 6479 with 128 words of 64 bits."""
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            for counter in (10_000, 10_000 - 8128, 10_000 - 8129, 9_999, 9_999):
                eve.send(message(yours, counter, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert len(pair.bob.frames()) > 0
            assert pair.bob.counters.tun_tx_packets == 3
            assert pair.bob.drops() == {"REPLAYED": 2}


async def test_a_forged_message_does_not_move_the_window(body):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect()
            forged = bytearray(message(yours, 1 << 40, udp(A, B)))
            forged[-1] ^= 1
            eve.send(bytes(forged), pair.bob.endpoint())
            eve.send(message(yours, 50, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.drops() == {"BAD_TAG": 1}
            assert len(pair.bob.packets()) == 1


@pytest.mark.parametrize(
    ("suite", "limit"),
    [(Suite.CHACHA20POLY1305, 2**64 - 2**13 - 1), (Suite.AES256GCM, 2**29)],
    ids=["chacha20poly1305", "aes256gcm"],
)
async def test_no_counter_past_the_limit_is_accepted(body, suite, limit):
    async with two(body) as pair:
        with Eve() as eve:
            _, yours = await pair.connect(suite)
            eve.send(message(yours, limit, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert pair.bob.drops() == {"EXPIRED_KEYPAIR": 1}
            eve.send(message(yours, limit - 1, udp(A, B)), pair.bob.endpoint())
            await pair.settle()
            assert len(pair.bob.packets()) == 1


@pytest.mark.parametrize(
    ("mtu", "length", "sealed"),
    [(1420, 29, 32), (1420, 32, 32), (1420, 1409, 1420), (1420, 1420, 1420), (1420, 1419, 1420), (1420, 1400, 1408),
     (1421, 1418, 1421), (0, 1419, 1424), (1420, 1421, 1436), (100, 205, 216)],
)  # fmt: skip
async def test_messages_are_padded_to_16_within_the_mtu(body, mtu, length, sealed):
    """Whitepaper §5.4.6. For a packet larger than the MTU, the length modulo the MTU is rounded up to 16."""
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            pair.alice.plane.set_mtu(mtu)
            (datagram,) = await pair.intercept(eve, udp(A, B, bytes(length - 28)))
            assert len(datagram) == 32 + sealed


async def test_padding_is_zeros(body):
    async with two(body) as pair:
        with Eve() as eve:
            mine, _ = await pair.connect()
            datagram = (await pair.intercept(eve, udp(A, B, b"\xff" * 100), udp(A, B, b"\xff")))[1]
            counter = struct.unpack_from("<Q", datagram, 8)[0]
            opened = cipher(mine.suite, mine.send_key).decrypt(mine.suite.nonce(counter), datagram[16:], None)
            assert opened == udp(A, B, b"\xff") + bytes(3)


async def test_counters_are_those_of_wg_show(body):
    """Counters count whole transport messages: 16 bytes of header, 16 of tag, padding."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.put(udp(A, B, bytes(100)))
        await pair.settle()
        mine, yours = pair.alice.counters.peers[BOB], pair.bob.counters.peers[ALICE]
        assert (mine.tx_bytes, mine.tx_packets) == (32 + 128 + 32, 2)
        assert (yours.rx_bytes, yours.rx_packets) == (32 + 128 + 32, 2)
        assert mine.suite is Suite.CHACHA20POLY1305
        assert mine.keypair_birth == 1000.0
        assert mine.endpoint == pair.bob.endpoint()


async def test_a_body_without_a_tun_has_sessions(body):
    clock = Clock()
    alice, bob = End(body, clock), End(body, clock, tun=False)
    try:
        alice.knows(BOB, bob.endpoint())
        bob.knows(ALICE, alice.endpoint())
        alice.start()
        bob.start()
        mine, yours = keypairs(clock())
        bob.plane.install_keypair(ALICE, yours)
        alice.plane.install_keypair(BOB, mine)
        alice.put(udp(A, B))
        await settle(alice, bob)
        assert bob.drops() == {"NO_TUN": 1}
        bob.plane.send_inner(ALICE, udp(B, A, b"from a plain node"))
        await settle(alice, bob)
        assert [packet[-17:] for packet in alice.packets()] == [b"from a plain node"]
    finally:
        alice.close()
        bob.close()


async def test_two_peers_have_their_own_sessions(body):
    """Each peer has its own counter, window and key."""
    clock = Clock()
    alice, bob, carol = End(body, clock), End(body, clock), End(body, clock)
    ends = (alice, bob, carol)
    try:
        alice.knows(BOB, bob.endpoint())
        alice.knows(CAROL, carol.endpoint())
        for peer, end in ((BOB, bob), (CAROL, carol)):
            end.knows(ALICE, alice.endpoint())
            mine, yours = keypairs(clock())
            end.plane.install_keypair(ALICE, yours)
            alice.plane.install_keypair(peer, mine)
        for end in ends:
            end.start()
        packets = [udp(A, to, bytes([n])) for n in range(10) for to in (B, "10.3.0.1")]
        alice.put(*packets)
        await settle(*ends)
        assert bob.packets() == packets[::2]
        assert carol.packets() == packets[1::2]
        alice.plane.route(ip_network("10.3.0.0/16"), [BOB])
        bob.plane.accept(ALICE, [ip_network("10.1.0.0/16")])
        alice.put(udp(A, "10.3.0.1"))
        await settle(*ends)
        assert len(bob.packets()) == 1
        assert carol.packets() == []
    finally:
        for end in ends:
            end.close()
