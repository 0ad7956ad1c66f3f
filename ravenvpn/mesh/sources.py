"""Preferred source addresses: with which address connections that start on this node leave for other regions.

One address a family. It becomes the `src` of routes, the source of the packet filter's SNAT, and `spec.sources` of
our Peer.
"""

from __future__ import annotations

from collections.abc import Iterable

from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import NodeInfo, PeerObject
from ravenvpn.mesh.reason import Reason, ReasonCode


def preferred_sources(info: NodeInfo | None, peer: PeerObject | None, facts: LocalFacts) -> dict[int, Address]:
    """Return the preferred source by IP version; a family without a candidate is missing.

    Best is an address the Peer announces, then one inside the node's own pod prefixes, then its InternalIP. Only
    addresses present on this host count; where they were not read, the announced ones do.
    """
    if info is None:
        return {}
    internal: list[Address] = list(peer.node_addresses) if peer else []
    if info.private_ip is not None:
        internal.append(info.private_ip)
    present = facts.addresses or ()
    fallback = _first_by_family((a for a in internal if a in present), facts)
    return fallback | _accepted_sources(info, peer, facts)


def source_notes(
    info: NodeInfo | None, peer: PeerObject | None, facts: LocalFacts, forward_node_ip: bool
) -> list[Reason]:
    """Return a note for each family whose preferred source other regions do not accept.

    They accept announced sources and pod prefixes, and with `forward_node_ip` node addresses too.
    """
    if info is None or forward_node_ip:
        return []
    accepted = _accepted_sources(info, peer, facts)
    sources = preferred_sources(info, peer, facts)
    return [
        Reason(ReasonCode.SOURCE_NOT_ACCEPTED, info.node, (sources[family],))
        for family in facts.families
        if family in sources and family not in accepted
    ]


def _accepted_sources(info: NodeInfo, peer: PeerObject | None, facts: LocalFacts) -> dict[int, Address]:
    """Return, by family, the best source that other regions accept under any setting."""
    present = facts.addresses
    announced = [a for a in (peer.sources if peer else ()) if present is None or a in present]
    inside = sorted(
        (a for a in present or () if any(a.version == p.version and a in p for p in info.subnets)),
        key=lambda a: (a.version, int(a)),
    )
    return _first_by_family((*announced, *inside), facts)


def _first_by_family(addresses: Iterable[Address], facts: LocalFacts) -> dict[int, Address]:
    found: dict[int, Address] = {}
    for address in addresses:
        if address.version in facts.families:
            found.setdefault(address.version, address)
    return found
