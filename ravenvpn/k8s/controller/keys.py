"""Public keys where upstream's agents look for them: `spec.endpoints[].config.publicKey`.

Upstream's WireGuard driver has each agent write its own there. Ours may write no Gateway, so the controller does it
on their behalf, from their Peers. Where a node has no Peer of ours its key is its own agent's business.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from typing import Any

from ravenvpn.mesh.model import EndpointType, Gateway, PeerObject

PUBLIC_KEY = "publicKey"
# A key to be written more often than this is somebody else's too: most likely upstream's agent runs on the same node.
PATIENCE = 5
WITHIN = 600.0  # seconds


class Quarrels:
    """Which keys are written over and over: two agents on one node would go on for ever, and all would watch."""

    def __init__(self) -> None:
        self._writes: dict[tuple[str, str], list[float]] = {}

    def allow(self, gateway: str, node: str, now: float) -> bool:
        """Whether the key of this node may be written once more at `now`, in seconds; if so it counts as written."""
        recent = [at for at in self._writes.pop((gateway, node), ()) if now - at < WITHIN]
        allowed = len(recent) < PATIENCE
        self._writes[gateway, node] = [*recent, now] if allowed else recent
        return allowed


def missing(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, str]:
    """node → key in base64, where the Gateway's spec does not say what the node's Peer does."""
    found = {}
    for endpoint in gateway.endpoints:
        peer = peers.get(endpoint.node)
        if endpoint.type is EndpointType.TUNNEL and peer is not None:
            key = base64.b64encode(peer.public_key).decode()
            if endpoint.config.get(PUBLIC_KEY) != key:
                found[endpoint.node] = key
    return found


def patch(document: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any] | None:
    """A merge patch that puts them into the Gateway `document`, and fails if that has changed; None where they are.

    A merge patch replaces lists whole, hence the list as it was read, unknown fields and all.
    """
    spec = document.get("spec")
    listed = spec.get("endpoints") if isinstance(spec, Mapping) else None
    endpoints = copy.deepcopy(listed) if isinstance(listed, list) else []
    changed = False
    for endpoint in endpoints:
        key = keys.get(endpoint.get("nodeName", "")) if endpoint.get("type") == "tunnel" else None
        config = endpoint.get("config") or {}
        if key is not None and config.get(PUBLIC_KEY) != key:
            endpoint["config"] = {**config, PUBLIC_KEY: key}
            changed = True
    if not changed:
        return None
    version = document["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version}, "spec": {"endpoints": endpoints}}
