"""A reference planner: it computes the plan of every node from the whole world with simple nested loops.

It shares the model and the hashes of names with the real planner. Conflicts, topology, routes and accepted prefixes
are a second implementation of docs/architecture/host-network.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from dataclasses import dataclass, field, replace

from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import EndpointType, Gateway, PeerObject, World


def tunnel_prefix(world: World, node: str):
    mesh = 0xFD << 40 | int.from_bytes(hashlib.sha256(world.mesh.encode()).digest()[:5], "big")
    tail = int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")
    return ipaddress.IPv6Network((mesh << 80 | 1 << 64 | tail, 128))


def mesh_prefix(world: World):
    return ipaddress.IPv6Network((int(tunnel_prefix(world, "x").network_address) >> 80 << 80, 48))


def priority(thing: Gateway | PeerObject):
    return (math.inf if thing.created is None else thing.created, thing.name)


def overlap(one, other) -> bool:
    return one.version == other.version and one.overlaps(other)


def literal(text: str):
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@dataclass
class Ends:
    """A gateway node from the point of view of other nodes."""

    node: str
    region: str
    active: bool
    nat: bool
    keys: tuple
    candidates: tuple

    @property
    def dialable(self) -> bool:
        return not self.nat and bool(self.candidates)


@dataclass
class Resolved:
    """The world without the losers of conflicts."""

    members: dict[str, list[str]]
    keyless: set[str]
    prefixes: dict[str, set]
    lost: dict[str, set]
    shadowed: dict[str, set]
    addresses: dict[str, set] = field(default_factory=dict)  # node addresses among the prefixes
    gateways: dict[str, list[Ends]] = field(default_factory=dict)
    elected: dict[str, list[Ends]] = field(default_factory=dict)  # the same, ignoring liveness


def lan_of(world: World, info) -> list:
    peer = world.peers.get(info.node)
    return ([info.private_ip] if info.private_ip else []) + [*(peer.node_addresses if peer else ())]


def called_at(world: World, gateway: Gateway, node: str) -> set:
    """Return the literal addresses at which other regions dial a node."""
    mine = [
        e for e in (*gateway.status.active, *gateway.endpoints) if e.node == node and e.type is EndpointType.TUNNEL
    ]
    named = [e.public_ip for e in mine]
    if mine and node in world.peers:
        named += [a.host for a in world.peers[node].addresses]
    return {literal(text) for text in named} - {None}


def resolve(world: World, forward: bool = False) -> Resolved:
    ordered = sorted(world.gateways.values(), key=priority)
    owner: dict[str, str] = {}
    for gateway in ordered:
        for info in gateway.status.nodes:
            owner.setdefault(info.node, gateway.name)
    members = {g.name: [i.node for i in g.status.nodes if owner[i.node] == g.name] for g in ordered}

    taken: set[bytes] = set()
    keyless: set[str] = set()
    for peer in sorted(world.peers.values(), key=priority):
        if taken & set(peer.public_keys):
            keyless.add(peer.name)
        else:
            taken |= set(peer.public_keys)

    claimed: dict[str, list] = {}
    dialled: list[tuple[str, object]] = []
    own_calls: set[tuple[str, object]] = set()  # single sources that are the dialled address of their own node
    lan: list[tuple[str, object]] = []
    for gateway in ordered:
        mine: list = []
        pods = {p for i in gateway.status.nodes if owner[i.node] == gateway.name for p in i.subnets}
        able = {e.node for e in (*gateway.status.active, *gateway.endpoints) if e.type is EndpointType.TUNNEL}
        for endpoint in (*gateway.status.active, *gateway.endpoints):
            stolen = (
                endpoint.node in owner
                and owner[endpoint.node] != gateway.name
                and any(i.node == endpoint.node for i in gateway.status.nodes)
            )
            if endpoint.type is EndpointType.TUNNEL and not stolen and literal(endpoint.public_ip):
                dialled.append((gateway.name, literal(endpoint.public_ip)))
        for info in gateway.status.nodes:
            if owner[info.node] != gateway.name:
                continue
            mine += info.subnets
            peer = world.peers.get(info.node)
            if info.private_ip:
                lan.append((gateway.name, info.private_ip))
            if peer:
                lan += [(gateway.name, a) for a in peer.node_addresses]
                if info.node in able:
                    dialled += [(gateway.name, literal(a.host)) for a in peer.addresses if literal(a.host)]
                for source in peer.sources:
                    among = any(p.version == source.version and source in p for p in info.subnets)
                    if not among and not (forward and source in lan_of(world, info)):
                        alone = ipaddress.ip_network(source)
                        if alone not in {*mine, *pods} and source in called_at(world, gateway, info.node):
                            own_calls.add((gateway.name, alone))
                        mine.append(alone)
        claimed[gateway.name] = mine
    addresses: dict[str, dict] = {}  # region → prefix → whether it is the dialled address of its own node
    for gateway in ordered:
        mine = addresses[gateway.name] = {}
        for info in gateway.status.nodes if forward else ():
            for a in lan_of(world, info) if owner[info.node] == gateway.name else ():
                alone = ipaddress.ip_network(a)
                among = any(p.version == a.version and a in p for p in info.subnets)
                if not among and alone not in claimed[gateway.name]:
                    mine.setdefault(alone, a in called_at(world, gateway, info.node))

    kept: dict[str, set] = {}
    void: dict[str, set] = {}
    lost: dict[str, set] = {}
    for gateway in ordered:
        name = gateway.name
        kept[name], lost[name], void[name] = set(), set(), set()
        for alone, own in addresses[name].items():
            callers = [
                g.name
                for g in ordered
                for e in (*g.status.active, *g.endpoints)
                if owner.get(e.node, g.name) == g.name and alone.network_address in called_at(world, g, e.node)
            ]
            strange = any(not own or caller != name for caller in callers)
            rivals = any(overlap(alone, p) for r, ps in kept.items() if r != name for p in ps)
            if not strange and not rivals and not overlap(alone, mesh_prefix(world)):
                kept[name].add(alone)
        for prefix in sorted(claimed[name], key=lambda p: (p.version, int(p.network_address), p.prefixlen)):
            own = (name, prefix) in own_calls
            swallows = any(
                a.version == prefix.version and a in prefix and not (own and r == name) for r, a in dialled
            )
            swallows |= any(r != name and a.version == prefix.version and a in prefix for r, a in lan)
            if swallows or overlap(prefix, mesh_prefix(world)):
                void[name].add(prefix)
            elif any(overlap(prefix, p) for r, ps in kept.items() if r != name for p in ps):
                lost[name].add(prefix)
            else:
                kept[name].add(prefix)
    shadowed = {
        name: {p for r, ps in kept.items() if r != name for p in ps if any(overlap(p, mine) for mine in lost[name])}
        for name in lost
    }
    both = {name: lost[name] | void[name] for name in lost}
    resolved = Resolved(members, keyless, kept, both, shadowed, {name: set(addresses[name]) for name in addresses})
    for gateway in ordered:
        resolved.elected[gateway.name] = ends(world, gateway, resolved)
    return resolved


def stand_in(world: World, resolved: Resolved, liveness: Liveness, me: str) -> None:
    """Replace active gateways that are all proven dead by as many others: live ones first, then unknown ones."""
    for name, elected in resolved.elected.items():
        resolved.gateways[name] = [replace(e) for e in elected]
        by_name = {e.node: e for e in resolved.gateways[name]}
        active = [e for e in by_name.values() if e.active]
        dead = {n for n, v in liveness.verdicts.items() if v is LivenessVerdict.DEAD} - {me}
        alive = {n for n, v in liveness.verdicts.items() if v is LivenessVerdict.ALIVE} | {me}
        spec = [e.node for e in world.gateways[name].endpoints if e.type is EndpointType.TUNNEL]
        able = [n for n in dict.fromkeys(spec) if n in by_name and n not in dead]
        able = [n for n in able if n in alive] + [n for n in able if n not in alive]
        if active and able and all(e.node in dead for e in active):
            for e in by_name.values():
                e.active = e.node in able[: len(active)]


def ends(world: World, gateway: Gateway, resolved: Resolved) -> list[Ends]:
    found: dict[str, Ends] = {}
    for active, endpoints in ((True, gateway.status.active), (False, gateway.endpoints)):
        for e in endpoints:
            if e.type is not EndpointType.TUNNEL or e.node in found:
                continue
            peer = world.peers.get(e.node)
            if e.node not in resolved.members[gateway.name] or peer is None or e.node in resolved.keyless:
                continue
            listen = e.port or peer.listen_port or 4500
            candidates = [] if e.under_nat or not e.public_ip else [(e.public_ip, e.public_port or listen)]
            for host, port in peer.addresses:
                at = (host, port or peer.listen_port or listen)
                if at not in candidates:
                    candidates.append(at)
            found[e.node] = Ends(e.node, gateway.name, active, e.under_nat, peer.public_keys, tuple(candidates))
    return list(found.values())


def hubs(resolved: Resolved) -> list[str]:
    able = [
        r
        for r, es in resolved.elected.items()
        if any(e.active and e.dialable for e in es) and not resolved.shadowed[r]
    ]
    return sorted(able, key=lambda r: (hashlib.sha256(b"hub\0" + r.encode()).digest()[:8], r))[:16]


def serving(resolved: Resolved, hub: str) -> list[str]:
    """Return the nodes of a hub that relay at the moment."""
    for who in (resolved.gateways, resolved.elected):
        found = [e.node for e in who[hub] if e.active and e.dialable]
        if found:
            return found
    return []


def weight(one: str, other: str, third: str) -> int:
    pair = "\0".join([*sorted((one, other)), third])
    return int.from_bytes(hashlib.sha256(pair.encode()).digest()[:8], "big")


def hub_for(resolved: Resolved, me: str, other: str, liveness: Liveness) -> str | None:
    order = sorted(hubs(resolved), key=lambda h: (-weight(me, other, h), h))
    far = [e.node for e in resolved.gateways[other] if e.active]

    def nodes(hub: str) -> list[str]:
        return serving(resolved, hub)

    def dead(n: str) -> bool:
        return liveness.verdicts.get(n) is LivenessVerdict.DEAD

    def alive(n: str) -> bool:
        return liveness.verdicts.get(n) is LivenessVerdict.ALIVE

    for hub, proven in [(h, True) for h in order] + [(h, False) for h in order]:
        for n in nodes(hub):
            if proven and not alive(n):
                continue
            if not dead(n) and any(f not in liveness.unreachable_via.get(n, ()) for f in far):
                return hub
    for hub in order:
        if any(not dead(n) for n in nodes(hub)):
            return hub
    return order[0] if order else None


@dataclass
class BrutePlan:
    role: str = "node without region"
    region: str = ""
    peers: dict = field(default_factory=dict)  # name → (keys, candidates, keepalive, warm)
    routes: dict = field(default_factory=dict)  # prefix → names
    accepts: set = field(default_factory=set)
    remote_table: dict = field(default_factory=dict)  # prefix → "tunnel", or the next hop on the VXLAN
    local_table: dict = field(default_factory=dict)  # the same for packets that arrive on ravenvpn0 or raven0
    closed: set = field(default_factory=set)  # prefixes with an unreachable route in the remote table
    closed_local: set = field(default_factory=set)  # the same in the local table
    neighbours: set = field(default_factory=set)  # (address, MAC)
    forwarding: set = field(default_factory=set)  # (MAC, underlay address)
    remote: set = field(default_factory=set)


def heeded(world: World, resolved: Resolved, home: str, name: str) -> set:
    """Return the prefixes of another region that a node of `home` routes."""
    near = [p for info in world.gateways[home].status.nodes for p in info.subnets]
    near += [ipaddress.ip_network(a) for info in world.gateways[home].status.nodes for a in lan_of(world, info)]
    sources = {
        ipaddress.ip_network(source)
        for node in resolved.members[name]
        for source in (world.peers[node].sources if node in world.peers else ())
    }
    too_near = {p for p in resolved.addresses[name] - sources if any(overlap(p, mine) for mine in near)}
    return resolved.prefixes[name] - resolved.shadowed[home] - too_near


def brute_plan(world: World, liveness: Liveness, me: str, forward: bool = False) -> BrutePlan:
    resolved = resolve(world, forward)
    stand_in(world, resolved, liveness, me)
    home = next((r for r in sorted(resolved.members) if me in resolved.members[r]), None)
    if home is None:
        return BrutePlan()
    mine = next((e for e in resolved.gateways[home] if e.node == me), None)
    plan = BrutePlan("plain node" if mine is None else "active gateway" if mine.active else "standby gateway", home)
    in_region(world, resolved, home, me=me, mine=mine, plan=plan)
    uplink = on_vxlan(world, resolved, home, me=me, mine=mine, liveness=liveness, plan=plan)
    for name in resolved.gateways:
        if name != home:
            towards(world, resolved, home, mine=mine, name=name, liveness=liveness, plan=plan)
            for prefix in heeded(world, resolved, home, name):
                if uplink is not None and next_hop(world, home, uplink, prefix, me):
                    plan.remote_table[prefix] = next_hop(world, home, uplink, prefix, me)
    if not plan.neighbours:
        plan.local_table, plan.closed_local = {}, set()
    if mine is not None:
        plan.remote_table[mesh_prefix(world)] = "tunnel"
        plan.closed.add(mesh_prefix(world))
    return plan


def seat(world: World, home: str, node: str):
    """Return (underlay addresses by family, IPv4 address on the VXLAN if any, IPv6 address on it, MAC)."""
    info = next(i for i in world.gateways[home].status.nodes if i.node == node)
    peer = world.peers.get(node)
    addresses = ([info.private_ip] if info.private_ip else []) + [*(peer.node_addresses if peer else ())]
    v4, v6 = (next((a for a in addresses if a.version == family), None) for family in (4, 6))
    hashed = hashlib.sha256(node.encode()).digest()
    middle = int(mesh_prefix(world).network_address) >> 80 << 80 | 2 << 64
    place = bytes([240, *v4.packed[1:]]) if v4 else None
    return (
        {4: v4, 6: v6},
        place and ipaddress.IPv4Address(place),
        ipaddress.IPv6Address(middle | int.from_bytes(hashed[:8], "big")),
        "aa:0f:" + (place or hashed[:4]).hex(":"),
    )


def seated(world: World, resolved: Resolved, home: str) -> list[str]:
    taken: set[str] = set()
    without_clash = []
    for node in sorted({info.node for info in world.gateways[home].status.nodes}):
        mac = seat(world, home, node)[3]
        if mac not in taken and node in resolved.members[home]:
            without_clash.append(node)
        taken.add(mac)
    able = {family: [n for n in without_clash if seat(world, home, n)[0][family]] for family in (4, 6)}
    return able[6] if len(able[6]) == len(without_clash) > len(able[4]) else able[4]


def next_hop(world: World, home: str, node: str, prefix, me: str):
    _, v4, v6, _ = seat(world, home, node)
    return v4 if prefix.version == 4 and v4 and seat(world, home, me)[1] else v6


def on_vxlan(
    world: World,
    resolved: Resolved,
    home: str,
    *,
    me: str,
    mine: Ends | None,
    liveness: Liveness,
    plan: BrutePlan,
) -> str | None:
    """Return the gateway that carries this node's packets to other regions."""
    nodes = seated(world, resolved, home)
    if me not in nodes or len(nodes) < 2:
        return None
    family = 4 if all(seat(world, home, n)[0][4] for n in nodes) else 6
    able = [e.node for e in resolved.gateways[home]]
    for node in nodes:
        if node != me and (mine is not None or node in able):
            underlay, v4, v6, mac = seat(world, home, node)
            plan.neighbours |= {(address, mac) for address in (v4, v6) if address}
            plan.forwarding.add((mac, underlay[family]))
    if mine is not None:
        first: dict = {}
        for claim in in_order(world, resolved, home):
            first.setdefault(claim[1], claim[0])
        own = [p for p, node in first.items() if node == me]
        for prefix, node in first.items():
            ours = any(p.version == prefix.version and p.subnet_of(prefix) for p in own)
            if node != me and node in nodes and not ours:
                plan.local_table[prefix] = next_hop(world, home, node, prefix, me)
    if mine is not None and mine.active:
        return None
    active = [e.node for e in resolved.gateways[home] if e.active and e.node in nodes]
    return min(
        active,
        key=lambda n: (liveness.verdicts.get(n) is LivenessVerdict.DEAD, -weight(me, n, "carrier"), n),
        default=None,
    )


def in_order(world: World, resolved: Resolved, home: str) -> list:
    """Return (node, prefix) of every announced prefix of a region: all pods first, then single sources."""
    nodes = [i for i in world.gateways[home].status.nodes if i.node in resolved.members[home]]
    pods = [(i.node, p) for i in nodes for p in i.subnets]
    sources = [
        (i.node, ipaddress.ip_network(s))
        for i in nodes
        for s in (world.peers[i.node].sources if i.node in world.peers else ())
        if not any(p.version == s.version and s in p for p in i.subnets)
    ]
    own = [
        (i.node, ipaddress.ip_network(a))
        for i in nodes
        for a in lan_of(world, i)
        if not any(p.version == a.version and a in p for p in i.subnets)
    ]
    own = [claim for claim in own if claim[1] in resolved.addresses[home]]
    return [c for c in pods + sources + own if c[1] in resolved.prefixes[home]]


def in_region(world: World, resolved: Resolved, home: str, *, me: str, mine: Ends | None, plan: BrutePlan) -> None:
    able = {e.node: e for e in resolved.gateways[home]}
    gateway = world.gateways[home]
    for info in gateway.status.nodes:
        peer = world.peers.get(info.node)
        wanted = info.node in able or (mine is not None and peer is not None and info.node not in resolved.keyless)
        if info.node == me or info.node not in resolved.members[home] or not wanted or peer is None:
            continue
        port = next(
            (e.port for e in (*gateway.status.active, *gateway.endpoints) if e.node == info.node and e.port),
            peer.listen_port or 4500,
        )
        addresses = [*peer.node_addresses]
        if info.private_ip and info.private_ip not in addresses:
            addresses.append(info.private_ip)
        at = tuple((str(a), port) for a in addresses) or (able[info.node].candidates if info.node in able else ())
        plan.peers[info.node] = (peer.public_keys, at, None, True)
        plan.routes[tunnel_prefix(world, info.node)] = (info.node,)
        plan.accepts.add((info.node, tunnel_prefix(world, info.node)))


def towards(
    world: World,
    resolved: Resolved,
    home: str,
    *,
    mine: Ends | None,
    name: str,
    liveness: Liveness,
    plan: BrutePlan,
) -> None:
    prefixes = heeded(world, resolved, home, name)
    plan.closed |= prefixes
    plan.remote |= prefixes
    if mine is None:
        return
    direct = [e for e in resolved.gateways[name] if e.dialable or mine.dialable]
    for e in direct:
        across = e.dialable != mine.dialable
        keepalive = 25 if across and not mine.dialable else None
        plan.peers[e.node] = (e.keys, e.candidates if e.dialable else (), keepalive, across)
        plan.routes[tunnel_prefix(world, e.node)] = (e.node,)
        plan.accepts |= {(e.node, p) for p in (*prefixes, tunnel_prefix(world, e.node))}

    def ordered(nodes: list[str]) -> tuple[str, ...]:
        return tuple(
            sorted(
                nodes,
                key=lambda n: (liveness.verdicts.get(n) is LivenessVerdict.DEAD, -weight(mine.node, n, "carrier"), n),
            )
        )

    carriers = ordered([e.node for e in direct if e.active])
    far = [e for e in resolved.gateways[name] if e.active]
    if far and not carriers:
        hub = hub_for(resolved, home, name, liveness)
        beyond = prefixes | {tunnel_prefix(world, e.node) for e in far}
        for h in hubs(resolved):
            plan.accepts |= {(e.node, p) for e in resolved.gateways[h] if e.dialable for p in beyond}
        if hub is not None:
            carriers = ordered(serving(resolved, hub))
            plan.routes |= dict.fromkeys(beyond, carriers)
    if carriers:
        plan.routes |= dict.fromkeys(prefixes, carriers)
    if not mine.active:
        plan.closed_local |= prefixes
    if carriers:
        table = plan.remote_table if mine.active else plan.local_table
        table |= dict.fromkeys(prefixes, "tunnel")
