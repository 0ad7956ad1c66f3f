"""Hubs: regions that relay between two others of which neither is dialable; the choice among them and their gateways.

A hub is a region with a dialable active gateway, chosen by rendezvous hash over (pair, hub), so that both ends agree
without a message and few pairs move when a hub comes or goes (Thaler & Ravishankar, "Using name-based mappings to
increase hit rates", 1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.resolved_region import ResolvedRegion

# Our choice. A node behind NAT keeps a warm session to every hub it may need, and a few hubs suffice for agreement:
# beyond this many dialable regions, those whose names have the lowest hash serve. If one leaves, the next one serves.
MAX_HUBS = 16


class Hub(NamedTuple):
    """A region that relays between others."""

    region: str
    active: tuple[str, ...]  # dialable active gateway nodes
    nodes: tuple[str, ...]  # all dialable gateway nodes: packets of any of them may be relayed ones
    hosts: tuple[str, ...]  # addresses and names at which the active ones are dialled
    no_pmtu_discovery: bool = False  # of an active one, see GatewayNode


@lru_cache(maxsize=1 << 16)
def hub_rank(region: str) -> int:
    """Return the region's place in the order in which dialable regions serve as hubs, lowest first.

    Any hash would do, as long as every node uses the same one.
    """
    return int.from_bytes(hashlib.sha256(b"hub\0" + region.encode()).digest()[:8], "big")


def as_hub(region: ResolvedRegion) -> Hub:
    """Return the region in its role as a hub."""
    return Hub(
        region.name,
        tuple(g.node for g in region.gateways if g.active and g.dialable),
        tuple(g.node for g in region.gateways if g.dialable),
        tuple(c.host for g in region.gateways if g.active and g.dialable for c in g.candidates),
        any(g.active and g.dialable and g.no_pmtu_discovery for g in region.gateways),
    )


def rendezvous(one: str, other: str, hub: str) -> int:
    """Return the weight of a hub for a pair of regions, the same from both ends. The highest weight wins."""
    first, second = sorted((one, other))
    return int.from_bytes(hashlib.sha256(f"{first}\0{second}\0{hub}".encode()).digest()[:8], "big")


def carrier_order(me: str, nodes: Iterable[str], liveness: Liveness) -> tuple[str, ...]:
    """Return gateway nodes, best first for `me`: those not proven dead, then by a hash that spreads the senders."""
    return tuple(sorted(nodes, key=lambda n: (liveness.dead(n), -rendezvous(me, n, "carrier"), n)))


def hub_order(one: str, other: str, hubs: Iterable[Hub]) -> list[Hub]:
    """Return the hubs for a pair of regions, best first, without regard to liveness."""
    return sorted(hubs, key=lambda h: (-rendezvous(one, other, h.region), h.region))


def choose_hub(one: str, other: ResolvedRegion, hubs: Iterable[Hub], liveness: Liveness) -> Hub | None:
    """Return the hub that carries between our region `one` and `other` now; None without hubs.

    1. The first in rendezvous order that reaches an active gateway of the other end. Among these, one that is proven
       alive comes before one of unknown state: otherwise a new hub whose Gateway exists before its agent runs would
       interrupt the pairs it is to serve.
    2. If none reaches the other end, the first whose gateway is not dead.
    3. If all are dead, the first at all, so that both ends are on the same path when it comes back.
    """
    order = hub_order(one, other.name, hubs)
    far = [g.node for g in other.gateways if g.active]
    carrying = [(h, [n for n in h.active if any(liveness.carries(n, end) for end in far)]) for h in order]
    able = [h for h, nodes in carrying if nodes]
    proven = (h for h, nodes in carrying if any(liveness.of(node) is LivenessVerdict.ALIVE for node in nodes))
    if able:
        return next(proven, able[0])
    alive = (hub for hub in order if any(not liveness.dead(node) for node in hub.active))
    return next(alive, order[0] if order else None)
