"""What one node has to do: the values planning ends in, and the difference between two of them.

`tunnel` is for the agent to hand to the tunnel, `host` for `ravenvpn.node` to bring about. Reasons are words for
people and no part of equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Self

from ravenvpn.crypto.aead import Suite
from ravenvpn.mesh.conflict import Conflict
from ravenvpn.mesh.hoststate import HostDelta, HostState, Prefix
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT
from ravenvpn.mesh.reason import Reason
from ravenvpn.overhead import ETHERNET_MTU, tunnel_mtu


class NodeRole(StrEnum):
    """The role of a node in its region. The value is the word in reports and JSON."""

    ACTIVE = "active gateway", 1, "gateway"
    STANDBY = "standby gateway", 2, "gateway"
    PLAIN = "plain node", 3, "plain"
    NONE = "node without region", 0, "none"

    number: int  # in probes (docs/protocol.md, field "role")
    # Label of the Peer object. Active and standby share one, so that a role that moves between them costs no write.
    label: str

    def __new__(cls, word: str, number: int, label: str) -> Self:
        """Make the member `word`, as StrEnum does, with its other spellings as attributes."""
        made = str.__new__(cls, word)
        made._value_ = word
        made.number, made.label = number, label
        return made


class PeerKind(StrEnum):
    """What a peer is to its own region."""

    ACTIVE = "active"
    STANDBY = "standby"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where a peer may be tried. `host` is an address or a DNS name (to be resolved, both families tried)."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One session this node may hold.

    `warm` sessions are handshaken without waiting for traffic and kept; the others are configured and wait.
    `keepalive` in seconds, None for none: the side behind NAT keeps the path open. `candidates` may be empty: then
    only the peer can call (or be called where it was last seen).
    """

    name: str
    region: str
    kind: PeerKind
    public_keys: tuple[bytes, ...]
    candidates: tuple[Candidate, ...]
    keepalive: int | None
    warm: bool
    suites: tuple[Suite, ...]
    tunnel_address: IPv6Address
    roaming: bool = True
    prompt: bool = False  # to be judged as promptly as one with traffic: what we send elsewhere goes by it
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TunnelPlan:
    """The tunnel of this node. `device` False: sessions and probes only, no TUN.

    `peers` sorted by name; `routes` map a prefix to the peers that carry it, the first one does; `accepts` list
    for each peer the prefixes inner packets from it may come from.
    """

    listen_port: int = DEFAULT_TUNNEL_PORT
    mtu: int = tunnel_mtu(ETHERNET_MTU)
    own_address: IPv6Address | None = None
    device: bool = False
    peers: tuple[PeerPlan, ...] = ()
    routes: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()
    accepts: tuple[tuple[str, tuple[Prefix, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything one node has to do, for one world. Equal inputs make equal plans."""

    node: str
    role: NodeRole = NodeRole.NONE
    region: str = ""
    tunnel: TunnelPlan = field(default_factory=TunnelPlan)
    host: HostState = field(default_factory=HostState)
    relays: tuple[tuple[str, str], ...] = ()  # (far region, hub region) for every region met through a hub
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[Reason, ...] = ()  # for the operator: regions that are not reached and why, missing objects


@dataclass(frozen=True, slots=True)
class AcceptChange:
    peer: str
    add: tuple[Prefix, ...] = ()
    remove: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelDelta:
    """What turns one TunnelPlan into the next, in this order: peers set, accepts, routes, peers removed.

    `settings` holds the new listen port, MTU, own address and device in a TunnelPlan without peers, or None where
    those stayed. A removed peer takes its routes and acceptances with it; they are not listed again. An empty tuple
    of peers removes a route.
    """

    settings: TunnelPlan | None = None
    peers_set: tuple[PeerPlan, ...] = ()
    peers_removed: tuple[str, ...] = ()
    routes: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()
    accepts: tuple[AcceptChange, ...] = ()

    def __bool__(self) -> bool:
        return self != TunnelDelta()


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """What one update changed. Both parts are empty (false) when nothing did."""

    tunnel: TunnelDelta = field(default_factory=TunnelDelta)
    host: HostDelta = field(default_factory=HostDelta)

    def __bool__(self) -> bool:
        return bool(self.tunnel) or bool(self.host)
