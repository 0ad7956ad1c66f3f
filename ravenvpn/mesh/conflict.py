"""Values of `mesh.conflict_index`: a conflict of two objects, and the losses of one Gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ravenvpn.mesh.hoststate import Prefix


class ConflictKind(StrEnum):
    """The kind of contradiction. The value is shown in reports and in conditions of the objects."""

    OVERLAP = "overlapping prefixes"
    UNDERLAY = "prefix covers a gateway's address"
    NODE_ADDRESS = "one address of nodes in two regions"
    RESERVED = "prefix covers addresses of the mesh itself"
    TWO_GATEWAYS = "node in two Gateways"
    DUPLICATE_KEY = "one public key in two Peers"
    COLLISION = "derived addresses collide"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two objects that contradict each other, and the one that loses."""

    kind: ConflictKind
    subject: str  # the prefix, node, key (base64) or address both claim
    loser: str  # object: "Gateway factory", "Peer edge-1"
    field: str  # path in the loser
    winner: str  # object, with a field where that is known
    remedy: str  # what the operator can do, in the imperative

    def __str__(self) -> str:
        """Return one line for a log or a terminal."""
        return f"{self.loser}, {self.field}: {self.kind}: {self.subject} is held by {self.winner} ({self.remedy})"


@dataclass(frozen=True, slots=True)
class RefusedClaims:
    """The losses of one Gateway. They apply in full: nothing of them is routed, accepted or dialled."""

    prefixes: frozenset[Prefix] = field(default_factory=frozenset)
    nodes: frozenset[str] = field(default_factory=frozenset)  # members that belong to another Gateway
    keys: frozenset[str] = field(default_factory=frozenset)  # nodes whose Peer lost a key to another Peer
    # Winners' prefixes that overlap lost ones. The region's own nodes route none of them: their local network has
    # other hosts at these addresses.
    shadowed: frozenset[Prefix] = field(default_factory=frozenset)
    vxlan: frozenset[str] = field(default_factory=frozenset)  # nodes that are no members of the region's VXLAN


NOTHING_REFUSED = RefusedClaims()  # of a Gateway without conflicts
