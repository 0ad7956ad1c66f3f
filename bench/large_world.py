"""Manifests of many regions, for agents that read files. No host of these regions exists."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ravenvpn.k8s.crd import write_peer
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, GATEWAY_LABEL, PeerObject


def large_world(regions: int) -> str:
    """Return regions of one node each as one List in JSON, which is YAML too: a Gateway, a Node and a Peer for each.

    Every second region is behind NAT. Nodes have addresses in 172.16.0.0/12, their only pod one in 10.0.0.0/9.
    """
    items = [item for number in range(regions) for item in _region(number)]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _region(number: int) -> list[dict[str, Any]]:
    name = f"storm-{number}"
    node = f"{name}-node"
    high, low = divmod(number, 250)
    reachable = {"publicIP": f"192.0.{2 + high}.{low + 1}"} if number % 2 == 0 else {"underNAT": True}
    gateway = {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {GATEWAY_LABEL: name}},
            "tunnelConfig": {"Replicas": 1},
            "endpoints": [{"nodeName": node, "type": "tunnel", "port": DEFAULT_TUNNEL_PORT, **reachable}],
        },
    }
    peer = write_peer(PeerObject(name=node, public_key=hashlib.sha256(name.encode()).digest()), name)
    pods = f"10.100.{high}.{low}/32"
    machine = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "labels": {GATEWAY_LABEL: name}},
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"172.30.{high}.{low + 1}"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    return [gateway, machine, peer]
