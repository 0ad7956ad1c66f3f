"""Differential test of the two bodies with random schedules.

Both bodies get the same calls and the same bytes on their own descriptors. After every step their events, datagrams,
packets and counters must be equal. The Python body is the specification of the native one.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_network

import msgspec
import pytest
from dataplane.packets import ACK, FIN, PSH, apart, ip, superpacket, tcp, udp
from dataplane.rig import ALICE, BODIES, CAROL, PREFIXES, Clock, End, Eve, message, settle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.dataplane.contract import Datagram, Endpoint, EndpointMoved, NewKeypair, Role, Source

pytestmark = pytest.mark.skipif(BODIES == ["pure"], reason="THE NATIVE BODY WAS NOT BUILT")

OWN = "fd02::99"
PROBE_PORT = 10277
PLACES = ("alice", "carol", "elsewhere", "six")


class World:
    """One body and the sockets that it exchanges datagrams with: one for each peer, and two more."""

    def __init__(self, body: str, clock: Clock) -> None:
        self.clock = clock
        self.end = End(body, clock)
        self.places = {name: Eve(socket.AF_INET6 if name == "six" else socket.AF_INET) for name in PLACES}
        self.names = {eve.endpoint: name for name, eve in self.places.items()}
        self.sessions: list[NewKeypair] = []
        self.said: Counter[int] = Counter()  # messages sent by the other ends, per session
        self.end.plane.set_own_address(IPv6Address(OWN), PROBE_PORT)

    def close(self) -> None:
        self.end.close()
        for eve in self.places.values():
            eve.socket.close()

    def name_of(self, endpoint: Endpoint | None) -> str | None:
        return None if endpoint is None else self.names[endpoint]

    def observed(self) -> dict[str, object]:
        """Return all effects of this step, independent of port numbers and batch boundaries."""
        events = []
        for event in self.end.plane.drain_events():
            located = isinstance(event, Datagram | EndpointMoved)
            events.append(
                (type(event), *event[:-2], self.name_of(event.endpoint), event.source) if located else event
            )
        flows = defaultdict(list)
        for frame in self.end.frames():
            for packet in apart(frame):
                at, protocol = (20, packet[9]) if packet[0] >> 4 == 4 else (40, packet[6])
                addresses = packet[12:20] if at == 20 else packet[8:40]
                ports = packet[at : at + 4] if protocol in (6, 17) else b""
                flows[addresses, protocol, ports].append(without_id(packet))
        counters = self.end.counters
        return {
            "events": events,
            "datagrams": {name: eve.captured_with_ds() for name, eve in self.places.items()},
            "flows": dict(flows),
            "drops": self.end.drops(),
            "peers": {
                peer: replace(each, endpoint=self.name_of(each.endpoint)) for peer, each in counters.peers.items()
            },
            "packets": (
                counters.tun_rx_packets, counters.tun_tx_packets, counters.udp_rx_datagrams, counters.udp_tx_datagrams
            ),
        }  # fmt: skip


def without_id(packet: bytes) -> bytes:
    """Zero the IPv4 ID of a packet with DF: it has no meaning (RFC 6864 §4.1), and splitting assigns new ones."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


class Step:
    """One action, applied to each world, that depends on drawn values only. `repr` describes it in a failure."""

    def __init__(self, text: str, work: Callable[[World], object]) -> None:
        self.text, self.work = text, work

    def __call__(self, world: World) -> None:
        self.work(world)

    def __repr__(self) -> str:
        return self.text


# --- Steps ------------------------------------------------------------------------------------------------

peers = st.sampled_from([ALICE, CAROL])
places = st.sampled_from(PLACES)
prefixes = st.sampled_from([p for pair in PREFIXES.values() for p in pair] + ["10.0.0.0/8", "10.1.7.0/24", "::/0"])
inside = st.sampled_from(["10.1.0.1", "10.1.7.7", "10.3.0.1", "10.3.0.2", "10.9.9.9"])
inside6 = st.sampled_from(["fd01::1", "fd03::1", "fd03::2", "fd09::1"])
sizes = st.sampled_from([0, 1, 15, 16, 100, 1200, 1380])
flags = st.sampled_from([ACK, ACK, ACK, ACK | PSH, ACK | FIN])
ds_fields = st.integers(0, 3)


@st.composite
def packets(draw, outwards: bool) -> bytes:
    """An inner packet, to the peers or from them."""
    v6 = draw(st.booleans())
    there = draw(inside6 if v6 else inside)
    here = "fd02::1" if v6 else "10.2.0.1"
    if v6 and not outwards and draw(st.integers(0, 4)) == 0:
        return udp(there, OWN, b"probe", ports=(1, draw(st.sampled_from([PROBE_PORT, 5]))))
    ends = (here, there) if outwards else (there, here)
    more = {"tos": draw(ds_fields)}
    size, port = draw(sizes), draw(st.integers(1, 3))
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return udp(*ends, bytes([port]) * size, ports=(port, 2), **more)
    if kind < 8:
        return tcp(*ends, bytes([port]) * size, ports=(port, 2), sequence=draw(st.integers(1, 5)) * 1200,
                   flags=draw(flags), **more)  # fmt: skip
    if kind == 8:
        return ip(*ends, draw(st.sampled_from([1, 58, 44, 47])), bytes(size), **more)
    return draw(st.binary(min_size=1, max_size=60))


@st.composite
def put(draw):
    frames = [b"\0" * 10 + packet for packet in draw(st.lists(packets(True), min_size=1, max_size=6))]
    return Step(f"put {frames}", lambda world: [world.end.wire.send(frame) for frame in frames])


@st.composite
def put_superpacket(draw):
    v6, is_tcp = draw(st.booleans()), draw(st.booleans())
    ends = ("fd02::1", draw(inside6)) if v6 else ("10.2.0.1", draw(inside))
    data = bytes(range(256)) * draw(st.integers(1, 30))
    whole = (
        tcp(*ends, data, flags=draw(flags), tos=draw(ds_fields)) if is_tcp else udp(*ends, data, tos=draw(ds_fields))
    )
    changes = draw(st.sampled_from([{}, {}, {}, {"gso_type": 0}, {"csum_start": 8}, {"flags": 0}, {"gso_type": 3}]))
    frame = superpacket(whole, draw(st.sampled_from([0, 48, 500, 1200, 1368])), **changes)
    return Step(f"superpacket {frame[:80].hex()}", lambda world: world.end.wire.send(frame))


@st.composite
def hear(draw):
    """Transport messages from any place: genuine, replayed, late, damaged, or of an old session."""
    place, count = draw(places), draw(st.integers(1, 8))
    ds_field, damage, which = draw(ds_fields), draw(st.integers(0, 19)), draw(st.integers(0, 3))
    odd = st.sampled_from([0, 1, 2, 3, 50, 51, 9000, 2**29, 2**64 - 2**13 - 2])
    counters = [draw(st.one_of(st.none(), st.none(), st.none(), odd)) for _ in range(count)]
    if draw(st.booleans()):  # bulk, which is joined
        size, here, flag = draw(sizes), draw(inside), draw(flags)
        inners = [tcp(here, "10.2.0.1", bytes(size), sequence=1 + n * size, flags=flag) for n in range(count)]
    else:
        inners = [draw(st.one_of(st.just(b""), packets(False))) for _ in range(count)]

    def step(world: World) -> None:
        keypair = world.sessions[-1 - which % len(world.sessions)]
        for counter, inner in zip(counters, inners, strict=True):
            world.said[keypair.local_index] += 1
            fresh = world.said[keypair.local_index] if counter is None else counter
            data = message(keypair, fresh, inner + bytes(-len(inner) % 16))
            if damage == 0:
                data = data[:-1] + bytes([data[-1] ^ 1])
            elif damage == 1:
                data = data[:20]
            elif damage == 2:
                data = b"\4\0\1\0" + data[4:]
            world.places[place].send(data, world.end.endpoint(6 if place == "six" else 4), ds_field=ds_field)

    return Step(
        f"messages {counters} of session {which} from {place}, damage {damage}, ECN {ds_field}: {inners}", step
    )


@st.composite
def hear_other(draw):
    place, data = draw(places), draw(st.sampled_from([b"", b"\1\0\0\0" + bytes(144), b"\2", b"\4", b"\xff" * 40]))
    return Step(
        f"hear {data!r} from {place}",
        lambda world: world.places[place].send(data, world.end.endpoint(6 if place == "six" else 4)),
    )


@st.composite
def session(draw):
    peer, role, suite = draw(peers), draw(st.sampled_from(Role)), draw(st.sampled_from(Suite))
    indices = draw(st.integers(1, 12)), draw(st.integers(0, 2**32 - 1))
    keys = draw(st.binary(min_size=32, max_size=32)), draw(st.binary(min_size=32, max_size=32))

    def step(world: World) -> None:
        keypair = NewKeypair(suite, role, *indices, *keys, world.clock())
        world.end.plane.install_keypair(peer, keypair)
        world.sessions.append(keypair)

    return Step(f"{role.name} {suite.name} session {indices} of {peer}", step)


def call(name: str, *arguments):
    return Step(f"{name}{arguments}", lambda world: getattr(world.end.plane, name)(*arguments))


def endpoint_call(peer, place, source):
    return Step(
        f"set_endpoint{peer, place, source}",
        lambda world: world.end.plane.set_endpoint(
            peer, None if place is None else world.places[place].endpoint, source
        ),
    )


def route(prefix, to):
    return call("route", ip_network(prefix), to)


def advance(seconds):
    return Step(f"{seconds} seconds", lambda world: world.clock.advance(seconds))


per_peer = ("add_peer", "remove_peer", "clear_source", "expire_keypairs", "drop_keypairs", "purge_staged",
            "send_keepalive", "send_keepalive")  # fmt: skip
steps = st.one_of(
    *[put()] * 4,
    *[put_superpacket()] * 2,
    *[hear()] * 8,
    hear_other(),
    session(),
    session(),
    st.builds(call, st.sampled_from(per_peer), peers),
    st.builds(
        endpoint_call,
        peers,
        st.one_of(st.none(), places),
        st.sampled_from([None, None, Source("127.0.0.2", 1), Source("::1", 1), Source("192.0.2.1", 1)]),
    ),
    st.builds(lambda peer, on: call("set_roaming", peer, on), peers, st.booleans()),
    st.builds(route, prefixes, st.lists(peers, max_size=2, unique=True)),
    st.builds(
        lambda peer, add, remove: call("accept", peer, [ip_network(p) for p in add], [ip_network(p) for p in remove]),
        peers,
        st.lists(prefixes, max_size=2),
        st.lists(prefixes, max_size=2),
    ),
    st.builds(lambda peer, packet, df: call("send_inner", peer, packet, df), peers, packets(True), st.booleans()),
    st.builds(lambda mtu: call("set_mtu", mtu), st.sampled_from([0, 100, 1280, 1420])),
    st.builds(advance, st.sampled_from([0.1, 0.1, 5.0, 30.0, 121.0, 166.0, 181.0])),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # without shrinking, which takes minutes; add it to examine a failure
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(steps, min_size=15, max_size=40))
def test_both_bodies_do_the_same(schedule):
    asyncio.run(side_by_side(schedule))


async def side_by_side(schedule) -> None:
    worlds = {body: World(body, Clock()) for body in BODIES}
    try:
        for world in worlds.values():
            world.end.knows(ALICE, world.places["alice"].endpoint)
            world.end.knows(CAROL, world.places["carol"].endpoint)
            world.end.start()
            for index, (peer, role) in enumerate(((ALICE, Role.INITIATOR), (CAROL, Role.RESPONDER))):
                keypair = NewKeypair(Suite.CHACHA20POLY1305, role, 20 + index, 7, b"1" * 32, b"2" * 32, world.clock())
                world.end.plane.install_keypair(peer, keypair)
                world.sessions.append(keypair)
        for number, step in enumerate(schedule):
            outcomes = {}
            for body, world in worlds.items():
                try:
                    step(world)
                except (KeyError, ValueError) as error:
                    outcomes[body] = type(error)
                await settle(world.end)
            assert outcomes.get("native") == outcomes.get("pure"), number
            seen = {body: world.observed() for body, world in worlds.items()}
            for what, expected in seen["pure"].items():
                assert seen["native"][what] == expected, (number, what)
        blobs = {body: thawed(world) for body, world in worlds.items()}
        assert blobs["native"] == blobs["pure"]
    finally:
        for world in worlds.values():
            world.close()


def thawed(world: World) -> dict[str, object]:
    """Return the decoded hand-over blob, with names instead of endpoints."""
    blob = msgspec.msgpack.decode(world.end.plane.freeze())
    for peer in blob["peers"]:
        peer["endpoint"] = None if peer["endpoint"] is None else world.names[Endpoint(*peer["endpoint"])]
    blob["peers"].sort(key=lambda peer: peer["id"])
    return blob
