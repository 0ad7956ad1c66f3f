"""`Gateway.status` as a pure function of the Gateway and its Nodes: the elected endpoints and the members.

The rules are those of OpenYurt's gateway-pickup-controller with three differences: if Replicas shrinks, the order of
the spec decides which endpoint stays active; every pod CIDR of both families is listed; each role has an epoch. The
controller and the file source use it. `mesh.takeover.with_takeover` covers the time until the next election.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import (
    EPOCH_KEY,
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    Node,
    NodeInfo,
)

# Keys that OpenYurt's controller sets to "true" in the config of an active endpoint, by type.
_GATE_KEYS = {EndpointType.TUNNEL: "enable-l3-tunnel", EndpointType.PROXY: "enable-l7-proxy"}


@dataclass(frozen=True, slots=True)
class Gates:
    """Feature gates of the cluster (ConfigMap kube-system/raven-cfg). A disabled type has no active endpoints."""

    tunnel: bool = True  # enable-l3-tunnel
    proxy: bool = False  # enable-l7-proxy

    def enables(self, kind: EndpointType) -> bool:
        """Return whether endpoints of this type are elected."""
        return self.tunnel if kind is EndpointType.TUNNEL else self.proxy


def fill(
    gateway: Gateway,
    nodes: Iterable[Node],
    gates: Gates = Gates(),
    known_epochs: Mapping[EndpointType, int] | None = None,
) -> GatewayStatus:
    """Return the desired status of `gateway`, given the nodes that carry its label.

    Its present status tells which endpoints are active now. `known_epochs` are the highest epochs seen of this
    Gateway: without an active endpoint the status holds no epoch.
    """
    members = sorted(nodes, key=lambda n: n.name)
    ready = {node.name for node in members if node.ready}
    active: list[GatewayEndpoint] = []
    for kind, replicas in (
        (EndpointType.PROXY, gateway.proxy_replicas),
        (EndpointType.TUNNEL, gateway.tunnel_replicas),
    ):
        if gates.enables(kind):
            active += elect(gateway, kind, replicas, ready, (known_epochs or {}).get(kind, 0))
    active.sort(key=lambda e: (e.node, e.type))
    carrier = next((e.node for e in active if e.type is EndpointType.TUNNEL), None)
    infos = tuple(
        NodeInfo(
            node.name,
            node.internal_ips[0] if node.internal_ips else None,
            _subnets(node, gateway.extra_cidrs if node.name == carrier else ()),
        )
        for node in members
    )
    return GatewayStatus(infos, tuple(active))


def _subnets(node: Node, extra: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    """Return the prefixes of a node's pods, and `extra` ones routed to it."""
    own = node.pod_cidrs if node.blocks is None else node.blocks
    return tuple(dict.fromkeys((*own, *extra)))


def elect(
    gateway: Gateway, kind: EndpointType, replicas: int, ready: Set[str], known_epoch: int = 0
) -> list[GatewayEndpoint]:
    """Return the active endpoints of one kind: at most `replicas`, among those of the spec whose node is ready.

    An active endpoint stays active (no fail-back); free places go to the others in the order of the spec. Fields are
    copied from the spec. The epoch grows by one whenever the set of active nodes changes.
    """
    able: dict[str, GatewayEndpoint] = {}
    for endpoint in gateway.endpoints:
        if endpoint.type is kind and endpoint.node in ready:
            able.setdefault(endpoint.node, endpoint)
    current = {e.node: e for e in gateway.status.active if e.type is kind}
    kept = [e for e in able.values() if e.node in current]
    fresh = [e for e in able.values() if e.node not in current]
    chosen = sorted((kept + fresh)[: max(replicas, 0)], key=lambda e: e.node)
    epoch = max((known_epoch, *(e.epoch for e in current.values())))
    if {e.node for e in chosen} != current.keys() or not epoch:
        epoch += 1
    marks = {_GATE_KEYS[kind]: "true", EPOCH_KEY: str(epoch)}
    return [replace(e, config={**e.config, **marks}) for e in chosen]
