"""The plan of this node's own region: sessions inside it, devices, rules, sysctls, routes of the way back.

It depends on the own region and this host alone; the part of each other region is `mesh.remote_region`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ravenvpn.mesh import identity, vxlan
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import (
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Prefix,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, Gateway, NodeInfo, PeerObject, host_prefix
from ravenvpn.mesh.nodeplan import Candidate, NodeRole, PeerKind, PeerPlan
from ravenvpn.mesh.policy_rules import policy_rules
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.remote_region import fail_closed
from ravenvpn.mesh.resolved_region import GatewayNode
from ravenvpn.mesh.sources import source_notes
from ravenvpn.mesh.sysctls import sysctls
from ravenvpn.mesh.tunnel_port import listen_port


@dataclass(frozen=True, slots=True)
class OwnRegionPlan:
    """The own region's part of a plan. Compare `nodeplan.NodePlan`, which is the union of all parts."""

    peers: Mapping[str, PeerPlan] = field(default_factory=dict)  # by node name
    routes: Mapping[Prefix, tuple[str, ...]] = field(default_factory=dict)  # tunnel address → its peer
    accepts: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)  # peer → permitted inner sources
    listen_port: int = DEFAULT_TUNNEL_PORT
    tun: TunDevice | None = None  # None on a plain node: it has sessions and probes, and no device
    vxlan: VxlanDevice | None = None
    addresses: tuple[DeviceAddress, ...] = ()  # of both devices
    neighbours: tuple[Neighbour, ...] = ()  # of the VXLAN
    forwarding: tuple[ForwardingEntry, ...] = ()  # of the VXLAN
    host_routes: tuple[Route, ...] = ()  # of the mesh's /48, and of the way back over the VXLAN
    rules: tuple[Rule, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    local: frozenset[Prefix] = frozenset()  # elements of the packet filter's set of this region's prefixes
    notes: tuple[Reason, ...] = ()


def plan_own_region(
    context: Context,
    gateway: Gateway | None,
    peers: Mapping[str, PeerObject],
    refused: RefusedClaims,
    *,
    configured_port: int | None = None,
    bound_ports: frozenset[int] = frozenset(),
) -> OwnRegionPlan:
    """Return the own region's part of the plan.

    `gateway` is the Gateway of `context.region`, `refused` what it lost in conflicts, `configured_port` the
    operator's listen port on this node, `bound_ports` those on which the tunnel receives now.
    """
    region = context.region
    if region is None or gateway is None:
        return OwnRegionPlan(notes=(Reason(ReasonCode.NO_REGION, context.node),))
    own_peer = peers.get(context.node)
    port = listen_port(context.node, gateway, own_peer, configured_port)
    sessions = _sessions(context, gateway, peers, refused)
    tunnels = {host_prefix(p.tunnel_address): (p.name,) for p in sessions.values()}
    info = next((i for i in gateway.status.nodes if i.node == context.node), None)
    return OwnRegionPlan(
        peers=sessions,
        routes=tunnels,
        accepts={names[0]: (prefix,) for prefix, names in tunnels.items()},
        listen_port=port,
        tun=_tun(context, region.name) if context.is_gateway else None,
        vxlan=vxlan.device(context),
        addresses=(*_tunnel_addresses(context), *vxlan.addresses(context)),
        neighbours=tuple(vxlan.neighbours(context)),
        forwarding=tuple(vxlan.forwarding(context)),
        host_routes=(*_mesh_routes(context), *vxlan.local_routes(context)),
        rules=tuple(policy_rules((port, *sorted(bound_ports - {port})), context)),
        sysctls=tuple(sysctls(context)),
        local=frozenset(a.prefix for a in region.announced),
        notes=(
            *region.notes,
            *_vxlan_notes(context, gateway, peers),
            *source_notes(info, own_peer, context.facts, context.forward_node_ip),
        ),
    )


def _sessions(
    context: Context, gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims
) -> dict[str, PeerPlan]:
    """Return the sessions inside the region, over its own network: every node with every gateway node, for probes."""
    assert context.region is not None
    able = {g.node: g for g in context.region.gateways}
    found: dict[str, PeerPlan] = {}
    for info in gateway.status.nodes:
        peer = peers.get(info.node)
        entry = able.get(info.node)
        if info.node == context.node or info.node in refused.nodes:
            continue
        # Plain nodes have no sessions with each other.
        if entry is None and (not context.is_gateway or info.node in refused.keys):
            continue
        # A node without a Peer has no session here and needs none to serve or be served. That includes gateways that
        # run OpenYurt's agent: their key is on the Gateway, and they only talk to gateways of other regions.
        if peer is None:
            continue
        kind = PeerKind.PLAIN if entry is None else PeerKind.ACTIVE if entry.active else PeerKind.STANDBY
        found[info.node] = PeerPlan(
            name=info.node,
            region=gateway.name,
            kind=kind,
            public_keys=entry.public_keys if entry else peer.public_keys,
            candidates=_lan_candidates(gateway, info, peer, entry),
            keepalive=None,  # the LAN has no NAT
            warm=True,  # probes decide on take-over, so they must run before there is traffic
            suites=entry.suites if entry else peer.suites,
            tunnel_address=identity.tunnel_address(context.mesh, info.node),
            carries_our_traffic=kind is PeerKind.ACTIVE and context.role is not NodeRole.ACTIVE,
            reason=Reason(ReasonCode.SAME_REGION_PEER, info.node, (kind,)),
        )
    return found


def _lan_candidates(
    gateway: Gateway, info: NodeInfo, peer: PeerObject, entry: GatewayNode | None
) -> tuple[Candidate, ...]:
    """Return where a node of the own region is dialled: its LAN addresses, else its addresses for other regions."""
    port = listen_port(info.node, gateway, peer)
    addresses = dict.fromkeys(peer.node_addresses)
    if info.private_ip is not None:
        addresses.setdefault(info.private_ip)
    inside = tuple(Candidate(str(a), port) for a in addresses)
    return inside or (entry.candidates if entry else ())


def _tun(context: Context, region: str) -> TunDevice:
    """Return the TUN device. Its MTU is the largest that any path allows; routes carry the smaller ones."""
    reason = Reason(ReasonCode.TUNNEL_DEVICE, region, (context.role,))
    return TunDevice(TUNNEL_DEVICE, context.facts.tunnel_mtu(), reason)


def _tunnel_addresses(context: Context) -> Iterable[DeviceAddress]:
    """Yield the tunnel address on the TUN device. A plain node has the address, too, but no device to put it on."""
    if context.is_gateway and context.facts.ipv6:
        address = ipaddress.IPv6Interface(identity.tunnel_address(context.mesh, context.node))
        yield DeviceAddress(TUNNEL_DEVICE, address, Reason(ReasonCode.TUNNEL_ADDRESS, context.node))


def _mesh_routes(context: Context) -> tuple[Route, ...]:
    """Return the routes of the mesh's /48: every tunnel address is behind the TUN device."""
    if not context.is_gateway or not context.facts.ipv6:
        return ()
    prefix = identity.mesh_network(context.mesh)
    unicast = Route(
        prefix,
        TABLE_REMOTE,
        device=TUNNEL_DEVICE,
        source=identity.tunnel_address(context.mesh, context.node),
        mtu=context.facts.tunnel_mtu(),
        reason=Reason(ReasonCode.MESH_ADDRESSES, context.mesh),
    )
    return (unicast, fail_closed(prefix, Reason(ReasonCode.FAIL_CLOSED_MESH, context.mesh)))


def _vxlan_notes(context: Context, gateway: Gateway, peers: Mapping[str, PeerObject]) -> Iterable[Reason]:
    """Yield notes on a node that cannot send to other regions by the VXLAN, or whose gateway cannot be observed.

    A collision of derived addresses is reported as a conflict as well.
    """
    if context.role is NodeRole.ACTIVE:
        return
    overlay = context.overlay
    if overlay is None:
        if len(gateway.status.nodes) > 1:
            yield Reason(ReasonCode.NO_VXLAN_MEMBER, context.node)
    elif overlay.uplink is None:
        yield Reason(ReasonCode.NO_ACTIVE_VXLAN_MEMBER, gateway.name)
    elif overlay.uplink.node not in peers:
        yield Reason(ReasonCode.GATEWAY_WITHOUT_PEER, overlay.uplink.node)
