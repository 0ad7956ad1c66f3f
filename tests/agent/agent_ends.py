"""Nodes in memory that probe each other: each is a PeerLiveness over a tunnel that is a list of packets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, cast

from ravenvpn.agent.peer_liveness import PeerLiveness
from ravenvpn.agent.subject_index import subject
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.mesh.nodeplan import Candidate, PeerKind, PeerPlan
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import PeerSettings, PeerStatus

ADDRESSES = {name: IPv6Address(f"fd00::1:{number}") for number, name in enumerate(("hub", "edge", "island"), 1)}
BUSY, IDLE = 1.0, 2.0


def plan(name: str, *, warm: bool = True) -> PeerPlan:
    return PeerPlan(
        name=name,
        region=name,
        kind=PeerKind.ACTIVE,
        public_keys=(bytes(32),),
        candidates=(Candidate("192.0.2.1", 4500),),
        keepalive=None,
        warm=warm,
        suites=(Suite.CHACHA20POLY1305,),
        tunnel_address=ADDRESSES[name],
    )


@dataclass
class End:
    """One node: its PeerLiveness, and a tunnel that is a list of sent packets."""

    name: str
    probing: PeerLiveness
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    @property
    def peers(self) -> End:
        """The NamedPeers of the tunnel."""
        return self

    def id_of(self, name: str) -> int:
        return list(ADDRESSES).index(name)

    def send_inner(self, name: str, packet: bytes) -> None:
        self.sent.append((name, packet))

    def status(self, name: str, *, session: bool = True, packets: int = 0, octets: int = 0) -> PeerStatus:
        return PeerStatus(
            id=self.id_of(name),  # type: ignore[arg-type]
            settings=PeerSettings(name, (PublicKey(bytes(31) + b"\1"),)),
            state=HandshakeState.IDLE,
            endpoint=Endpoint("192.0.2.1", 4500),
            suite=None,
            session_age=1.0 if session else None,
            last_handshake_ns=0,
            attempts=0,
            failure=None,
            rx_bytes=octets,
            tx_bytes=0,
            rx_packets=packets,
            tx_packets=0,
            staged=0,
        )


def end(name: str, *peers: str, warm: bool = True) -> End:
    made: list[End] = []
    numbers = itertools.count(1)

    def random(count: int) -> bytes:
        return next(numbers).to_bytes(count, "big")

    def changed() -> None:
        if made:
            made[0].changes += 1

    hashes = {subject(address): node for node, address in ADDRESSES.items()}
    one = End(name, PeerLiveness(BUSY, IDLE, random=random, on_change=changed, node_of=hashes.get))
    made.append(one)
    one.probing.attach(cast(Tunnel, cast(Any, one)), ADDRESSES[name])
    one.probing.set_peers({peer: plan(peer, warm=warm) for peer in peers}, 100.0)
    return one
