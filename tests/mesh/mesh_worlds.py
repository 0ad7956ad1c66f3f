"""Random worlds: small, full of conflicts, and drawn so that a failing example shrinks to a readable one."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import (
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    HostPort,
    NodeInfo,
    PeerObject,
    World,
)

REGIONS = tuple(f"region-{letter}" for letter in "abcdefg")
NODES_A_REGION = 3


def node(region: int, number: int) -> str:
    return f"{'abcdefg'[region]}{number}"


def own_addresses(region: int, number: int) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
    """Return addresses of the node on its region's network, unique in the world."""
    return (
        ipaddress.IPv4Address(f"172.16.{region}.{number + 1}"),
        ipaddress.IPv6Address(f"fd00:fe:{region}::{number + 1}"),
    )


def own_prefixes(region: int, number: int) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return prefixes that no other node has."""
    return (
        ipaddress.IPv4Network(f"10.{region}.{number}.0/24"),
        ipaddress.IPv6Network(f"fd00:{region}:{number}::/64"),
    )


# Prefixes that overlap each other, prefixes of nodes, addresses of gateways, and the mesh prefix.
DISPUTED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.1.0/24",
        "10.1.1.128/25",
        "10.2.0.0/15",
        "172.16.0.0/12",
        "192.0.2.0/24",
        "192.0.2.1/32",
        "198.51.100.0/24",
        "fd00:1::/32",
        "fd00:1:1::/64",
        "fd00::/8",
        "2001:db8::/32",
    )
)


ODD_ADDRESSES = (
    None,
    *(ipaddress.ip_address(text) for text in ("172.16.0.1", "172.16.1.1", "10.1.1.7", "192.0.2.1", "fd00:fe::1")),
)


def gateway(
    region: int,
    nodes: tuple[str, ...],
    prefixes: dict[str, tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]],
    active: tuple[str, ...],
    *,
    nat: bool,
    able: int = NODES_A_REGION,
    public: bool = True,
    lan: int = 4,
    created: float | None = None,
) -> Gateway:
    """Draw a Gateway. The first `able` nodes may be its gateway. `lan` is the address family of its LAN."""
    endpoints = tuple(
        GatewayEndpoint(
            n,
            port=4500,
            under_nat=nat,
            public_ip="" if nat or not public else f"192.0.2.{16 * region + i + 1}",
        )
        for i, n in enumerate(nodes[:able])
    )
    infos = tuple(NodeInfo(n, own_addresses(region, i)[lan == 6], prefixes.get(n, ())) for i, n in enumerate(nodes))
    return Gateway(
        REGIONS[region],
        endpoints,
        tunnel_replicas=1,
        created=created,
        status=GatewayStatus(infos, tuple(e for e in endpoints if e.node in active)),
    )


@st.composite
def gateways(draw: st.DrawFn, region: int, *, peaceful: bool) -> Gateway:
    count = draw(st.integers(1, NODES_A_REGION))
    nodes = tuple(node(region, i) for i in range(count))
    prefixes = {n: own_prefixes(region, i) for i, n in enumerate(nodes)}
    if not peaceful:
        for n in nodes:
            prefixes[n] += tuple(draw(st.lists(st.sampled_from(DISPUTED), max_size=2, unique=True)))
    active = draw(st.sets(st.sampled_from(nodes), max_size=2)) if not peaceful else {nodes[0]}
    made = gateway(
        region,
        nodes,
        prefixes,
        tuple(active),
        nat=draw(st.booleans()),
        able=draw(st.integers(1, count)),
        public=peaceful or draw(st.integers(0, 4)) > 0,
        lan=draw(st.sampled_from((4, 4, 6))),
        created=None if peaceful else draw(st.sampled_from((None, 1.0, 2.0))),
    )
    if not peaceful and draw(st.integers(0, 3)) == 0:  # an address of other nodes, or of the other family
        infos = made.status.nodes
        odd = draw(st.sampled_from(ODD_ADDRESSES))
        status = replace(made.status, nodes=(replace(infos[0], private_ip=odd), *infos[1:]))
        made = replace(made, status=status)
    if not peaceful and draw(st.integers(0, 5)) == 0:  # a node of another region
        stranger = node(draw(st.integers(0, len(REGIONS) - 1)), 0)
        if stranger not in nodes:
            status = replace(made.status, nodes=(*made.status.nodes, NodeInfo(stranger)))
            made = replace(
                made, status=status, endpoints=(*made.endpoints, GatewayEndpoint(stranger, EndpointType.TUNNEL))
            )
    return made


def peer(name: str, key: int, **fields: object) -> PeerObject:
    return PeerObject(name, bytes([key % 251 + 1, key // 251 % 256]) + bytes(30), **fields)  # type: ignore[arg-type]


def number_of(name: str) -> int:
    return "abcdefg".index(name[0]) * NODES_A_REGION + int(name[1:])


@st.composite
def peers(
    draw: st.DrawFn, name: str, *, peaceful: bool, lan: Address | None = None, both: bool = False
) -> PeerObject:
    """Draw a Peer. In a peaceful world a node has addresses of both families, or only of the family `lan`."""
    key = number_of(name)
    region, number = "abcdefg".index(name[0]), int(name[1:])
    if peaceful:
        own = own_addresses(region, number)
        return peer(name, key, node_addresses=own if both else tuple(a for a in own if a == lan))
    if draw(st.integers(0, 7)) == 0:
        key = draw(st.integers(0, len(REGIONS) * NODES_A_REGION - 1))
    return peer(
        name,
        key,
        next_public_key=draw(st.sampled_from((None, None, None, bytes([key % 3]) * 31 + b"n"))),
        created=draw(st.sampled_from((None, 1.0, 2.0))),
        addresses=draw(
            st.sampled_from(((), (), (HostPort("203.0.113.9"),), (HostPort(f"{name}.example.org", 4501),)))
        ),
        node_addresses=draw(
            st.sampled_from(
                (
                    (),
                    (ipaddress.ip_address("10.1.1.7"),),
                    (ipaddress.ip_address(f"172.16.{region}.9"),),
                    own_addresses(region, number),
                    (ipaddress.ip_address(f"192.0.2.{16 * region + number + 1}"),),  # the dialled address
                    (ipaddress.ip_address("203.0.113.9"), ipaddress.ip_address("fd00:fe::1")),
                )
            )
        ),
        sources=draw(
            st.sampled_from(
                (
                    (),
                    (),
                    (ipaddress.ip_address(f"10.{region}.0.1"),),
                    (ipaddress.ip_address(f"172.31.{region}.1"),),
                    (ipaddress.ip_address("172.16.1.1"),),
                    (ipaddress.ip_address(f"192.0.2.{16 * region + number + 1}"),),  # the dialled address
                )
            )
        ),
        suites=draw(st.sampled_from(((Suite.CHACHA20POLY1305,), (Suite.CHACHA20POLY1305, Suite.AES256GCM)))),
    )


@st.composite
def worlds(draw: st.DrawFn, *, peaceful: bool = False, least: int = 0) -> World:
    count = draw(st.integers(least, len(REGIONS)))
    made = [draw(gateways(region, peaceful=peaceful)) for region in range(count)]
    dual = draw(st.sets(st.sampled_from(REGIONS)))  # regions with dual-stack nodes
    lans = {info.node: (info.private_ip, g.name in dual) for g in made for info in g.status.nodes}
    return World.of(
        made,
        [
            draw(peers(n, peaceful=peaceful, lan=lan, both=both))
            for n, (lan, both) in sorted(lans.items())
            if peaceful or draw(st.integers(0, 9))
        ],
    )


@st.composite
def edits(draw: st.DrawFn, world: World) -> World:
    """Draw one change of a kind that operators make."""
    region = draw(st.integers(0, len(REGIONS) - 1))
    name = node(draw(st.integers(0, len(REGIONS) - 1)), draw(st.integers(0, NODES_A_REGION - 1)))
    kind = draw(st.sampled_from(("gateway", "gateway", "no gateway", "peer", "peer", "no peer")))
    if kind == "gateway":
        return world.with_gateway(draw(gateways(region, peaceful=False)))
    if kind == "no gateway":
        return world.without_gateway(REGIONS[region])
    return world.with_peer(draw(peers(name, peaceful=False))) if kind == "peer" else world.without_peer(name)


@st.composite
def livenesses(draw: st.DrawFn) -> Liveness:
    names = st.sampled_from([node(r, i) for r in range(len(REGIONS)) for i in range(2)])
    verdicts = st.sampled_from((LivenessVerdict.ALIVE, LivenessVerdict.DEAD, LivenessVerdict.UNKNOWN))
    return Liveness(
        draw(st.dictionaries(names, verdicts, max_size=4)),
        draw(st.dictionaries(names, st.frozensets(names, max_size=2), max_size=2)),
    )
