"""Public keys of nodes in `spec.endpoints[].config.publicKey` of the Gateway, for OpenYurt's WireGuard agents.

OpenYurt's agent writes the key of its own node there and reads the keys of others from there. Our agents have no
permission to write Gateways, so the controller writes their keys, which it takes from their Peers. A key of a node
without a Peer is not touched: OpenYurt's agent on that node owns it.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from typing import Any

from ravenvpn.mesh.model import EndpointType, Gateway, PeerObject

PUBLIC_KEY = "publicKey"  # key in the config of an endpoint, as OpenYurt's WireGuard driver names it
# More writes of one key than this within the window mean that another program reverts it, most likely OpenYurt's
# agent on the same node. Two agents would go on without end, and every write is a watch event for every agent.
MAX_WRITES = 5
WINDOW = 600.0  # seconds


class KeyWriteLimit:
    """At most `MAX_WRITES` writes of one node's key into one Gateway within `WINDOW`."""

    def __init__(self) -> None:
        self._writes: dict[tuple[str, str], list[float]] = {}  # Gateway and node → times of recent writes

    def admit(self, gateway: str, node: str, now: float) -> bool:
        """Return whether the key may be written at `now` (seconds); if so, the write counts."""
        recent = [at for at in self._writes.pop((gateway, node), ()) if now - at < WINDOW]
        admitted = len(recent) < MAX_WRITES
        self._writes[gateway, node] = [*recent, now] if admitted else recent
        return admitted


def missing_keys(gateway: Gateway, peers: Mapping[str, PeerObject]) -> dict[str, str]:
    """Return node → public key in base64 for each tunnel endpoint whose config differs from the key in the node's
    Peer.
    """
    missing = {}
    for endpoint in gateway.endpoints:
        peer = peers.get(endpoint.node)
        if endpoint.type is EndpointType.TUNNEL and peer is not None:
            key = base64.b64encode(peer.public_key).decode()
            if endpoint.config.get(PUBLIC_KEY) != key:
                missing[endpoint.node] = key
    return missing


def key_patch(document: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a merge patch that sets the keys in the Gateway `document`; None if they are set already.

    A JSON merge patch (RFC 7386) replaces a list as a whole. So the patch carries the list of endpoints as it was
    read, unknown fields included, and the resourceVersion: the API server answers 409 if the Gateway changed
    meanwhile.
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
    return {
        "metadata": {"resourceVersion": document["metadata"]["resourceVersion"]},
        "spec": {"endpoints": endpoints},
    }
