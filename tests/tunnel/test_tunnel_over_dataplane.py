"""Two devices on real data planes, with a socket pair as TUN device and loopback as the network.

The other tests of the tunnel use a fake data plane. These show that the real ones implement the contract alike.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_network

import pytest
from dataplane.packets import udp
from dataplane.rig import BODIES, Clock, End, settle
from fake_dataplane import deterministic_random
from tunnel_world import peer_status

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint, InnerPacket, PeerId
from ravenvpn.tunnel.device import Device, DeviceEvent, PeerSettings, PeerStatus, SessionUp
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import WIREGUARD_ONLY
from ravenvpn.tunnel.probing.frame import PORT
from ravenvpn.tunnel.probing.prober import Prober

EPOCH = 1_700_000_000 * 10**9
PODS = {"alice": "10.1.0.1", "bob": "10.2.0.1"}
TUNNEL = {"alice": IPv6Address("fd00:1:2:1::a"), "bob": IPv6Address("fd00:1:2:1::b")}
_processes = itertools.count()


class Whole:
    """One end: a data plane, a device and a key."""

    def __init__(self, name: str, body: str, clock: Clock, suites: frozenset[Suite]) -> None:
        self.name, self.clock, self.body, self.suites = name, clock, body, suites
        self.key = PrivateKey.generate(deterministic_random(f"key of {name}"))
        self.reports: list[DeviceEvent] = []
        self.inner: list[InnerPacket] = []
        self.begin()

    def begin(self, plane_blob: bytes | None = None, tunnel_blob: bytes | None = None) -> None:
        """Start a process, with or without the blobs of its predecessor."""
        self.end = End(self.body, self.clock)
        if plane_blob is not None:
            self.end.plane.thaw(plane_blob)
        self.end.plane.set_own_address(TUNNEL[self.name], PORT)
        self.end.start()
        self.heard = 0  # value of `woken` at the last turn
        draw = deterministic_random(f"{self.name} {next(_processes)}")
        self.device = Device(self.end.plane, random=draw, suites=self.suites)
        if tunnel_blob is not None:
            self.device.thaw(tunnel_blob, self.clock())
        self.device.set_private_key(self.key, self.clock())
        self.device.set_up(self.clock())

    def knows(self, other: Whole, **changes: object) -> None:
        values = {
            "name": other.name,
            "public_keys": (other.key.public,),
            "endpoints": (other.end.endpoint(),),
            "suites": self.suites,
        }
        peer = self.device.set_peer(PeerSettings(**{**values, **changes}), self.clock())  # type: ignore[arg-type]
        prefix = ip_network(f"{PODS[other.name]}/32")
        self.end.plane.route(prefix, [peer])
        self.end.plane.accept(peer, [prefix, ip_network(TUNNEL[other.name])])

    def sends(self, text: str, other: Whole) -> None:
        self.end.put(udp(PODS[self.name], PODS[other.name], text.encode()))

    def received(self) -> list[str]:
        return [packet[28:].decode() for packet in self.end.packets()]

    def status(self, other: Whole) -> PeerStatus:
        return peer_status(self.device, other.name, self.clock())

    def turn(self) -> bool:
        """Do what a driver does when it is woken or its timer fires; return whether anything happened."""
        now = self.clock()
        due = self.device.deadline()
        # The native body may wake a tenth of a second late, on its own clock, so it is polled.
        if self.body == "pure" and self.end.woken == self.heard and (due is None or due > now):
            return False
        self.heard = self.end.woken
        events = self.end.plane.drain_events()
        if not events and (due is None or due > now):
            return False
        self.device.receive(events, now, EPOCH + int(now * 1e9))
        self.device.tick(now, EPOCH + int(now * 1e9))
        for report in self.device.drain_events():
            (self.inner if isinstance(report, InnerPacket) else self.reports).append(report)  # type: ignore[arg-type]
        return True


class Scene:
    def __init__(self, alice: Whole, bob: Whole, clock: Clock) -> None:
        self.alice, self.bob, self.clock = alice, bob, clock

    async def settle(self) -> None:
        """Run until nothing is due at this instant."""
        while True:
            await settle(self.alice.end, self.bob.end)
            if not any([self.alice.turn(), self.bob.turn()]):
                return

    async def run(self, seconds: float) -> None:
        """Advance the clock from deadline to deadline."""
        end = self.clock.now + seconds
        while True:
            await self.settle()
            due = [at for one in (self.alice, self.bob) if (at := one.device.deadline()) is not None and at <= end]
            if not due:
                break
            self.clock.now = max(self.clock.now, min(due))
        self.clock.now = end
        await self.settle()


@asynccontextmanager
async def two(body: str, suites: frozenset[Suite] = WIREGUARD_ONLY, **changes: object) -> AsyncIterator[Scene]:
    clock = Clock()
    alice, bob = Whole("alice", body, clock, suites), Whole("bob", body, clock, suites)
    alice.knows(bob, **changes)
    bob.knows(alice, **changes)
    try:
        yield Scene(alice, bob, clock)
    finally:
        alice.end.close()
        bob.end.close()


@pytest.fixture(params=BODIES)
def body(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("suites", [WIREGUARD_ONLY, frozenset(Suite)], ids=["wireguard", "aes"])
async def test_packets_that_waited_for_the_handshake_arrive_in_order(body: str, suites: frozenset[Suite]) -> None:
    async with two(body, suites) as scene:
        alice, bob = scene.alice, scene.bob
        for number in range(10):
            alice.sends(f"{number}", bob)
        await scene.settle()
        bob.sends("answer", alice)
        await scene.settle()
        assert bob.received() == [str(number) for number in range(10)]
        assert alice.received() == ["answer"]
        expected = Suite.AES256GCM if len(suites) == 2 else Suite.CHACHA20POLY1305
        for one, other in ((alice, bob), (bob, alice)):
            assert one.status(other).state is HandshakeState.ESTABLISHED
            assert one.status(other).suite is expected
            assert one.reports == [SessionUp(other.name, other.end.endpoint())]


async def test_bytes_are_counted_as_wg_shows_them(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("twelve bytes", bob)  # 40 with IP and UDP, padded to 48, 80 as a transport message
        await scene.settle()
        assert (alice.status(bob).tx_bytes, alice.status(bob).rx_bytes) == (148 + 80, 92)
        assert (bob.status(alice).tx_bytes, bob.status(alice).rx_bytes) == (92, 148 + 80)


async def test_a_session_in_use_is_renewed_and_loses_nothing(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.device.initiate("bob", scene.clock())
        await scene.settle()
        for second in range(250):
            alice.sends(f"{second}", bob)
            bob.sends(f"{second}", alice)
            await scene.run(1.0)
            age = alice.status(bob).session_age
            assert age is not None
            assert age <= 122.0
        assert bob.received() == alice.received() == [str(second) for second in range(250)]


async def test_one_way_traffic_gets_a_keepalive_back_and_keeps_the_session(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("hello", bob)
        await scene.run(9.9)
        assert bob.status(alice).tx_bytes == 92
        await scene.run(0.2)
        assert bob.status(alice).tx_bytes == 92 + 32
        await scene.run(60.0)
        assert alice.status(bob).tx_bytes == 148 + 80  # no second handshake


async def test_continuous_one_way_traffic_gets_keepalives_back(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        for second in range(100):
            alice.sends(f"{second}", bob)
            await scene.run(1.0)
        assert alice.status(bob).tx_bytes == 148 + 100 * 64  # no second handshake
        assert bob.status(alice).tx_bytes == 92 + 10 * 32  # one every ten seconds


async def test_keys_are_wiped_and_their_indices_free_after_nine_minutes(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("hello", bob)
        await scene.run(541.0)
        for one in (alice, bob):
            assert len(one.device._indices) == 0
            assert one.device.deadline() is None
        alice.sends("again", bob)
        await scene.settle()
        assert bob.received() == ["hello", "again"]


async def test_a_removed_peer_leaves_no_index_behind(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("hello", bob)
        await scene.settle()
        assert len(alice.device._indices) == 1
        alice.device.initiate("bob", scene.clock())
        await scene.run(5.0)
        alice.device.remove_peer("bob")
        await scene.settle()
        assert len(alice.device._indices) == 0


async def test_a_peer_that_restarts_is_back_within_22_seconds_of_traffic(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("before", bob)
        await scene.run(30.0)
        assert bob.received() == ["before"]
        descriptors, bob.end.close = bob.end, lambda: None  # type: ignore[method-assign]
        address = descriptors.endpoint()
        descriptors.plane.stop()
        descriptors.plane.set_sockets(None, None)
        bob.begin()
        bob.end.plane.set_sockets(descriptors.v4.fileno(), descriptors.v6.fileno())
        assert address == descriptors.endpoint()
        bob.knows(alice)
        for second in range(22):
            alice.sends(f"{second}", bob)
            await scene.run(1.0)
        assert "21" in bob.received()
        End.close(descriptors)
        End.close(bob.end)


async def test_a_peer_that_moves_is_followed_by_data_and_by_handshakes(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("before", bob)
        await scene.run(10.0)
        elsewhere = End(body, scene.clock)
        old = alice.end.endpoint()
        alice.end.plane.set_sockets(elsewhere.v4.fileno(), elsewhere.v6.fileno())
        alice.end.v4, elsewhere.v4 = elsewhere.v4, alice.end.v4
        alice.end.v6, elsewhere.v6 = elsewhere.v6, alice.end.v6
        assert alice.end.endpoint() != old
        alice.sends("after", bob)
        await scene.settle()
        bob.sends("answer", alice)
        await scene.settle()
        assert bob.received() == ["before", "after"]
        assert alice.received() == ["answer"]
        assert bob.status(alice).endpoint == alice.end.endpoint()
        bob.device.initiate("alice", scene.clock())
        await scene.run(6.0)
        assert bob.status(alice).last_handshake_ns >= EPOCH + 1010 * 10**9
        elsewhere.close()


async def test_a_new_process_takes_over_sessions_and_state(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        alice.sends("before", bob)
        await scene.run(1.0)
        tunnel, plane = alice.device.freeze(scene.clock()), alice.end.plane.freeze()
        alice.end.close()
        alice.begin(plane, tunnel)
        alice.knows(bob)
        alice.sends("after", bob)
        await scene.settle()
        bob.sends("answer", alice)
        await scene.settle()
        assert bob.received() == ["before", "after"]
        assert alice.received() == ["answer"]
        assert bob.status(alice).tx_bytes == 92 + 80  # no handshake
        await scene.run(541.0)
        assert len(alice.device._indices) == 0


async def test_a_probe_measures_the_round_trip(body: str) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        ask = Prober(TUNNEL["alice"], TUNNEL["bob"], session=1, start=scene.clock())
        answer = Prober(TUNNEL["bob"], TUNNEL["alice"], session=2, start=scene.clock(), interval=None)
        answer.announce(role=2, epoch=7)
        identity: PeerId = alice.status(bob).id
        alice.end.plane.send_inner(identity, ask.request(scene.clock()))
        await scene.settle()
        scene.clock.advance(0.25)
        (request,) = bob.inner
        reply = answer.receive(request.packet, scene.clock())
        assert reply is not None
        bob.end.plane.send_inner(request.peer, reply)
        await scene.settle()
        (received,) = alice.inner
        assert ask.receive(received.packet, scene.clock()) is None
        assert (ask.facts.rtt, ask.facts.role, ask.facts.epoch) == (0.25, 2, 7)
        assert alice.received() == bob.received() == []  # the packets of the probe do not reach the hosts


async def test_a_persistent_keepalive_opens_the_path_and_keeps_it_open(body: str) -> None:
    async with two(body, persistent_keepalive=25.0) as scene:
        alice, bob = scene.alice, scene.bob
        await scene.run(100.0)
        assert alice.status(bob).state is HandshakeState.ESTABLISHED
        assert alice.end.plane.counters().peers[alice.status(bob).id].tx_packets in (2, 3, 4, 5)
        assert bob.status(alice).rx_bytes >= 92


@pytest.mark.parametrize(
    "nowhere", [Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", 65536), Endpoint("bob.example", 1)]
)
async def test_an_invalid_endpoint_is_refused_and_changes_nothing(body: str, nowhere: Endpoint) -> None:
    async with two(body) as scene:
        alice, bob = scene.alice, scene.bob
        there = bob.end.endpoint()
        with pytest.raises(ValueError, match=r"endpoint|address|port"):
            alice.device.set_endpoint("bob", nowhere)
        with pytest.raises(ValueError, match=r"endpoint|address|port"):
            alice.knows(bob, endpoints=(there, nowhere))
        with pytest.raises(ValueError, match=r"endpoint|address|port"):
            alice.knows(bob, name="carol", public_keys=(PublicKey(bytes(range(32))),), endpoints=(nowhere,))
        assert [peer.settings.endpoints for peer in alice.device.peers(scene.clock())] == [(there,)]
        alice.sends("hello", bob)
        await scene.settle()
        assert bob.received() == ["hello"]
