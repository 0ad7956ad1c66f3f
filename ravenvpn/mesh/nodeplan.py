"""`NodePlan`, the result of planning, and `PlanDelta`, the difference of two of them.

`ravenvpn.tunnel` applies `tunnel`, `ravenvpn.node` applies `host`. Reasons are no part of equality.
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
    """The role of a peer in its own region."""

    ACTIVE = "active"
    STANDBY = "standby"
    PLAIN = "plain"  # only of our own region: plain nodes hold no session with other regions


@dataclass(frozen=True, slots=True)
class Candidate:
    """A socket address at which a peer may be dialled."""

    host: str  # address literal or DNS name; of a name, addresses of both families are tried
    port: int  # UDP


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One session this node may hold."""

    name: str  # node name
    region: str
    kind: PeerKind
    public_keys: tuple[bytes, ...]  # 32 bytes each; the second one is announced for rotation
    candidates: tuple[Candidate, ...]  # best first; empty: only the peer can start, or where it was last seen
    keepalive: int | None  # seconds; only on the side behind NAT, which keeps the path open
    warm: bool  # the handshake is made without waiting for traffic, and the session kept; False: on demand
    suites: tuple[Suite, ...]  # that the peer announces
    tunnel_address: IPv6Address  # of the peer, where probes are sent
    roaming: bool = True  # replies go to where its last authenticated packet came from
    carries_our_traffic: bool = False  # probe it as often as a peer with traffic: our packets to other regions use it
    reason: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TunnelPlan:
    """The tunnel of this node: cryptokey routing in both directions, sessions, and the TUN device's settings."""

    listen_port: int = DEFAULT_TUNNEL_PORT  # UDP
    mtu: int = tunnel_mtu(ETHERNET_MTU)  # of the TUN device, bytes
    own_address: IPv6Address | None = None  # this node's tunnel address; None: the node is in no region
    device: bool = False  # False: sessions and probes only, no TUN device
    peers: tuple[PeerPlan, ...] = ()  # sorted by name
    routes: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()  # prefix → peers; the first one carries it
    accepts: tuple[tuple[str, tuple[Prefix, ...]], ...] = ()  # peer → prefixes that inner sources may lie in


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything planned for one node. Equal situations make equal plans."""

    node: str
    role: NodeRole = NodeRole.NONE
    region: str = ""
    tunnel: TunnelPlan = field(default_factory=TunnelPlan)
    host: HostState = field(default_factory=HostState)
    relays: tuple[tuple[str, str], ...] = ()  # (far region, hub region) of every region reached through a hub
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[Reason, ...] = ()  # for the operator: regions that are not reached and why, missing objects


@dataclass(frozen=True, slots=True)
class AcceptChange:
    """Prefixes to add to and to remove from a peer's permitted inner sources."""

    peer: str
    add: tuple[Prefix, ...] = ()
    remove: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelDelta:
    """The difference of two TunnelPlans. Apply it in this order: peers set, accepts, routes, peers removed."""

    settings: TunnelPlan | None = None  # the new one without peers and prefixes; None: these settings stayed
    peers_set: tuple[PeerPlan, ...] = ()  # new or changed
    peers_removed: tuple[str, ...] = ()  # routes and accepted prefixes of these go too, and are not listed
    routes: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()  # new or changed; without peers: removed
    accepts: tuple[AcceptChange, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return self != TunnelDelta()


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """The difference of two plans; both parts are false if nothing differs."""

    tunnel: TunnelDelta = field(default_factory=TunnelDelta)
    host: HostDelta = field(default_factory=HostDelta)

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.tunnel) or bool(self.host)
