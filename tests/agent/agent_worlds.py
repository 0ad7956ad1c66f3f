"""Large worlds as manifests: a file for each region, with its Gateway, its Nodes and the Peer of its gateway."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from ravenvpn.mesh.model import GATEWAY_LABEL as LABEL


def region(number: int, nodes: int, *, generation: int = 0) -> dict[str, Any]:
    """Return the manifests of a region. Every second region is behind NAT.

    Another `generation` gives the last node another prefix.
    """
    name = f"region-{number}"
    gateway = f"{name}-node-0"
    dialable = number % 2 == 0
    endpoint: dict[str, Any] = {"nodeName": gateway, "type": "tunnel", "port": 4500}
    endpoint |= {"publicIP": f"192.0.{2 + number // 250}.{number % 250 + 1}"} if dialable else {"underNAT": True}
    items: list[dict[str, Any]] = [
        {
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"matchLabels": {LABEL: name}},
                "tunnelConfig": {"Replicas": 1},
                "endpoints": [endpoint],
            },
        },
        {
            "apiVersion": "ravenvpn.io/v1alpha1",
            "kind": "Peer",
            "metadata": {"name": gateway},
            "spec": {"publicKey": base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()},
        },
    ]
    for index in range(nodes):
        changed = generation if index == nodes - 1 else 0
        items.append(_node(f"{name}-node-{index}", name, number * 16 + index, changed))
    return {"apiVersion": "v1", "kind": "List", "items": items}


def prefix(number: int, index: int, generation: int) -> str:
    """Return the IPv4 pod CIDR of a node: a /29 in 10.0.0.0/9, moved by a /9 for another generation."""
    place = (number * 16 + index) * 8
    return f"{10 + generation % 2}.{place >> 16 & 127}.{place >> 8 & 255}.{place & 255}/29"


def _node(name: str, region_name: str, place: int, generation: int) -> dict[str, Any]:
    v4 = prefix(place // 16, place % 16, generation)
    address = f"172.{16 + (place >> 16)}.{place >> 8 & 255}.{place & 255}"
    v6 = f"fd10:{place >> 16:x}:{place & 0xFFFF:x}::/64"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {LABEL: region_name}},
        "spec": {"podCIDR": v4, "podCIDRs": [v4, v6]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def write(folder: Path, regions: int, nodes: int) -> None:
    for number in range(regions):
        write_region(folder, number, nodes)


def write_region(folder: Path, number: int, nodes: int, generation: int = 0) -> None:
    """Write a region as JSON, which is YAML too. The file is replaced atomically."""
    target = folder / f"region-{number}.json"
    scratch = folder / f".{target.name}.new"
    scratch.write_text(json.dumps(region(number, nodes, generation=generation)))
    scratch.rename(target)
