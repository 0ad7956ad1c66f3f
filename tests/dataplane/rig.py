"""Data planes on real descriptors: a socketpair as TUN, loopback UDP as the network, and a clock that tests set.

No test waits: loopback delivers within the send, so `settle` turns the loop until no descriptor is readable.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import select
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_network

from dataplane.packets import PLAIN, apart

from ravenvpn import dataplane
from ravenvpn.crypto.aead import Suite, cipher
from ravenvpn.dataplane.contract import (
    Counters,
    DataPlane,
    Drop,
    Endpoint,
    Event,
    NewKeypair,
    PeerId,
    Role,
    Timing,
    Traffic,
)
from ravenvpn.offloads import Offloads

# The bodies that tests run with; the native one is included if it is built.
BODIES = ["pure"] if dataplane.native_absence() else ["pure", "native"]
BOOT_ID = "7d1c0f4e-0000-4000-8000-000000000000"
ALICE, BOB, CAROL = PeerId(1), PeerId(2), PeerId(3)
PREFIXES = {
    ALICE: ("10.1.0.0/16", "fd01::/64"),
    BOB: ("10.2.0.0/16", "fd02::/64"),
    CAROL: ("10.3.0.0/16", "fd03::/64"),
}


class Clock:
    """A clock in seconds. It never returns zero, which the contract reads as "never"."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def udp_socket(family: socket.AddressFamily, host: str = "") -> socket.socket:
    one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.bind((host, 0))
    return one


class End:
    """One data plane with its sockets and its TUN. Close it.

    `wire` is the kernel's side of the TUN, `inside` the data plane's side.
    """

    def __init__(
        self,
        body: str,
        clock: Clock,
        *,
        offloads: Offloads | None = None,
        timing: Timing | None = None,
        tun: bool = True,
        boot_id: str = BOOT_ID,
    ) -> None:
        self.clock = clock
        self.wire, self.inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        for one in (self.wire, self.inside):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.v4, self.v6 = udp_socket(socket.AF_INET), udp_socket(socket.AF_INET6)
        self.plane: DataPlane = dataplane.create(
            tun=self.inside.fileno() if tun else None,
            offloads=offloads,
            timing=timing,
            clock=clock,
            boot_id=boot_id,
            body=body,
        )
        self.plane.set_mtu(1420)
        self.plane.set_sockets(self.v4.fileno(), self.v6.fileno())
        self.woken = 0
        self.events: list[Event] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_remember_failure)
        self.plane.start(loop, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.plane.stop()
        self.plane.set_sockets(None, None)
        for one in (self.wire, self.inside, self.v4, self.v6):
            one.close()

    def endpoint(self, family: int = 4) -> Endpoint:
        if family == 4:
            return Endpoint("127.0.0.1", self.v4.getsockname()[1])
        return Endpoint("::1", self.v6.getsockname()[1])

    def knows(self, peer: PeerId, endpoint: Endpoint | None) -> None:
        """Configure a peer with its usual prefixes, routed and accepted."""
        self.plane.add_peer(peer)
        self.plane.set_endpoint(peer, endpoint)
        prefixes = [ip_network(prefix) for prefix in PREFIXES[peer]]
        for prefix in prefixes:
            self.plane.route(prefix, [peer])
        self.plane.accept(peer, prefixes)

    def put(self, *packets: bytes) -> None:
        """Write plain packets to the TUN as the kernel does, towards the tunnel."""
        for packet in packets:
            self.wire.send(PLAIN + packet)

    def frames(self) -> list[bytes]:
        """Return the frames written to the TUN since the last call, including virtio-net headers."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(self.wire.recv(1 << 17))
        return frames

    def packets(self) -> list[bytes]:
        """Return the packets written to the TUN since the last call, with superpackets split."""
        return [packet for frame in self.frames() for packet in apart(frame)]

    def happened(self, *kinds: type, traffic: bool = False) -> list[Event]:
        """Return the events since the last call.

        `kinds` selects types; Traffic is left out unless it is selected or `traffic` is set.
        """
        events = self.plane.drain_events()
        self.events += events
        wanted = kinds or ((object,) if traffic else None)
        return [e for e in events if (isinstance(e, wanted) if wanted else not isinstance(e, Traffic))]

    @property
    def counters(self) -> Counters:
        return self.plane.counters()

    def drops(self) -> dict[str, int]:
        """Return the drop counters that are not zero, by name."""
        return {Drop(drop).name: number for drop, number in self.counters.drops.items() if number}

    def descriptors(self) -> list[int]:
        return [self.inside.fileno(), self.v4.fileno(), self.v6.fileno()]


def keypairs(
    birth: float, *, suite: Suite = Suite.CHACHA20POLY1305, indices: tuple[int, int] | None = None
) -> tuple[NewKeypair, NewKeypair]:
    """Return the keypairs of a handshake: (the initiator's, the responder's)."""
    there, back = secrets.token_bytes(32), secrets.token_bytes(32)
    mine, yours = indices or (secrets.randbits(32), secrets.randbits(32))
    return (
        NewKeypair(suite, Role.INITIATOR, mine, yours, there, back, birth),
        NewKeypair(suite, Role.RESPONDER, yours, mine, back, there, birth),
    )


class Eve:
    """An attacker on the path or a foreign peer: a socket, with the keys of a session if a test passes them."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET, host: str = "") -> None:
        self.socket = udp_socket(family, host)
        option = (
            (socket.IPPROTO_IP, socket.IP_RECVTOS)
            if family == socket.AF_INET
            else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)
        )
        self.socket.setsockopt(*option, 1)

    def __enter__(self) -> Eve:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def endpoint(self) -> Endpoint:
        v6 = self.socket.family == socket.AF_INET6
        return Endpoint("::1" if v6 else "127.0.0.1", self.socket.getsockname()[1])

    def captured(self) -> list[bytes]:
        return [data for data, _ in self.captured_with_ds()]

    def captured_with_ds(self) -> list[tuple[bytes, int]]:
        """Return (datagram, its DS field with ECN) for each datagram received since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 16, 256)
                found.append((data, next((value[0] for _, kind, value in ancillary if kind in (1, 67)), 0)))
        return found

    def send(self, data: bytes, to: Endpoint, *, ds_field: int = 0) -> None:
        v6 = self.socket.family == socket.AF_INET6
        option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
        self.socket.sendmsg([data], [(*option, struct.pack("=i", ds_field))], 0, (to.host, to.port))


def message(keypair: NewKeypair, counter: int, inner: bytes) -> bytes:
    """Return the transport message of the other end of `keypair` (whitepaper §5.4.6), sealed by independent code."""
    sealed = cipher(keypair.suite, keypair.receive_key).encrypt(keypair.suite.nonce(counter), inner, None)
    return struct.pack("<IIQ", 4, keypair.local_index, counter) + sealed


class Pair:
    """Alice and Bob, configured as each other's peer. Alice initiates by default."""

    def __init__(self, alice: End, bob: End, clock: Clock) -> None:
        self.alice, self.bob, self.clock = alice, bob, clock

    def handshake(self, suite: Suite = Suite.CHACHA20POLY1305) -> tuple[NewKeypair, NewKeypair]:
        """Install the keys of a handshake without messages.

        Bob's key stays in `next` until Alice's first message arrives.
        """
        initiators, responders = keypairs(self.clock(), suite=suite)
        self.bob.plane.install_keypair(ALICE, responders)
        self.alice.plane.install_keypair(BOB, initiators)
        return initiators, responders

    async def connect(self, suite: Suite = Suite.CHACHA20POLY1305) -> tuple[NewKeypair, NewKeypair]:
        """Install keys, confirm them, and discard the events."""
        keys = self.handshake(suite)
        await self.settle()
        for end in (self.alice, self.bob):
            end.happened()
        return keys

    async def intercept(self, eve: Eve, *packets: bytes) -> list[bytes]:
        """Return the datagrams of these packets from Alice to Bob.

        From this call on Alice's endpoint of Bob is Eve's socket.
        """
        self.alice.plane.set_endpoint(BOB, eve.endpoint)
        self.alice.put(*packets)
        await self.settle()
        return eve.captured()

    async def settle(self) -> None:
        await settle(self.alice, self.bob)


_failures: list[dict] = []


def _remember_failure(loop: asyncio.AbstractEventLoop, context: dict) -> None:
    """Record an exception that left a pump; asyncio would only log it."""
    _failures.append(context)


async def settle(*ends: End) -> None:
    """Turn the loop until every descriptor of these ends is drained. Raises an exception that a pump raised."""
    poll = select.poll()
    for end in ends:
        for descriptor in end.descriptors():
            poll.register(descriptor, select.POLLIN)
    for _ in range(10_000):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if _failures:
            raise AssertionError("an exception left the data plane") from _failures.pop().get("exception")
        if not poll.poll(0):
            break
    else:
        raise AssertionError("the data plane does not drain its descriptors")
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def two(body: str, *, family: int = 4, **options) -> AsyncIterator[Pair]:
    """Yield two started ends that are configured as peers, without keys. `options` go to both `End`s."""
    clock = Clock()
    alice, bob = End(body, clock, **options), End(body, clock, **options)
    try:
        alice.knows(BOB, bob.endpoint(family))
        bob.knows(ALICE, alice.endpoint(family))
        alice.start()
        bob.start()
        yield Pair(alice, bob, clock)
    finally:
        alice.close()
        bob.close()
