"""Which of two objects that contradict each other wins. The decision is the same on every node of the mesh.

No object is applied in part: a prefix that lost is neither routed nor accepted anywhere, a node that lost is in none
of the loser's regions, a Peer that lost one of its keys has none. Every conflict names both objects, the field and
the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from ravenvpn.mesh import identity
from ravenvpn.mesh.claims import Announced, ClaimKind, claims, outer_addresses
from ravenvpn.mesh.conflict import NOTHING_REFUSED, Conflict, ConflictKind, RefusedClaims
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import Gateway, PeerObject, World
from ravenvpn.mesh.overlap import AddressIndex, Claim, LostClaim, PrefixClaims
from ravenvpn.mesh.ownership import Derive, KeyOwners, NodeOwners
from ravenvpn.mesh.vxlan_members import ipv4_of
from ravenvpn.prefixes import overlaps


class ConflictIndex:
    """All conflicts of the world, kept current. An update costs what changed and what overlaps it.

    Three decisions in turn, each on what the one before left over: which Gateway has a node, which Peer has a key,
    which region has a prefix. The older creationTimestamp wins, then the name that sorts first
    (`ownership.priority_of`).

    With `forward_node_ip` node addresses are claimed too. That changes no decision on pod prefixes and sources: a
    prefix that covers another region's node is refused whether or not that node's address is routed. So agents with
    and without the setting agree on all other prefixes.
    """

    def __init__(self, mesh: str, derive: Derive = identity.tunnel_address, *, forward_node_ip: bool = False) -> None:
        self._nodes = NodeOwners(mesh, derive)
        self._keys = KeyOwners()
        self._prefixes = _PrefixOwners(mesh, self._nodes, forward_node_ip)
        self._vxlan: dict[str, dict[str, Conflict]] = {}  # Gateway → node → collision on the region's VXLAN
        self._refused: dict[str, RefusedClaims] = {}  # by Gateway; only those that lost something

    def refused(self, gateway: str) -> RefusedClaims:
        """Return what a Gateway lost."""
        return self._refused.get(gateway, NOTHING_REFUSED)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every conflict, sorted by kind, loser, field and subject."""
        found = [*self._nodes.lost.values(), *self._keys.lost.values()]
        found += (conflict for lost in self._prefixes.lost.values() for conflict in lost.values())
        found += (conflict for collisions in self._vxlan.values() for conflict in collisions.values())
        return tuple(sorted(found, key=lambda c: (c.kind, c.loser, c.field, c.subject)))

    def update(self, gateways: Set[str], peers: Set[str], world: World) -> set[str]:
        """Add, replace or remove what changed in `world`, by name.

        `gateways` are those that changed or one of whose Peers did, `peers` the Peers that changed. Returns the
        Gateways that lost or regained something.
        """
        for name in gateways:
            gateway = world.gateways.get(name)
            collisions = _vxlan_collisions(gateway, world.peers) if gateway else {}
            self._vxlan.pop(name, None)
            if collisions:
                self._vxlan[name] = collisions
        changed = set(gateways) | self._nodes.update(gateways, world)
        affected_peers = self._keys.update(peers, world)
        affected = changed | self._prefixes.update(changed, world)
        affected |= {name for peer in affected_peers for name in self._nodes.gateways_with(peer)}
        return {name for name in affected if self._summarise(name)}

    def _summarise(self, name: str) -> bool:
        """Set `_refused` of one Gateway; returns whether it differs from before."""
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
    """Entries of one Gateway in the indices, kept so that they can be removed again."""

    claims: dict[Prefix, Announced] = field(default_factory=dict)
    dialled: dict[Address, str] = field(default_factory=dict)  # address at which others dial → field that names it
    lan: dict[Address, str] = field(default_factory=dict)  # address on the region's own network → field


class _PrefixOwners:
    """Assigns each prefix to one region, and none to a region if it covers addresses that carry the tunnels."""

    def __init__(self, mesh: str, nodes: NodeOwners, forward_node_ip: bool) -> None:
        self._forward_node_ip = forward_node_ip
        # Gateway → prefix. Nested, because most Gateways lose nothing: finding that must not hash 20,000 prefixes.
        self.lost: dict[str, dict[Prefix, Conflict]] = {}
        self._mesh = mesh
        self._nodes = nodes
        self._owned: dict[str, _OwnedClaims] = {}  # by Gateway
        self._claims = PrefixClaims()
        self._dialled, self._lan = AddressIndex(), AddressIndex()
        self._overlaps: dict[str, dict[Prefix, tuple[Prefix, ...]]] = {}  # Gateway → lost prefix → winners' prefixes
        # Gateway → prefixes refused for the addresses they cover. They take no part in the decision on overlaps.
        self._covering: dict[str, set[Prefix]] = {}

    def refused(self, gateway: str) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """Return the prefixes a Gateway lost, and the other regions' prefixes that overlap these."""
        overlapping = self._overlaps.get(gateway, {}).values()
        return frozenset(self.lost.get(gateway, ())), frozenset(prefix for some in overlapping for prefix in some)

    def update(self, changed: Set[str], world: World) -> set[str]:
        """Replace the claims and addresses of these Gateways; returns Gateways whose losses may differ now."""
        prefixes: list[Prefix] = []
        addresses: set[Address] = set()
        new_claims: list[Claim] = []
        new_dialled: list[tuple[str, Address, str]] = []
        new_lan: list[tuple[str, Address, str]] = []
        for name in sorted(changed):
            before, gateway = self._owned.pop(name, None) or _OwnedClaims(), world.gateways.get(name)
            after = self._owned_claims(gateway, world.peers) if gateway else _OwnedClaims()
            gone = [prefix for prefix in before.claims if prefix not in after.claims]
            for prefix in gone:
                self._claims.remove(name, prefix)
                self._clear(name, prefix)
            # The Gateway's priority or a field's index may have changed too, so all of its claims are resolved anew.
            prefixes += (*gone, *after.claims)
            new_claims += (Claim(name, announced) for announced in after.claims.values())
            addresses |= _changed_addresses(self._dialled, name, before.dialled, after.dialled, new_dialled)
            addresses |= _changed_addresses(self._lan, name, before.lan, after.lan, new_lan)
            if gateway is not None:
                self._owned[name] = after
        self._claims.add(new_claims)
        self._dialled.add(new_dialled)
        self._lan.add(new_lan)
        for address in addresses:
            prefixes += self._claims.covering(address)
        return self._resolve(prefixes)

    def _owned_claims(self, gateway: Gateway, peers: Mapping[str, PeerObject]) -> _OwnedClaims:
        lost = {info.node for info in gateway.status.nodes if (gateway.name, info.node) in self._nodes.lost}
        owned = _OwnedClaims({}, *_underlay_addresses(gateway, peers, lost))
        for announced in claims(gateway, peers, forward_node_ip=self._forward_node_ip):
            if announced.node not in lost:
                owned.claims.setdefault(announced.prefix, announced)
        return owned

    def _clear(self, region: str, prefix: Prefix) -> None:
        """Remove every decision on one claim; entries of regions that lose nothing disappear."""
        for losses in (self.lost, self._overlaps):
            if region in losses:
                losses[region].pop(prefix, None)
                if not losses[region]:
                    del losses[region]
        if region in self._covering:
            self._covering[region].discard(prefix)
            if not self._covering[region]:
                del self._covering[region]

    def _is_covering(self, region: str, prefix: Prefix) -> bool:
        return region in self._covering and prefix in self._covering[region]

    def _resolve(self, prefixes: list[Prefix]) -> set[str]:
        """Decide on these prefixes and all that overlap them; returns the regions whose claims were considered."""
        for region, announced in self._claims.claims_of(prefixes):
            self._clear(region, announced.prefix)
            refusal = self._covers_underlay(region, announced)
            if refusal is not None:
                self.lost.setdefault(region, {})[announced.prefix] = refusal
                self._covering.setdefault(region, set()).add(announced.prefix)
        considered, lost = self._claims.resolve(prefixes, self._nodes.priority, self._is_covering)
        for claim in considered:
            if not self._is_covering(claim.region, claim.announced.prefix):
                self._clear(claim.region, claim.announced.prefix)
        for one in lost:
            region, announced = one.claim
            self.lost.setdefault(region, {})[announced.prefix] = _overlap_conflict(one)
            # A lost node address shadows nothing: it lies in the LAN, which the node reaches without a route of ours.
            if announced.kind is not ClaimKind.ADDRESS:
                self._overlaps.setdefault(region, {})[announced.prefix] = one.overlaps
        return {claim.region for claim in considered}

    def _covers_underlay(self, region: str, announced: Announced) -> Conflict | None:
        """Return the conflict of a prefix that no region may have: its route would catch outer packets of tunnels."""
        prefix = announced.prefix
        reserved = identity.mesh_network(self._mesh)
        if overlaps(prefix, reserved):
            return Conflict(
                ConflictKind.RESERVED,
                str(prefix),
                announced.owner,
                announced.field,
                f"mesh {self._mesh} ({reserved})",
                "give the node another prefix, or the mesh another name",
            )
        # The address at which a node is dialled may be routed to that node: it is the same node inside the tunnel.
        own = announced.dialled and announced.kind is not ClaimKind.PODS
        found = self._dialled.first_inside(prefix, lambda other: not own or other != region)
        if announced.kind is ClaimKind.ADDRESS:
            # Two nodes with one address are an overlap of two regions.
            remedy = "give the node an InternalIP of its own"
        else:
            found = found or self._lan.first_inside(prefix, lambda other: other != region)
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


def _changed_addresses(
    index: AddressIndex,
    name: str,
    before: Mapping[Address, str],
    after: Mapping[Address, str],
    new: list[tuple[str, Address, str]],
) -> set[Address]:
    """Remove one Gateway's old addresses from `index` and append its new ones to `new`.

    Returns the addresses that are new, gone, or named by another field now.
    """
    gone = before.keys() - after.keys()
    for address in gone:
        index.remove(name, address)
    changed = [(name, address, where) for address, where in after.items() if before.get(address) != where]
    new += changed
    return {address for _, address, _ in changed} | gone


def _underlay_addresses(
    gateway: Gateway, peers: Mapping[str, PeerObject], lost: set[str]
) -> tuple[dict[Address, str], dict[Address, str]]:
    """Return the addresses at which a region's gateway nodes are dialled, and its nodes' addresses on their LAN.

    Each with the field that names it. Nodes that belong to another Gateway (`lost`) are left out.
    """
    dialled: dict[Address, str] = {}
    lan: dict[Address, str] = {}
    for node, addresses in outer_addresses(gateway, peers).items():
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


def _vxlan_collisions(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, Conflict]:
    """Return the nodes whose derived VXLAN addresses are another node's of the region; the first name keeps them.

    OpenYurt derives them from the last three octets of the IPv4 address; without one, 32 bits of the name's hash
    serve. Both show in the MAC.
    """
    holders: dict[str, str] = {}  # MAC → node
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


def _overlap_conflict(lost: LostClaim) -> Conflict:
    """Return the conflict of two claims that overlap, in words of node addresses where it is about these."""
    loser, winner = lost.claim.announced, lost.winner.announced
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
