"""Public keys where upstream's agents look for them: `spec.endpoints[].config.publicKey`.

Upstream's WireGuard driver has each agent write its own there. Ours may write no Gateway, so the controller does it
on their behalf, from their Peers. Where a node has no Peer of ours its key is its own agent's business.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from typing import Any

from ravenvpn.mesh.model import EndpointType, Gateway, Peer

PUBLIC_KEY = "publicKey"


def missing(gateway: Gateway, peers: Mapping[str, Peer]) -> dict[str, str]:
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
