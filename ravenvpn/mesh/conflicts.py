"""Which of two objects that cannot both be right wins, the same on every node of the mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import World


class ConflictKind(StrEnum):
    OVERLAP = "overlapping prefixes"
    UNDERLAY = "prefix covers a gateway's address"
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
class Refused:
    """What a Gateway lost to others: prefixes, whole nodes, and nodes whose keys are another's."""

    prefixes: frozenset[Prefix] = field(default_factory=frozenset)
    nodes: frozenset[str] = field(default_factory=frozenset)
    keys: frozenset[str] = field(default_factory=frozenset)
    # Winners' prefixes that overlap what this region lost: its own nodes leave them to their local network.
    shadowed: frozenset[Prefix] = field(default_factory=frozenset)


NOTHING_REFUSED = Refused()


class ConflictIndex:
    """All claims of the world, and what each Gateway lost."""

    def update(self, gateways: set[str], peers: set[str], world: World) -> set[str]:
        """Take in what changed; returns the Gateways whose `refused` changed."""
        return set()

    def refused(self, gateway: str) -> Refused:
        return NOTHING_REFUSED

    def conflicts(self) -> tuple[Conflict, ...]:
        return ()
