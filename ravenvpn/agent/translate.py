"""From the mesh's words to the tunnel's: the only place that knows both. Pure."""

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
    """What the tunnel is told about one planned peer.

    Candidates come best first, each name with all its addresses. Where the peer was last seen is tried after them:
    a public gateway that restarts so finds its NATed peers, which nobody can name.
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
