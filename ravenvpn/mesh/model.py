"""The world as the mesh sees it: Gateways, Nodes and Peers as plain values, and one immutable snapshot of them all.

Field names follow the Kubernetes objects (docs/architecture), in Python's spelling. How an object looks as
YAML or JSON is known in `ravenvpn.k8s.crd` alone. Everything here is a value: nothing changes once it is made.
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

GATEWAY_LABEL = "raven.openyurt.io/gateway"
EPOCH_KEY = "ravenvpn.io/epoch"
EMPTY: Mapping[str, str] = MappingProxyType({})

DEFAULT_MESH = "ravenvpn"  # with the file source; in a cluster the UID of namespace kube-system
DEFAULT_TUNNEL_PORT = 4500
DEFAULT_PROXY_PORT = 10262  # upstream's DefaultProxyServerExposedPort


class EndpointType(StrEnum):
    TUNNEL = "tunnel"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class GatewayEndpoint:
    """A node that may be a gateway (`spec.endpoints[]`) or is one (`status.activeEndpoints[]`). Port 0: default."""

    node: str
    type: EndpointType = EndpointType.TUNNEL
    port: int = 0
    under_nat: bool = False
    nat_type: str = ""
    public_ip: str = ""  # an address of either family, or a DNS name
    public_port: int = 0
    config: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    @property
    def epoch(self) -> int:
        """How often this role has moved, as the one who moved it counted; 0 where nobody did."""
        text = self.config.get(EPOCH_KEY, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """`status.nodes[]`: what the others need to know of a node of this region."""

    node: str
    private_ip: Address | None = None
    subnets: tuple[Prefix, ...] = ()  # all pod CIDRs or Calico blocks, both families


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    nodes: tuple[NodeInfo, ...] = ()
    active: tuple[GatewayEndpoint, ...] = ()  # both types mixed, as upstream writes them


@dataclass(frozen=True, slots=True)
class Gateway:
    """A region. `created` is the creationTimestamp in seconds since 1970, None where the object has none."""

    name: str
    endpoints: tuple[GatewayEndpoint, ...] = ()  # order = priority
    tunnel_replicas: int = 0
    proxy_replicas: int = 0
    proxy_http_port: str = ""
    proxy_https_port: str = ""
    expose_type: str = ""  # "", PublicIP, LoadBalancer
    extra_cidrs: tuple[Prefix, ...] = ()  # annotation raven.openyurt.io/extra-allowed-source-cidrs
    status: GatewayStatus = field(default_factory=GatewayStatus)
    created: float | None = None
    generation: int = 0

    @property
    def active_tunnels(self) -> tuple[GatewayEndpoint, ...]:
        return tuple(e for e in self.status.active if e.type is EndpointType.TUNNEL)


@dataclass(frozen=True, slots=True)
class Node:
    """A Kubernetes Node, as far as `mesh.status` needs it. Planning never reads these."""

    name: str
    gateway: str = ""  # label raven.openyurt.io/gateway
    ready: bool = False
    internal_ips: tuple[Address, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    blocks: tuple[Prefix, ...] | None = None  # Calico's, instead of the pod CIDRs; None where Calico does not rule
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


class HostPort(NamedTuple):
    """Where a peer may be tried: an address or DNS name; port 0 means the peer's listen port."""

    host: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class PeerObject:
    """What one agent says about itself. Keys are 32 bytes each."""

    name: str
    public_key: bytes
    next_public_key: bytes | None = None
    listen_port: int = 0
    addresses: tuple[HostPort, ...] = ()  # best first; empty: only it can call
    node_addresses: tuple[Address, ...] = ()
    sources: tuple[Address, ...] = ()  # at most one a family
    suites: tuple[Suite, ...] = (Suite.CHACHA20POLY1305,)
    created: float | None = None

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        return (self.public_key,) if self.next_public_key is None else (self.public_key, self.next_public_key)


class Changes(NamedTuple):
    """Names of what differs between two worlds."""

    gateways: set[str]
    nodes: set[str]
    peers: set[str]


@dataclass(frozen=True, slots=True)
class World:
    """One snapshot of everything. Edits return a new world that shares what did not change."""

    gateways: PersistentMap[Gateway] = field(default_factory=PersistentMap)
    nodes: PersistentMap[Node] = field(default_factory=PersistentMap)
    peers: PersistentMap[PeerObject] = field(default_factory=PersistentMap)
    mesh: str = DEFAULT_MESH

    @classmethod
    def of(
        cls,
        gateways: Iterable[Gateway] = (),
        peers: Iterable[PeerObject] = (),
        nodes: Iterable[Node] = (),
        mesh: str = DEFAULT_MESH,
    ) -> World:
        return cls(
            PersistentMap((g.name, g) for g in gateways),
            PersistentMap((n.name, n) for n in nodes),
            PersistentMap((p.name, p) for p in peers),
            mesh,
        )

    def with_gateway(self, gateway: Gateway) -> World:
        return replace(self, gateways=self.gateways.put(gateway.name, gateway))

    def without_gateway(self, name: str) -> World:
        return replace(self, gateways=self.gateways.remove(name))

    def with_peer(self, peer: PeerObject) -> World:
        return replace(self, peers=self.peers.put(peer.name, peer))

    def without_peer(self, name: str) -> World:
        return replace(self, peers=self.peers.remove(name))

    def with_node(self, node: Node) -> World:
        return replace(self, nodes=self.nodes.put(node.name, node))

    def without_node(self, name: str) -> World:
        return replace(self, nodes=self.nodes.remove(name))

    def changes(self, earlier: World) -> Changes:
        """What differs from `earlier`, found in time proportional to what differs."""
        return Changes(
            self.gateways.changed(earlier.gateways),
            self.nodes.changed(earlier.nodes),
            self.peers.changed(earlier.peers),
        )


def address_of(text: str) -> Address | None:
    """The address `text` writes, or None where it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def lan_addresses(info: NodeInfo, peer: PeerObject | None) -> tuple[Address, ...]:
    """A node's addresses on its region's own network, best first."""
    found = dict.fromkeys(() if info.private_ip is None else (info.private_ip,))
    return tuple(found | dict.fromkeys(peer.node_addresses if peer else ()))


def host_prefix(address: Address) -> Prefix:
    """The prefix that holds this address alone."""
    return ipaddress.ip_network(address)
