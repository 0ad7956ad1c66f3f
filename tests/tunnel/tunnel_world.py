"""A simulated world: nodes with a device each, a network with faults, and a clock that tests advance.

No test waits: `World.run(seconds)` jumps from one event to the next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from fake_dataplane import FakeDataPlane, deterministic_random

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.dataplane.contract import Endpoint, Source, Timing
from ravenvpn.token_bucket import TokenBucket
from ravenvpn.tunnel.admission.load_monitor import handshake_budget
from ravenvpn.tunnel.device import Device, PeerSettings, PeerStatus
from ravenvpn.tunnel.peer import WIREGUARD_ONLY

BOOT = 1000.0  # seconds on CLOCK_BOOTTIME at the start of a test
EPOCH = 1_700_000_000 * 10**9  # wall clock at that time, nanoseconds
EVE = Endpoint("198.51.100.66", 666)
LATENCY = 1 / 64  # seconds; exact in binary, so that tests can give times literally

# Kinds by message type. Type 4 is classified by its length.
NAMES = {1: "initiation", 2: "response", 3: "cookie reply"}


@dataclass(frozen=True)
class Flight:
    """One datagram on the wire. `via` is the destination address that the receiver's kernel would report."""

    at: float
    data: bytes
    sender: Endpoint
    to: Endpoint
    via: Source | None

    @property
    def kind(self) -> str:
        return NAMES.get(self.data[0]) or ("keepalive" if len(self.data) == 32 else "data")


@dataclass
class Node:
    """One end: its addresses, its device and its data plane. It sends from the first address."""

    name: str
    world: World
    addresses: list[Endpoint]
    key: PrivateKey
    device: Device
    dataplane: FakeDataPlane
    sources: list[Source | None] = field(default_factory=list)  # source address that each message asked for

    @property
    def address(self) -> Endpoint:
        return self.addresses[0]

    def settings(self, **changes: object) -> PeerSettings:
        """Return the settings by which other nodes configure this one."""
        values: dict[str, object] = {
            "name": self.name,
            "public_keys": (self.key.public,),
            "endpoints": (self.address,),
        }
        return PeerSettings(**{**values, **changes})  # type: ignore[arg-type]

    def knows(self, other: Node, **changes: object) -> None:
        self.device.set_peer(other.settings(**changes), self.world.now)

    def sends(self, packet: bytes, to: Node) -> None:
        self.dataplane.send(self.status(to).id, packet)
        self.wake()

    def turn(self) -> None:
        """Do the work of a driver after an event."""
        now, unix_ns = self.world.now, self.world.unix_ns
        self.device.poll(now, unix_ns)
        self.device.tick(now, unix_ns)

    def wake(self) -> None:
        """Take a turn if the data plane asks for one or the deadline has come."""
        deadline = self.device.deadline()
        if self.dataplane.has_news or (deadline is not None and deadline <= self.world.now):
            self.turn()

    def status(self, other: Node) -> PeerStatus:
        return peer_status(self.device, other.name, self.world.now)

    @property
    def delivered(self) -> list[bytes]:
        return self.dataplane.delivered


class World:
    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.handshake_budget: Callable[[], TokenBucket] = handshake_budget
        self.now = BOOT
        self.wall_offset_ns = 0
        self.nodes: list[Node] = []
        self.sent: list[Flight] = []  # every datagram ever on the wire: the view of an attacker
        self.flights: list[tuple[float, int, Flight]] = []
        # For each flight the delays of its arrivals: none for a loss, several for duplicates.
        self.path: Callable[[Flight], list[float]] = lambda _: [LATENCY]
        self._sequence = 0

    @property
    def unix_ns(self) -> int:
        return EPOCH + int((self.now - BOOT) * 1e9) + self.wall_offset_ns

    def node(
        self,
        name: str,
        *addresses: str,
        suites: frozenset[Suite] = WIREGUARD_ONLY,
        up: bool = True,
        generation: int = 0,
    ) -> Node:
        """Add a node that is up, with its own key and port 51820 on each address."""
        draw = deterministic_random(f"{name} {generation}")
        ends = [Endpoint(address, 51820) for address in addresses or (f"192.0.2.{len(self.nodes) + 1}",)]
        key = PrivateKey.generate(deterministic_random(f"key of {name}"))
        box: list[Node] = []
        dataplane = FakeDataPlane(lambda: self.now, lambda *args: self._transmit(box[0], *args), self.timing)
        device = Device(dataplane, random=draw, timing=self.timing, suites=suites, budget=self.handshake_budget())
        node = Node(name, self, ends, key, device, dataplane)
        box.append(node)
        device.set_private_key(key, self.now)
        if up:
            device.set_up(self.now)
        self.nodes.append(node)
        return node

    def pair(self, **changes: object) -> tuple[Node, Node]:
        """Add Alice and Bob, each configured as the other's peer."""
        alice, bob = self.node("alice"), self.node("bob")
        alice.knows(bob, **changes)
        bob.knows(alice, **changes)
        return alice, bob

    def restart(self, node: Node, generation: int = 1) -> Node:
        """Restart a node: the same key and addresses, and no other state."""
        self.nodes.remove(node)
        fresh = self.node(node.name, *(one.host for one in node.addresses), generation=generation)
        fresh.addresses = node.addresses
        fresh.dataplane.delivered = node.dataplane.delivered
        return fresh

    # The network.

    def _transmit(self, node: Node, data: bytes, to: Endpoint, source: Source | None) -> None:
        node.sources.append(source)
        sender = node.address
        if source is not None:
            sender = next((one for one in node.addresses if one.host == source.host), sender)
        self.put(data, sender, to)

    def put(self, data: bytes, sender: Endpoint, to: Endpoint) -> None:
        """Put a datagram on the wire, with any source, as an attacker can."""
        flight = Flight(self.now, data, sender, to, Source(to.host, 1))
        self.sent.append(flight)
        for delay in self.path(flight):
            self._sequence += 1
            heapq.heappush(self.flights, (self.now + delay, self._sequence, flight))

    def kinds(self, since: float = 0.0, sender: Node | None = None) -> list[str]:
        """Return the kinds of the messages sent."""
        return [
            one.kind for one in self.sent if one.at >= since and (sender is None or one.sender in sender.addresses)
        ]

    # Time.

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for node in self.nodes:
                node.wake()
            due = [deadline for node in self.nodes if (deadline := node.device.deadline()) is not None]
            if self.flights:
                due.append(self.flights[0][0])
            instant = max(self.now, min(due, default=end))
            if instant > end:
                break
            self.now = instant
            while self.flights and self.flights[0][0] <= self.now:
                _, _, flight = heapq.heappop(self.flights)
                for node in self.nodes:
                    if flight.to in node.addresses:
                        node.dataplane.receive(flight.data, flight.sender, flight.via)
            if not due:
                break
        self.now = end
        for node in self.nodes:
            node.wake()


def peer_status(device: Device, name: str, now: float) -> PeerStatus:
    """Return the status of one peer. Raises KeyError if no peer has this name."""
    return {one.settings.name: one for one in device.peers(now)}[name]


def drops(node: Node) -> dict[str, int]:
    return {reason.name: count for reason, count in node.device.drops().items() if count}


def the(kind: str, world: World) -> Flight:
    """Return the last message of this kind that was sent."""
    return [flight for flight in world.sent if flight.kind == kind][-1]
