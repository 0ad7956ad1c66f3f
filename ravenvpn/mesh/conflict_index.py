"""Which of two objects that cannot both be right wins, the same on every node of the mesh.

Nothing is ever applied by half: a prefix that lost is neither routed nor accepted anywhere, a node that lost is in no
region of the loser's, a Peer that lost its key has none. Every loss names both objects, the field, and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from ravenvpn.mesh import identity
from ravenvpn.mesh.claims import Announced, ClaimKind, claims, outer_addresses
from ravenvpn.mesh.conflict import NOTHING_REFUSED, Conflict, ConflictKind, RefusedClaims
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import Gateway, PeerObject, World
from ravenvpn.mesh.overlap import AddressIndex, Claim, PrefixClaims, Settled, overlap
from ravenvpn.mesh.ownership import Derive, KeyOwners, NodeOwners
from ravenvpn.mesh.vxlan_members import ipv4_of


class ConflictIndex:
    """All claims of the world, and what each Gateway lost. An update costs what changed and what that overlaps.

    Three questions in turn, each answered for what the one before left: whose is a node, whose is a key, whose is a
    prefix. An older creationTimestamp wins, then the name that sorts first (see `ownership.priority_of`).

    Where node addresses are claimed too (`forward_node_ip`), no prefix of pods and no source is won or lost by it: a
    prefix that covers another region's node is refused whether or not that node's address is routed. So agents with
    and without the setting agree on everything else.
    """

    def __init__(self, mesh: str, derive: Derive = identity.tunnel_address, *, forward_node_ip: bool = False) -> None:
        self._nodes = NodeOwners(mesh, derive)
        self._keys = KeyOwners()
        self._prefixes = _PrefixOwners(mesh, self._nodes, forward_node_ip)
        self._vxlan: dict[str, dict[str, Conflict]] = {}  # Gateway → node
        self._refused: dict[str, RefusedClaims] = {}

    def refused(self, gateway: str) -> RefusedClaims:
        return self._refused.get(gateway, NOTHING_REFUSED)

    def conflicts(self) -> tuple[Conflict, ...]:
        found = [*self._nodes.lost.values(), *self._keys.lost.values()]
        found += (conflict for lost in self._prefixes.lost.values() for conflict in lost.values())
        found += (conflict for clashes in self._vxlan.values() for conflict in clashes.values())
        return tuple(sorted(found, key=lambda c: (c.kind, c.loser, c.field, c.subject)))

    def update(self, gateways: Set[str], peers: Set[str], world: World) -> set[str]:
        """Take in what changed, by name: Gateways that did or one of whose Peers did, and Peers.

        Returns the Gateways that lost something else than before.
        """
        for name in gateways:
            gateway = world.gateways.get(name)
            clashes = _vxlan_clashes(gateway, world.peers) if gateway else {}
            self._vxlan.pop(name, None)
            if clashes:
                self._vxlan[name] = clashes
        dirty = set(gateways) | self._nodes.update(gateways, world)
        doubtful = self._keys.update(peers, world)
        touched = dirty | self._prefixes.update(dirty, world)
        touched |= {name for peer in doubtful for name in self._nodes.gateways_with(peer)}
        return {name for name in touched if self._summarise(name)}

    def _summarise(self, name: str) -> bool:
        """Work out what a Gateway lost; returns whether that is something else than before."""
        before = self._refused.pop(name, NOTHING_REFUSED)
        members = self._nodes.members(name)
        prefixes, shadowed = self._prefixes.refused(name)
        now = RefusedClaims(
            prefixes=prefixes,
            nodes=frozenset(n for n in members if (name, n) in self._nodes.lost),
            keys=frozenset(n for n in members if n in self._keys.lost),
            shadowed=shadowed,
            vxlan=frozenset(self._vxlan.get(name, ())),
        )
        if now != NOTHING_REFUSED:
            self._refused[name] = now
        return now != before


@dataclass(slots=True)
class _OwnedClaims:
    """What one Gateway brought in, so that it can be taken out again."""

    claims: dict[Prefix, Announced] = field(default_factory=dict)
    dialled: dict[Address, str] = field(default_factory=dict)  # address → the field that names it
    lan: dict[Address, str] = field(default_factory=dict)


class _PrefixOwners:
    """Each prefix to one region, and none to a region that would swallow what carries the tunnels."""

    def __init__(self, mesh: str, nodes: NodeOwners, forward_node_ip: bool) -> None:
        self._forward_node_ip = forward_node_ip
        # By Gateway, then prefix: most lose nothing, and looking for nothing must not hash twenty thousand prefixes.
        self.lost: dict[str, dict[Prefix, Conflict]] = {}
        self._mesh = mesh
        self._nodes = nodes
        self._entries: dict[str, _OwnedClaims] = {}
        self._claims = PrefixClaims()
        self._dialled, self._lan = AddressIndex(), AddressIndex()
        self._overlaps: dict[str, dict[Prefix, tuple[Prefix, ...]]] = {}
        self._void: dict[str, set[Prefix]] = {}  # refused for what they cover, whoever else claims them

    def refused(self, gateway: str) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """Prefixes the Gateway lost, and others' prefixes that overlap those."""
        overlaps = self._overlaps.get(gateway, {}).values()
        return frozenset(self.lost.get(gateway, ())), frozenset(prefix for some in overlaps for prefix in some)

    def update(self, dirty: Set[str], world: World) -> set[str]:
        """Take in what these Gateways claim and where they are; returns Gateways that may have lost or regained."""
        changed: list[Prefix] = []
        moved: set[Address] = set()
        fresh_claims: list[Claim] = []
        fresh_dialled: list[tuple[str, Address, str]] = []
        fresh_lan: list[tuple[str, Address, str]] = []
        for name in sorted(dirty):
            before, gateway = self._entries.pop(name, None) or _OwnedClaims(), world.gateways.get(name)
            after = self._entry(gateway, world.peers) if gateway else _OwnedClaims()
            gone = [prefix for prefix in before.claims if prefix not in after.claims]
            for prefix in gone:
                self._claims.remove(name, prefix)
                self._forget(name, prefix)
            # A priority may have changed as well, and a field may have moved: all of them are settled anew.
            changed += (*gone, *after.claims)
            fresh_claims += (Claim(name, announced) for announced in after.claims.values())
            moved |= self._move(self._dialled, name, before.dialled, after.dialled, fresh_dialled)
            moved |= self._move(self._lan, name, before.lan, after.lan, fresh_lan)
            if gateway is not None:
                self._entries[name] = after
        self._claims.add(fresh_claims)
        self._dialled.add(fresh_dialled)
        self._lan.add(fresh_lan)
        for address in moved:
            changed += self._claims.covering(address)
        return self._settle(changed)

    def _entry(self, gateway: Gateway, peers: Mapping[str, PeerObject]) -> _OwnedClaims:
        lost = {info.node for info in gateway.status.nodes if (gateway.name, info.node) in self._nodes.lost}
        entry = _OwnedClaims(*({}, *_underlay(gateway, peers, lost)))
        for announced in claims(gateway, peers, forward_node_ip=self._forward_node_ip):
            if announced.node not in lost:
                entry.claims.setdefault(announced.prefix, announced)
        return entry

    @staticmethod
    def _move(
        index: AddressIndex,
        name: str,
        before: Mapping[Address, str],
        after: Mapping[Address, str],
        fresh: list[tuple[str, Address, str]],
    ) -> set[Address]:
        """Returns addresses that came, went, or are named by another field now."""
        for address in before.keys() - after.keys():
            index.remove(name, address)
        came = [(name, address, where) for address, where in after.items() if before.get(address) != where]
        fresh += came
        return {address for _, address, _ in came} | (before.keys() - after.keys())

    def _forget(self, region: str, prefix: Prefix) -> None:
        for losses in (self.lost, self._overlaps):
            if region in losses:
                losses[region].pop(prefix, None)
                if not losses[region]:
                    del losses[region]
        if region in self._void:
            self._void[region].discard(prefix)
            if not self._void[region]:
                del self._void[region]

    def _is_void(self, region: str, prefix: Prefix) -> bool:
        return region in self._void and prefix in self._void[region]

    def _settle(self, changed: list[Prefix]) -> set[str]:
        for region, announced in self._claims.claims(changed):
            self._forget(region, announced.prefix)
            refusal = self._covers(region, announced)
            if refusal is not None:
                self.lost.setdefault(region, {})[announced.prefix] = refusal
                self._void.setdefault(region, set()).add(announced.prefix)
        considered, lost = self._claims.settle(changed, self._nodes.priority, self._is_void)
        for claim in considered:
            if not self._is_void(claim.region, claim.announced.prefix):
                self._forget(claim.region, claim.announced.prefix)
        for settled in lost:
            region, prefix = settled.claim.region, settled.claim.announced.prefix
            self.lost.setdefault(region, {})[prefix] = _overlap(settled)
            if (
                settled.claim.announced.kind is not ClaimKind.ADDRESS
            ):  # (a node leaves its own network's to it as it is)
                self._overlaps.setdefault(region, {})[prefix] = settled.overlaps
        return {claim.region for claim in considered}

    def _covers(self, region: str, announced: Announced) -> Conflict | None:
        """Why nobody may route this prefix, whoever claims it: it would swallow what carries the tunnels."""
        prefix = announced.prefix
        reserved = identity.mesh_network(self._mesh)
        if overlap(prefix, reserved):
            return Conflict(
                ConflictKind.RESERVED,
                str(prefix),
                announced.owner,
                announced.field,
                f"mesh {self._mesh} ({reserved})",
                "give the node another prefix, or the mesh another name",
            )
        # What its own node is called at is that node, inside the tunnel as outside.
        own = announced.dialled and announced.kind is not ClaimKind.PODS
        found = self._dialled.inside(prefix, lambda other: not own or other != region)
        if announced.kind is ClaimKind.ADDRESS:
            # Two nodes with one address are settled as two regions with one prefix are.
            remedy = "give the node an InternalIP of its own"
        else:
            found = found or self._lan.inside(prefix, lambda other: other != region)
            remedy = (
                "pods need addresses apart from those of nodes; for a single source, name one inside the pod prefix"
            )
        if found is None:
            return None
        address, _, where = found
        return Conflict(
            ConflictKind.UNDERLAY,
            str(prefix),
            announced.owner,
            announced.field,
            f"{where}: {address}",
            remedy,
        )


def _underlay(
    gateway: Gateway, peers: Mapping[str, PeerObject], lost: set[str]
) -> tuple[dict[Address, str], dict[Address, str]]:
    """Where a region's gateway nodes are called from outside, and where its nodes are on their own network."""
    outer = outer_addresses(gateway, peers)
    dialled: dict[Address, str] = {}
    lan: dict[Address, str] = {}
    for node, addresses in outer.items():
        if node not in lost:
            for address, where in addresses.items():
                dialled.setdefault(address, where)
    for i, info in enumerate(gateway.status.nodes):
        if info.node in lost:
            continue
        peer = peers.get(info.node)
        if info.private_ip is not None:
            lan.setdefault(info.private_ip, f"Gateway {gateway.name}, status.nodes[{i}].privateIP")
        for k, address in enumerate(peer.node_addresses if peer else ()):
            lan.setdefault(address, f"Peer {info.node}, spec.nodeAddresses[{k}]")
    return dialled, lan


def _vxlan_clashes(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, Conflict]:
    """Nodes whose derived place on the VXLAN is another node's of the region: by upstream's rule the last three
    octets of the IPv4 address, without one 32 bits of the name's hash. The MAC says both."""
    holders: dict[str, str] = {}
    found: dict[str, Conflict] = {}
    for i, info in sorted(enumerate(gateway.status.nodes), key=lambda item: item[1].node):
        v4 = ipv4_of(info, peers.get(info.node))
        mac = identity.vxlan_mac(info.node, v4)
        holder = holders.setdefault(mac, info.node)
        if holder != info.node:
            found[info.node] = Conflict(
                ConflictKind.COLLISION,
                mac if v4 is None else str(identity.vxlan_address(v4)),
                f"Gateway {gateway.name}",
                f"status.nodes[{i}].privateIP",
                f"node {holder} of Gateway {gateway.name}",
                "give one of the nodes an InternalIP that differs in the last three octets",
            )
    return found


def _overlap(settled: Settled) -> Conflict:
    loser, winner = settled.claim.announced, settled.winner.announced
    held = "" if loser.prefix == winner.prefix else f" ({winner.prefix})"
    between_nodes = loser.kind is ClaimKind.ADDRESS
    return Conflict(
        ConflictKind.NODE_ADDRESS if between_nodes else ConflictKind.OVERLAP,
        str(loser.prefix.network_address if between_nodes else loser.prefix),
        loser.owner,
        loser.field,
        f"{winner.owner}, {winner.field}{held}",
        f"give one of nodes {loser.node} and {winner.node} another InternalIP, or leave it unreached from elsewhere"
        if between_nodes
        else "give the pods of one region another prefix",
    )
