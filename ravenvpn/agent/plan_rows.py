"""Rows of `raven-vpn plan`: everything planned for the tunnel and this host, each with its reason. Pure."""

from __future__ import annotations

from ravenvpn.agent.reports import PlanLine
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    PacketFilter,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.nodeplan import NodePlan
from ravenvpn.mesh.reason import Reason, code_of, explain
from ravenvpn.node.format import format_object

_HostThing = (
    TunDevice | VxlanDevice | DeviceAddress | Neighbour | ForwardingEntry | Rule | Route | Sysctl | PacketFilter
)


def plan_lines(plan: NodePlan) -> list[PlanLine]:
    """Return a line for each peer, then for each thing on the host, in the order in which they are put in place.

    A peer's line has its endpoints in the order in which they are tried, whether a session is kept up without traffic
    (warm) or comes up with the first packet (cold), and the persistent keepalive, which only the side behind NAT
    sends. Things on the host are written as ip(8) and nft(8) print them, so that they can be searched in their
    output."""
    lines = []
    # A peer without endpoint can only call us: it is behind NAT and has not been seen yet.
    for peer in plan.tunnel.peers:
        candidates = [str(Endpoint(candidate.host, candidate.port)) for candidate in peer.candidates]
        where = ", ".join(candidates) or "wherever it calls from"
        manner = ("warm" if peer.warm else "cold") + (f", keepalive {peer.keepalive} s" if peer.keepalive else "")
        lines.append(_line(f"peer {peer.name} at {where}, {manner}", peer.reason))
    host = plan.host
    things: list[_HostThing] = [
        *([host.tun] if host.tun else []),
        *([host.vxlan] if host.vxlan else []),
        *host.addresses,
        *host.neighbours,
        *host.forwarding,
        *host.rules,
        *host.routes,
        *host.sysctls,
        *([host.packet_filter] if host.packet_filter else []),
    ]
    return [*lines, *(_line(format_object(thing), thing.reason) for thing in things)]


def _line(what: str, reason: Reason | None) -> PlanLine:
    return PlanLine(what=what, why=explain(reason), code=code_of(reason))
