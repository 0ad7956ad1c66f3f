"""This node's own part of its plan: sessions inside its region, rules, devices, sysctls, sources.

Nothing here depends on other regions; their part is `mesh.remote_region`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ravenvpn.mesh import identity, vxlan
from ravenvpn.mesh.conflict import RefusedClaims
from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import (
    TABLE_LOCAL,
    TABLE_REMOTE,
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    Address,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Prefix,
    Route,
    Rule,
    RuleAction,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.local_facts import ApiEndpoint, LocalFacts
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, Gateway, NodeInfo, PeerObject, host_prefix
from ravenvpn.mesh.nodeplan import Candidate, NodeRole, PeerKind, PeerPlan
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.remote_region import fail_closed
from ravenvpn.mesh.topology import GatewayNode, Region
from ravenvpn.mesh.tunnel_port import listen_port

# The kernel asks rules of one preference by their age. Those at 98 apply to different input devices, so theirs is
# of no account; upstream's rule, of whatever age, is at 100.
PREF_BYPASS, PREF_ARRIVING, PREF_REMOTE, PREF_LANDING = 98, 98, 99, 102
_TCP, _UDP = 6, 17


@dataclass(frozen=True, slots=True)
class OwnRegionPlan:
    """The own part, as it stands beside the fragments of other regions."""

    peers: Mapping[str, PeerPlan] = field(default_factory=dict)
    routes: Mapping[Prefix, tuple[str, ...]] = field(default_factory=dict)
    accepts: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)
    listen_port: int = DEFAULT_TUNNEL_PORT
    tun: TunDevice | None = None
    vxlan: VxlanDevice | None = None
    addresses: tuple[DeviceAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    forwarding: tuple[ForwardingEntry, ...] = ()
    host_routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    local: frozenset[Prefix] = frozenset()
    notes: tuple[Reason, ...] = ()


def role_of(node: str, region: Region | None) -> tuple[NodeRole, GatewayNode | None]:
    """What a node is in its region, and its own entry where it is a gateway."""
    if region is None:
        return NodeRole.NONE, None
    for gateway in region.gateways:
        if gateway.node == node:
            return (NodeRole.ACTIVE if gateway.active else NodeRole.STANDBY), gateway
    return NodeRole.PLAIN, None


def own_sources(
    info: NodeInfo | None, peer: PeerObject | None, facts: LocalFacts, forward_node_ip: bool
) -> tuple[dict[int, Address], list[Reason]]:
    """The address that what starts on this node leaves with, one a family, and what a person should know about it.

    Best is what the Peer announces, then an address inside the node's own pod prefixes, then its InternalIP; only
    addresses that are present count (where nobody looked, what is announced). The far side accepts the first two, and
    with `forward_node_ip` the third.
    """
    if info is None:
        return {}, []
    found: dict[int, Address] = {}
    notes: list[Reason] = []
    present = facts.addresses
    announced = [a for a in (peer.sources if peer else ()) if present is None or a in present]
    inside = sorted(
        (a for a in present or () if any(a.version == p.version and a in p for p in info.subnets)),
        key=lambda a: (a.version, int(a)),
    )
    internal: list[Address] = list(peer.node_addresses) if peer else []
    if info.private_ip is not None:
        internal.append(info.private_ip)
    for version in facts.families:
        for address in (*announced, *inside):
            if address.version == version:
                found.setdefault(version, address)
        if version in found:
            continue
        for address in internal:
            if address.version == version and address in (present or ()):
                found.setdefault(version, address)
        if version in found and not forward_node_ip:
            notes.append(Reason(ReasonCode.SOURCE_NOT_ACCEPTED, info.node, (found[version],)))
    return found, notes


def home(
    context: Context,
    gateway: Gateway | None,
    peers: Mapping[str, PeerObject],
    refused: RefusedClaims,
    configured_port: int | None = None,
) -> OwnRegionPlan:
    """The own part of the plan; `refused` is what our own region lost to others."""
    region = context.region
    if region is None or gateway is None:
        return OwnRegionPlan(notes=(Reason(ReasonCode.NO_REGION, context.node),))
    port = listen_port(context.node, gateway, peers.get(context.node), configured_port)
    sessions = _sessions(context, gateway, peers, refused)
    own = host_prefix(identity.tunnel_address(context.mesh, context.node))
    tunnels = {host_prefix(p.tunnel_address): (p.name,) for p in sessions.values()}
    reach_all = context.is_gateway
    return OwnRegionPlan(
        peers=sessions,
        routes=tunnels,
        accepts={names[0]: (prefix,) for prefix, names in tunnels.items()},
        listen_port=port,
        tun=TunDevice(
            TUNNEL_DEVICE,
            context.facts.tunnel_mtu(),
            Reason(ReasonCode.TUNNEL_DEVICE, region.name, (context.role,)),
        )
        if reach_all
        else None,
        vxlan=vxlan.device(context),
        addresses=(
            *(
                [
                    DeviceAddress(
                        TUNNEL_DEVICE, ipaddress.IPv6Interface(own), Reason(ReasonCode.TUNNEL_ADDRESS, context.node)
                    )
                ]
                if reach_all and context.facts.ipv6
                else []
            ),
            *vxlan.addresses(context),
        ),
        neighbours=tuple(vxlan.neighbours(context)),
        forwarding=tuple(vxlan.forwarding(context)),
        host_routes=(*_mesh_routes(context), *vxlan.local_routes(context)),
        rules=tuple(_rules(port, context)),
        sysctls=tuple(_sysctls(context)),
        local=frozenset(a.prefix for a in region.announced),
        notes=(*region.notes, *_seatless(context, gateway), *_unheard(context, peers)),
    )


def _sessions(
    context: Context, gateway: Gateway, peers: Mapping[str, PeerObject], refused: RefusedClaims
) -> dict[str, PeerPlan]:
    """Sessions inside the region, over its own network: every node with every gateway node, for probes."""
    assert context.region is not None
    able = {g.node: g for g in context.region.gateways}
    found: dict[str, PeerPlan] = {}
    for info in gateway.status.nodes:
        peer = peers.get(info.node)
        entry = able.get(info.node)
        if info.node == context.node or info.node in refused.nodes:
            continue
        if entry is None and (not context.is_gateway or info.node in refused.keys):
            continue
        # Who announces nothing has no session, and needs none to serve or be served. That includes gateways with
        # upstream's agent: their key stands in the Gateway, and they speak with other regions' gateways alone.
        if peer is None:
            continue
        kind = PeerKind.PLAIN if entry is None else PeerKind.ACTIVE if entry.active else PeerKind.STANDBY
        found[info.node] = PeerPlan(
            name=info.node,
            region=gateway.name,
            kind=kind,
            public_keys=entry.public_keys if entry else peer.public_keys,
            candidates=_inside(gateway, info, peer, entry),
            keepalive=None,
            warm=True,
            suites=entry.suites if entry else peer.suites,
            tunnel_address=identity.tunnel_address(context.mesh, info.node),
            prompt=kind is PeerKind.ACTIVE and context.role is not NodeRole.ACTIVE,
            reason=Reason(ReasonCode.SAME_REGION_PEER, info.node, (kind,)),
        )
    return found


def _inside(
    gateway: Gateway, info: NodeInfo, peer: PeerObject | None, entry: GatewayNode | None
) -> tuple[Candidate, ...]:
    port = listen_port(info.node, gateway, peer)
    addresses = dict.fromkeys(peer.node_addresses if peer else ())
    if info.private_ip is not None:
        addresses.setdefault(info.private_ip)
    inside = tuple(Candidate(str(a), port) for a in addresses)
    return inside or (entry.candidates if entry else ())


def _mesh_routes(context: Context) -> tuple[Route, ...]:
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


def _rules(port: int, context: Context) -> Iterable[Rule]:
    """docs/architecture: our own outer packets and the API watch pass the table by, all else meets it."""
    for family in context.facts.families:
        yield Rule(
            family,
            PREF_BYPASS,
            RuleAction.GOTO,
            PREF_LANDING,
            input_device="lo",
            ip_protocol=_UDP,
            source_port=port,
            reason=Reason(ReasonCode.RULE_OUTER_BYPASS),
        )
        if context.is_gateway:
            yield Rule(
                family,
                PREF_BYPASS,
                RuleAction.NOP,
                input_device=TUNNEL_DEVICE,
                ip_protocol=_UDP,
                source_port=port,
                reason=Reason(ReasonCode.RULE_PORTS_TUNNEL),
            )
            yield Rule(
                family,
                PREF_ARRIVING,
                RuleAction.LOOKUP,
                TABLE_LOCAL,
                input_device=TUNNEL_DEVICE,
                reason=Reason(ReasonCode.RULE_FROM_TUNNEL),
            )
            if context.overlay is not None:
                yield Rule(
                    family,
                    PREF_ARRIVING,
                    RuleAction.LOOKUP,
                    TABLE_LOCAL,
                    input_device=VXLAN_DEVICE,
                    reason=Reason(ReasonCode.RULE_FROM_VXLAN),
                )
        elif context.facts.api:
            # (the device need not be there)
            yield Rule(
                family,
                PREF_BYPASS,
                RuleAction.NOP,
                input_device=VXLAN_DEVICE,
                ip_protocol=_TCP,
                reason=Reason(ReasonCode.RULE_PORTS_API),
            )
        yield from (_api_rule(family, api) for api in context.facts.api if api.address.version == family)
        yield Rule(family, PREF_REMOTE, RuleAction.LOOKUP, TABLE_REMOTE, reason=Reason(ReasonCode.RULE_REMOTE))
        yield Rule(family, PREF_LANDING, RuleAction.NOP, reason=Reason(ReasonCode.RULE_LANDING))


def _api_rule(family: int, api: ApiEndpoint) -> Rule:
    return Rule(
        family,
        PREF_BYPASS,
        RuleAction.GOTO,
        PREF_LANDING,
        input_device="lo",
        to=host_prefix(api.address),
        ip_protocol=_TCP,
        destination_port=api.port,
        reason=Reason(ReasonCode.RULE_API_BYPASS),
    )


def _seatless(context: Context, gateway: Gateway) -> Iterable[Reason]:
    """What a person should know about nodes that the VXLAN leaves out. (A collision is told as a conflict.)"""
    if len(gateway.status.nodes) < 2:
        return
    if context.role is NodeRole.ACTIVE:
        return
    if context.overlay is None:
        yield Reason(ReasonCode.NO_VXLAN_MEMBER, context.node)
    elif context.overlay.uplink is None:
        yield Reason(ReasonCode.NO_ACTIVE_VXLAN_MEMBER, gateway.name)


def _unheard(context: Context, peers: Mapping[str, PeerObject]) -> Iterable[Reason]:
    uplink = context.overlay.uplink if context.overlay is not None else None
    if uplink is not None and uplink.node not in peers:
        yield Reason(ReasonCode.GATEWAY_WITHOUT_PEER, uplink.node)


def _sysctls(context: Context) -> Iterable[Sysctl]:
    devices = [
        *([VXLAN_DEVICE] if context.overlay is not None else []),
        *([TUNNEL_DEVICE] if context.is_gateway else []),
    ]
    if not devices:
        return
    forwarding = {
        TUNNEL_DEVICE: Reason(ReasonCode.FORWARD_TUNNEL),
        VXLAN_DEVICE: Reason(ReasonCode.FORWARD_VXLAN),
    }
    v4 = "net/ipv4/conf"
    for device in devices:
        yield Sysctl(f"{v4}/{device}/forwarding", "1", reason=forwarding[device])
        yield Sysctl(f"{v4}/{device}/rp_filter", "2", reason=Reason(ReasonCode.LOOSE_RP_FILTER))
        yield Sysctl(f"{v4}/{device}/send_redirects", "0", reason=Reason(ReasonCode.NO_REDIRECTS))
    facts = context.facts
    for device in facts.pod_devices:
        yield Sysctl(f"{v4}/{device}/forwarding", "1", ours=False, reason=Reason(ReasonCode.FORWARD_PODS, device))
    if not facts.ipv6:
        return
    v6 = "net/ipv6/conf"
    if facts.ipv6_disabled:
        for device in devices:
            yield Sysctl(f"{v6}/{device}/disable_ipv6", "0", reason=Reason(ReasonCode.ENABLE_IPV6))
    if facts.force_forwarding:
        for device in devices:
            yield Sysctl(f"{v6}/{device}/force_forwarding", "1", reason=forwarding[device])
        for device in facts.pod_devices:
            yield Sysctl(
                f"{v6}/{device}/force_forwarding", "1", ours=False, reason=Reason(ReasonCode.FORWARD_PODS, device)
            )
        return
    for device in facts.advertised:
        yield Sysctl(
            f"{v6}/{device}/accept_ra",
            "2",
            ours=False,
            reason=Reason(ReasonCode.KEEP_ROUTER_ADVERTISEMENTS, device),
        )
    yield Sysctl(f"{v6}/all/forwarding", "1", ours=False, reason=Reason(ReasonCode.FORWARD_ALL_IPV6))
