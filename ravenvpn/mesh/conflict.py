"""A conflict, and what a Gateway loses by it, as values. Who wins is decided in `mesh.conflict_index`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ravenvpn.mesh.hoststate import Prefix


class ConflictKind(StrEnum):
    OVERLAP = "overlapping prefixes"
    UNDERLAY = "prefix covers a gateway's address"
    NODE_ADDRESS = "one address of nodes in two regions"
    RESERVED = "prefix covers addresses of the mesh itself"
    TWO_GATEWAYS = "node in two Gateways"
    DUPLICATE_KEY = "one public key in two Peers"
    COLLISION = "derived addresses collide"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two objects that contradict each other. `loser` and `winner` read "Gateway factory", "Peer edge-1"."""

    kind: ConflictKind
    subject: str  # the prefix, node, key or address at issue
    loser: str
    field: str  # of the loser, as a path
    winner: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.loser}, {self.field}: {self.kind}: {self.subject} is held by {self.winner} ({self.remedy})"


@dataclass(frozen=True, slots=True)
class RefusedClaims:
    """What a Gateway lost to others: prefixes, whole nodes, and nodes whose keys are another's."""

    prefixes: frozenset[Prefix] = field(default_factory=frozenset)
    nodes: frozenset[str] = field(default_factory=frozenset)
    keys: frozenset[str] = field(default_factory=frozenset)
    # Winners' prefixes that overlap what this region lost: its own nodes leave them to their local network.
    shadowed: frozenset[Prefix] = field(default_factory=frozenset)
    vxlan: frozenset[str] = field(default_factory=frozenset)  # nodes without a place on the region's VXLAN


NOTHING_REFUSED = RefusedClaims()
