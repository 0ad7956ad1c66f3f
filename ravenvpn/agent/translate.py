"""Translate a planned peer (`mesh`) into the settings of a WireGuard peer (`tunnel`). Pure.

This is the only module that knows both vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ravenvpn.crypto.keys import PresharedKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.mesh.nodeplan import PeerPlan
from ravenvpn.tunnel.peer import PeerSettings


def peer_settings(
    plan: PeerPlan,
    *,
    resolve: Callable[[str], Sequence[str]],
    preshared_key: PresharedKey | None,
    last_seen: Mapping[str, Endpoint],
) -> PeerSettings:
    """Return the tunnel's settings for one planned peer.

    `resolve` maps a host (address or DNS name) to addresses, best first, none where it is not resolved yet.
    `preshared_key` is that of the mesh (whitepaper section 5.2), None for all zeros. `last_seen` maps a peer name to
    the endpoint it had its last session at.

    Endpoints are tried in the order of the candidates, each name with all its addresses, then the one last seen.
    The last one lets a public gateway that restarts call its NATed peers, whose addresses stand in no manifest.
    """
    endpoints = [
        Endpoint(address, candidate.port) for candidate in plan.candidates for address in resolve(candidate.host)
    ]
    if plan.name in last_seen:
        endpoints.append(last_seen[plan.name])
    return PeerSettings(
        name=plan.name,
        public_keys=tuple(PublicKey(key) for key in plan.public_keys),
        preshared_key=preshared_key,
        endpoints=tuple(dict.fromkeys(endpoints)),
        persistent_keepalive=float(plan.keepalive or 0),
        suites=frozenset(plan.suites),
        roaming=plan.roaming,
        warm=plan.warm,
    )
