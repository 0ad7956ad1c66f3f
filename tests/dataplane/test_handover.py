"""Freeze and thaw: sessions survive a restart of the process, and counters never repeat."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import msgspec
import pytest
from dataplane.packets import udp
from dataplane.rig import ALICE, BOB, BOOT_ID, PREFIXES, End, Eve, Pair, keypairs, message, settle, two, udp_socket

from ravenvpn.crypto.aead import Suite
from ravenvpn.dataplane.contract import EndpointMoved, HandshakeNeeded, Traffic
from ravenvpn.dataplane.events import CounterSet
from ravenvpn.dataplane.transmitter import Transmitter

A, B = "10.1.0.1", "10.2.0.1"
SKIP = 1 << 16


@contextmanager
def successor(end: End, body: str, blob: bytes, *, peer=BOB) -> Iterator[End]:
    """A new process's data plane on descriptors of the same kind, with the prefixes of the plan."""
    new = End(body, end.clock)
    try:
        new.plane.thaw(blob)
        prefixes = [ip_network(prefix) for prefix in PREFIXES[peer]]
        for prefix in prefixes:
            new.plane.route(prefix, [peer])
        new.plane.accept(peer, prefixes)
        new.start()
        yield new
    finally:
        new.close()


@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.value)
async def test_a_session_goes_on_in_the_next_process(body, suite):
    async with two(body) as pair:
        await pair.connect(suite)
        pair.alice.put(udp(A, B, b"before"))
        await pair.settle()
        with successor(pair.alice, body, pair.alice.plane.freeze()) as heir:
            heir.put(udp(A, B, b"after"))
            await settle(heir, pair.bob)
            pair.bob.put(udp(B, A, b"answer"))
            await settle(heir, pair.bob)
            assert [packet[28:] for packet in pair.bob.packets()] == [b"before", b"after"]
            assert [packet[28:] for packet in heir.packets()] == [b"answer"]
            assert pair.bob.counters.peers[ALICE].endpoint == heir.endpoint()
            assert heir.happened(HandshakeNeeded) == []


async def test_the_tunnel_hears_the_facts_again(body):
    """The traffic facts let the next process arm its timers."""
    async with two(body) as pair:
        await pair.connect()
        pair.alice.put(udp(A, B, b"unanswered"))
        await pair.settle()
        (before,) = pair.alice.happened(Traffic)
        with successor(pair.alice, body, pair.alice.plane.freeze()) as heir:
            assert heir.happened(Traffic) == [before]


async def test_counters_skip_ahead_even_for_a_blob_thawed_twice(body):
    async with two(body) as pair:
        with Eve() as eve:
            await pair.connect()
            pair.alice.plane.set_endpoint(BOB, eve.endpoint)
            pair.alice.put(udp(A, B))
            await pair.settle()
            blob = pair.alice.plane.freeze()
            for pause in (0.0, 1.5):
                pair.clock.advance(pause)
                with successor(pair.alice, body, blob) as heir:
                    heir.put(udp(A, B))
                    await settle(heir)
            counters = [struct.unpack_from("<Q", datagram, 8)[0] for datagram in eve.captured()]
            # 2^23 per second of pause: more messages than the old process can have sent in between
            assert counters == [1, 2 + SKIP, 2 + SKIP + 3 * 2**22]


async def test_a_replay_across_the_handover_is_dropped(body):
    async with two(body) as pair:
        with Eve() as eve:
            mine, _ = await pair.connect()
            old = message(mine, 500, udp(B, A))
            eve.send(old, pair.alice.endpoint())
            await pair.settle()
            assert len(pair.alice.packets()) == 1
            with successor(pair.alice, body, pair.alice.plane.freeze()) as heir:
                eve.send(old, heir.endpoint())
                await settle(heir)
                assert heir.drops() == {"REPLAYED": 1}
                assert heir.happened(EndpointMoved) == []


async def test_all_slots_and_what_waits_go_over(body):
    """Bob holds a current key and an unconfirmed one. Alice has staged packets."""
    async with two(body) as pair:
        await pair.connect()
        first = await pair.connect()
        _, yours = keypairs(pair.clock())
        pair.bob.plane.install_keypair(ALICE, yours)
        blob = msgspec.msgpack.decode(pair.bob.plane.freeze())
        (peer,) = blob["peers"]
        assert {one["slot"]: one["local_index"] for one in peer["sessions"]} == {
            "current": first[1].local_index,
            "next": yours.local_index,
        }
        pair.alice.plane.expire_keypairs(BOB)
        pair.alice.put(udp(A, B, b"waiting"))
        await pair.settle()
        with successor(pair.alice, body, pair.alice.plane.freeze()) as heir:
            assert heir.counters.peers[BOB].staged == 1
            heir.put(udp(A, B, b"more"))
            await settle(heir)
            assert heir.counters.peers[BOB].staged == 2, "an expired key stays expired"


async def test_the_blob_is_as_documented(body):
    """Field names and values are literal: the other body reads the same bytes."""
    async with two(body) as pair:
        mine, _ = await pair.connect()
        pair.clock.advance(1.0)
        pair.alice.put(udp(A, B))
        await pair.settle()
        blob = msgspec.msgpack.decode(pair.alice.plane.freeze())
        (peer,) = blob.pop("peers")
        (session,) = peer.pop("sessions")
        source = peer.pop("source")
        assert blob == {"format": "ravenvpn-dataplane", "version": 1, "boot_id": BOOT_ID, "frozen_at": 1001.0}
        assert peer == {
            "id": BOB,
            "endpoint": [*pair.bob.endpoint()],
            "roaming": True,
            "rx_bytes": 0,
            "tx_bytes": 32 + 64,
            "rx_packets": 0,
            "tx_packets": 2,
            "facts": [1001.0, 1001.0, 0.0, 0.0, 1001.0, 0.0],
            "staged": [],
        }
        assert source is None
        assert session == {
            "slot": "current",
            "suite": "chacha20poly1305",
            "role": 0,
            "local_index": mine.local_index,
            "remote_index": mine.remote_index,
            "send_key": mine.send_key,
            "receive_key": mine.receive_key,
            "birth": 1000.0,
            "counter": 2,
            "sends": True,
            "renewal_asked": False,
            "greatest": -1,
            "window": bytes(1024),
        }


async def test_a_frozen_body_is_silent(body):
    async with two(body) as pair:
        await pair.connect()
        pair.alice.plane.freeze()
        pair.alice.put(udp(A, B))
        await settle(pair.bob)
        assert pair.bob.packets() == []
        for send in (
            lambda plane: plane.send_keepalive(BOB),
            lambda plane: plane.send_inner(BOB, udp(A, B)),
            lambda plane: plane.send_datagram(b"x", pair.bob.endpoint()),
            lambda plane: plane.install_keypair(BOB, keypairs(1.0)[0]),
            lambda plane: pair.alice.start(),
        ):
            with pytest.raises(ValueError, match="frozen"):
                send(pair.alice.plane)
        assert pair.bob.counters.peers[ALICE].rx_packets == 1


def test_the_collector_closes_no_borrowed_descriptor():
    """The garbage collector finalizes a cycle in any order, socket objects before their owner too."""
    with udp_socket(socket.AF_INET) as one:
        outer = Transmitter(CounterSet(), gso=False, gro=False)
        outer.set_sockets(one.fileno(), None)
        borrowed = outer.sockets[socket.AF_INET]
        holder = [outer]
        outer.holder = holder  # type: ignore[attr-defined]
        del outer
        gc.collect(0)  # objects reachable from elsewhere move behind the held ones, so the socket is finalized first
        del holder, borrowed
        gc.collect()
        one.getsockname()


async def changed(pair: Pair, change) -> bytes:
    await pair.connect()
    pair.alice.put(udp(A, B))
    await pair.settle()
    blob = msgspec.msgpack.decode(pair.alice.plane.freeze())
    change(blob)
    return msgspec.msgpack.encode(blob)


def session_of(blob):
    return blob["peers"][0]["sessions"][0]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("another format", lambda blob: blob.update(format="wireguard")),
        ("another version", lambda blob: blob.update(version=2)),
        ("another boot", lambda blob: blob.update(boot_id="0")),
        ("no peers", lambda blob: blob.pop("peers")),
        ("a peer twice", lambda blob: blob["peers"].append(blob["peers"][0])),
        ("a host name", lambda blob: blob["peers"][0].update(endpoint=["vpn.example.com", 1, 0])),
        ("a port that is none", lambda blob: blob["peers"][0].update(endpoint=["127.0.0.1", 70000, 0])),
        ("a source that is no address", lambda blob: blob["peers"][0].update(source=["lo", 1])),
        ("an interface that is none", lambda blob: blob["peers"][0].update(source=["127.0.0.1", -1])),
        ("a short key", lambda blob: session_of(blob).update(send_key=b"short")),
        ("an unknown suite", lambda blob: session_of(blob).update(suite="rot13")),
        ("an unknown role", lambda blob: session_of(blob).update(role=2)),
        ("an unknown slot", lambda blob: session_of(blob).update(slot="best")),
        ("a wide index", lambda blob: session_of(blob).update(local_index=1 << 32)),
        ("a negative counter", lambda blob: session_of(blob).update(counter=-1)),
        ("a short window", lambda blob: session_of(blob).update(window=b"")),
        ("a slot twice", lambda blob: blob["peers"][0]["sessions"].append(dict(session_of(blob), local_index=1))),
        ("an index twice", lambda blob: blob["peers"][0]["sessions"].append(dict(session_of(blob), slot="next"))),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_a_wrong_blob_changes_nothing(body, what, change):
    async with two(body) as pair:
        blob = await changed(pair, change)
        heir = End(body, pair.clock)
        try:
            with pytest.raises(ValueError, match=r"\w"):
                heir.plane.thaw(blob)
            assert heir.counters.peers == {}, what
        finally:
            heir.close()


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x80", b"not a blob at all"], ids=repr)
async def test_rubbish_is_no_blob(body, blob):
    async with two(body) as pair:
        with pytest.raises(ValueError, match="blob"):
            pair.alice.plane.thaw(blob)


async def test_a_truncated_blob_is_refused_wherever_it_ends(body):
    async with two(body) as pair:
        await pair.connect()
        blob = pair.bob.plane.freeze()
        heir = End(body, pair.clock)
        try:
            for size in range(0, len(blob), 7):
                with pytest.raises(ValueError, match="blob"):
                    heir.plane.thaw(blob[:size])
            assert heir.counters.peers == {}
        finally:
            heir.close()


async def test_a_message_limit_holds_across_the_handover(body):
    """Counters are used up to reject-after-messages and not beyond."""

    def near_the_end(blob):
        session_of(blob).update(suite="aes256gcm", counter=2**29 - SKIP - 2)

    async with two(body) as pair:
        with Eve() as eve:
            blob = await changed(pair, near_the_end)
            with successor(pair.alice, body, blob) as heir:
                heir.plane.set_endpoint(BOB, eve.endpoint)
                heir.put(*[udp(A, B, bytes([n])) for n in range(4)])
                await settle(heir)
                counters = [struct.unpack_from("<Q", datagram, 8)[0] for datagram in eve.captured()]
                assert counters == [2**29 - 2, 2**29 - 1]
                assert heir.counters.peers[BOB].staged == 2
                assert heir.happened() == [HandshakeNeeded(BOB)]


@pytest.mark.parametrize("role", [0, 1], ids=["initiator", "responder"])
async def test_many_messages_ask_for_a_new_key(body, role):
    """Rekey-after-messages applies to initiator and responder as senders (wireguard-go's keepKeyFresh)."""

    def worn(blob):
        session_of(blob).update(suite="aes256gcm", counter=2**28 - SKIP - 1, role=role)

    async with two(body) as pair:
        with Eve() as eve:
            blob = await changed(pair, worn)
            with successor(pair.alice, body, blob) as heir:
                heir.plane.set_endpoint(BOB, eve.endpoint)
                heir.put(udp(A, B))
                await settle(heir)
                assert heir.happened() == []
                heir.put(udp(A, B))
                await settle(heir)
                assert heir.happened() == [HandshakeNeeded(BOB)]
