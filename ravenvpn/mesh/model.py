"""Gateways, Nodes and Peers as plain values, and `World`, one immutable snapshot of them all.

Field names follow the Kubernetes objects in Python's spelling; `ravenvpn.k8s` converts them from and to YAML and
JSON. Every value here is immutable.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from ravenvpn.crypto.aead import Suite
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.persistent import PersistentMap

GATEWAY_LABEL = "raven.openyurt.io/gateway"  # of a Node; the value is the name of its Gateway
EPOCH_KEY = "ravenvpn.io/epoch"  # in an active endpoint's `config`
EMPTY: Mapping[str, str] = MappingProxyType({})

DEFAULT_MESH = "ravenvpn"  # with the file source; in a cluster the UID of namespace kube-system
DEFAULT_TUNNEL_PORT = 4500  # OpenYurt's; UDP
DEFAULT_PROXY_PORT = 10262  # upstream's DefaultProxyServerExposedPort


class EndpointType(StrEnum):
    """`endpoint.type`: layer 3 tunnel, or OpenYurt's layer 7 proxy (which this agent does not serve)."""

    TUNNEL = "tunnel"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class GatewayEndpoint:
    """A node that may be a gateway (`spec.endpoints[]`) or is one (`status.activeEndpoints[]`)."""

    node: str
    type: EndpointType = EndpointType.TUNNEL
    port: int = 0  # on which the node listens; 0: see `mesh.tunnel_port`
    under_nat: bool = False
    nat_type: str = ""  # carried along for OpenYurt; no meaning here
    public_ip: str = ""  # an address of either family, or a DNS name
    public_port: int = 0  # of `public_ip`; 0: the port on which the node listens
    config: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    @property
    def epoch(self) -> int:
        """How often this role has moved, as counted by the controller; 0 if it did not count or is malformed."""
        text = self.config.get(EPOCH_KEY, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """`status.nodes[]`: one member of a region."""

    node: str
    private_ip: Address | None = None  # its first InternalIP
    subnets: tuple[Prefix, ...] = ()  # all pod CIDRs or Calico blocks, both families


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """`status`, as the controller writes it."""

    nodes: tuple[NodeInfo, ...] = ()  # the members of the region
    active: tuple[GatewayEndpoint, ...] = ()  # elected endpoints of both types, mixed as OpenYurt writes them


@dataclass(frozen=True, slots=True)
class Gateway:
    """A region."""

    name: str
    endpoints: tuple[GatewayEndpoint, ...] = ()  # order = priority
    tunnel_replicas: int = 0  # how many tunnel endpoints may be active
    proxy_replicas: int = 0
    proxy_http_port: str = ""
    proxy_https_port: str = ""
    expose_type: str = ""  # "", PublicIP, LoadBalancer
    extra_cidrs: tuple[Prefix, ...] = ()  # annotation raven.openyurt.io/extra-allowed-source-cidrs
    status: GatewayStatus = field(default_factory=GatewayStatus)
    created: float | None = None  # creationTimestamp, Unix seconds; None: the object has none
    generation: int = 0  # metadata.generation


@dataclass(frozen=True, slots=True)
class Node:
    """A Kubernetes Node, as far as `mesh.status` needs it. Planning does not read Nodes."""

    name: str
    gateway: str = ""  # label raven.openyurt.io/gateway
    ready: bool = False
    internal_ips: tuple[Address, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    blocks: tuple[Prefix, ...] | None = None  # Calico's address blocks, used instead of pod CIDRs; None: no Calico
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


class HostPort(NamedTuple):
    """An address or DNS name at which a peer may be dialled."""

    host: str
    port: int = 0  # 0: the peer's listen port


@dataclass(frozen=True, slots=True)
class PeerObject:
    """A Peer: the facts that one agent announces about its node."""

    name: str  # of the node
    public_key: bytes  # 32 bytes
    next_public_key: bytes | None = None  # 32 bytes; announced before the key rotates to it
    listen_port: int = 0  # 0: default, see `mesh.tunnel_port`
    addresses: tuple[HostPort, ...] = ()  # for other regions, best first; empty: no address to dial
    node_addresses: tuple[Address, ...] = ()  # on its region's network
    sources: tuple[Address, ...] = ()  # preferred source addresses, at most one a family
    suites: tuple[Suite, ...] = (Suite.CHACHA20POLY1305,)  # AEAD suites it accepts
    created: float | None = None  # creationTimestamp, Unix seconds

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        """The keys under which it may be met: current, then next."""
        return (self.public_key,) if self.next_public_key is None else (self.public_key, self.next_public_key)


class Changes(NamedTuple):
    """Names of the objects that differ between two worlds."""

    gateways: set[str]
    nodes: set[str]
    peers: set[str]


@dataclass(frozen=True, slots=True)
class World:
    """One snapshot of all objects. An edit returns a new world that shares unchanged objects with the old one."""

    gateways: PersistentMap[Gateway] = field(default_factory=PersistentMap)  # by name
    nodes: PersistentMap[Node] = field(default_factory=PersistentMap)  # by name
    peers: PersistentMap[PeerObject] = field(default_factory=PersistentMap)  # by node name
    mesh: str = DEFAULT_MESH  # name from which addresses are derived

    @classmethod
    def of(
        cls,
        gateways: Iterable[Gateway] = (),
        peers: Iterable[PeerObject] = (),
        nodes: Iterable[Node] = (),
        mesh: str = DEFAULT_MESH,
    ) -> World:
        """Return a world of these objects; of equal names the last one counts."""
        return cls(
            PersistentMap((g.name, g) for g in gateways),
            PersistentMap((n.name, n) for n in nodes),
            PersistentMap((p.name, p) for p in peers),
            mesh,
        )

    def with_gateway(self, gateway: Gateway) -> World:
        """Return a world with this Gateway added or replaced."""
        return replace(self, gateways=self.gateways.put(gateway.name, gateway))

    def without_gateway(self, name: str) -> World:
        """Return a world without this Gateway; no effect if it is not there."""
        return replace(self, gateways=self.gateways.remove(name))

    def with_peer(self, peer: PeerObject) -> World:
        """Return a world with this Peer added or replaced."""
        return replace(self, peers=self.peers.put(peer.name, peer))

    def without_peer(self, name: str) -> World:
        """Return a world without this Peer; no effect if it is not there."""
        return replace(self, peers=self.peers.remove(name))

    def with_node(self, node: Node) -> World:
        """Return a world with this Node added or replaced."""
        return replace(self, nodes=self.nodes.put(node.name, node))

    def without_node(self, name: str) -> World:
        """Return a world without this Node; no effect if it is not there."""
        return replace(self, nodes=self.nodes.remove(name))

    def changes(self, earlier: World) -> Changes:
        """Return the objects that differ from `earlier`, in time proportional to their number."""
        return Changes(
            self.gateways.changed(earlier.gateways),
            self.nodes.changed(earlier.nodes),
            self.peers.changed(earlier.peers),
        )


def address_of(text: str) -> Address | None:
    """Return the address that `text` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def lan_addresses(info: NodeInfo, peer: PeerObject | None) -> tuple[Address, ...]:
    """Return a node's addresses on its region's own network, best first: InternalIP, then those its Peer adds."""
    found = dict.fromkeys(() if info.private_ip is None else (info.private_ip,))
    return tuple(found | dict.fromkeys(peer.node_addresses if peer else ()))


def host_prefix(address: Address) -> Prefix:
    """Return the /32 or /128 of an address."""
    return ipaddress.ip_network(address)
