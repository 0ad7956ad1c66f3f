"""Host states as the planner makes them: a gateway alone, and a gateway with a LAN."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from ravenvpn.mesh.hoststate import (
    FAIL_CLOSED_METRIC,
    TABLE_LOCAL,
    TABLE_REMOTE,
    DeviceAddress,
    ForwardingEntry,
    HostState,
    Neighbour,
    PacketFilter,
    Route,
    RouteKind,
    Rule,
    RuleAction,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, NodeInfo, PeerObject, World
from ravenvpn.mesh.plan import plan
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.situation import Situation

# The host of `HOST`: a LAN with an uplink, pods behind a bridge.
HOST = """
ip link add eth0 type veth peer name uplink
ip link set uplink up
ip addr add 10.0.0.5/24 dev eth0
ip addr add fd00:10::5/64 dev eth0
ip link set eth0 up
ip route add default via 10.0.0.1
ip -6 route add default via fd00:10::1
ip link add cni0 type bridge
ip addr add 10.244.1.1/24 dev cni0
ip addr add fd00:1::1/64 dev cni0
ip link set cni0 up
"""
OWN4, OWN6 = ip_address("10.244.1.1"), ip_address("fd00:1::1")
LOCAL = (ip_network("10.244.1.0/24"), ip_network("fd00:1::/64"))
REMOTE = (ip_network("10.244.2.0/24"), ip_network("10.244.3.0/24"), ip_network("fd00:2::/64"))

_PODS = Reason(ReasonCode.REMOTE_PREFIX)


def remote_routes(*prefixes: str, device: str = "ravenvpn0", mtu: int = 1420) -> tuple[Route, ...]:
    """Return the two routes of each remote prefix: through the tunnel, and fail-closed."""
    routes: list[Route] = []
    for prefix in map(ip_network, prefixes):
        source = OWN4 if prefix.version == 4 else OWN6
        routes.append(Route(prefix, TABLE_REMOTE, device=device, source=source, mtu=mtu, reason=_PODS))
        routes.append(
            Route(
                prefix,
                TABLE_REMOTE,
                RouteKind.UNREACHABLE,
                metric=FAIL_CLOSED_METRIC,
                reason=_PODS,
            )
        )
    return tuple(routes)


def rules(family: int) -> tuple[Rule, ...]:
    return (
        Rule(family, 98, RuleAction.GOTO, 102, input_device="lo", ip_protocol=17, source_port=4500),
        Rule(family, 98, RuleAction.NOP, input_device="ravenvpn0", ip_protocol=17, source_port=4500),
        Rule(family, 98, RuleAction.LOOKUP, TABLE_LOCAL, input_device="ravenvpn0"),
        Rule(family, 99, RuleAction.LOOKUP, TABLE_REMOTE),
        Rule(family, 102, RuleAction.NOP),
    )


def gateway(families: tuple[int, ...] = (4, 6)) -> HostState:
    """Return the state of a gateway in a region of one node."""
    remote = [prefix for prefix in REMOTE if prefix.version in families]
    return HostState(
        tun=TunDevice("ravenvpn0", 1420),
        addresses=(DeviceAddress("ravenvpn0", ip_interface("fdaa:0:0:1::5/128")),) if 6 in families else (),
        routes=remote_routes(*map(str, remote)),
        rules=tuple(rule for family in families for rule in rules(family)),
        sysctls=(
            Sysctl("net/ipv4/conf/ravenvpn0/forwarding", "1"),
            Sysctl("net/ipv4/conf/ravenvpn0/rp_filter", "2"),
            Sysctl("net/ipv4/conf/ravenvpn0/send_redirects", "0"),
            Sysctl("net/ipv4/conf/cni0/forwarding", "1", ours=False),
        ),
        packet_filter=PacketFilter(
            local=tuple(prefix for prefix in LOCAL if prefix.version in families),
            remote=tuple(remote),
            own_sources=tuple(address for address in (OWN4, OWN6) if address.version in families),
        ),
    )


def lan_gateway() -> HostState:
    """Return the state of a gateway with a second node on its LAN, whose pods it reaches over VXLAN."""
    base = gateway()
    assert base.packet_filter is not None
    local = (*LOCAL, ip_network("10.244.4.0/24"), ip_network("fd00:4::/64"))
    return replace(
        base,
        vxlan=VxlanDevice("raven0", 200, 4472, 1370, "aa:0f:0a:00:00:05", ip_address("10.0.0.5")),
        addresses=(
            *base.addresses,
            DeviceAddress("raven0", ip_interface("240.0.0.5/8")),
            DeviceAddress("raven0", ip_interface("fdaa:0:0:2::5/64")),
        ),
        neighbours=(
            Neighbour("raven0", ip_address("240.0.0.6"), "aa:0f:0a:00:00:06"),
            Neighbour("raven0", ip_address("fdaa:0:0:2::6"), "aa:0f:0a:00:00:06"),
        ),
        forwarding=(ForwardingEntry("raven0", "aa:0f:0a:00:00:06", ip_address("10.0.0.6")),),
        routes=(
            *base.routes,
            Route(ip_network("10.244.4.0/24"), TABLE_LOCAL, device="raven0", via=ip_address("240.0.0.6"), mtu=1370),
            Route(ip_network("fd00:4::/64"), TABLE_LOCAL, device="raven0", via=ip_address("fdaa:0:0:2::6"), mtu=1370),
        ),
        packet_filter=replace(base.packet_filter, local=local),
    )


def planned(role: str) -> HostState:
    """Return the plan for the host of `HOST` as "gateway", "standby" or "plain" node of a region of three."""
    me = GatewayEndpoint("here-1", public_ip="198.51.100.1")
    other, far = (
        GatewayEndpoint("here-2", public_ip="198.51.100.2"),
        GatewayEndpoint("far-1", public_ip="198.51.100.3"),
    )
    endpoints = {"gateway": (me, other), "standby": (other, me), "plain": (other,)}[role]
    here = GatewayStatus(
        tuple(
            NodeInfo(
                f"here-{number}",
                ip_address(address),
                (ip_network(f"10.244.{pods}.0/24"), ip_network(f"fd00:{pods}::/64")),
            )
            for number, address, pods in ((1, "10.0.0.5", 1), (2, "10.0.0.6", 4), (3, "10.0.0.7", 5))
        ),
        endpoints[:1],
    )
    there = GatewayStatus((NodeInfo("far-1", ip_address("172.16.0.1"), REMOTE),), (far,))
    world = World.of(
        [Gateway("here", endpoints, 1, status=here), Gateway("there", (far,), 1, status=there)],
        [PeerObject(name, bytes([number]) * 32) for number, name in enumerate(("here-1", "here-2", "far-1"), 1)],
    )
    facts = LocalFacts(
        addresses=frozenset(map(ip_address, ("10.0.0.5", "fd00:10::5", "10.244.1.1", "fd00:1::1"))),
        pod_devices=("cni0",),
    )
    return plan(Situation(world, facts=facts), "here-1").host
