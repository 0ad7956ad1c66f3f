"""Regions that exist as API objects only, for load: a Gateway, its Nodes and its Peer each. No agent runs there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster_api import Api
from cluster_mesh import GATEWAYS, PEERS, Mesh

from ravenvpn.mesh.model import GATEWAY_LABEL as LABEL

Object = dict[str, Any]
NODES_PER_REGION = 16  # prefixes reserved per region in the address plan


def name(number: int) -> str:
    return f"field-{number}"


def prefix(number: int, index: int = 0) -> str:
    """Return the podCIDR of a node: a /28 from 10.128.0.0 upwards."""
    place = (number * NODES_PER_REGION + index) * 16
    return f"{10}.{128 + (place >> 16)}.{place >> 8 & 255}.{place & 255}/28"


def more_prefix(number: int) -> str:
    """Return one more prefix for the region, out of 172.16.0.0/12. No other region has it."""
    return f"172.{16 + (number >> 8)}.{number & 255}.0/28"


def gateway(number: int) -> Object:
    region, node = name(number), f"{name(number)}-0"
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": region},
        "spec": {
            "tunnelConfig": {"Replicas": 1},
            "endpoints": [{"nodeName": node, "type": "tunnel", "port": 4500, "underNAT": True}],
        },
    }


def node(number: int, index: int) -> Object:
    place = number * NODES_PER_REGION + index
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"{name(number)}-{index}", "labels": {LABEL: name(number)}},
        "spec": {"podCIDR": prefix(number, index), "podCIDRs": [prefix(number, index)]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"192.168.{place >> 8}.{place & 255}"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Scene", "message": ""}],
        },
    }


def peer(number: int) -> Object:
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": f"{name(number)}-0", "labels": {LABEL: name(number), "ravenvpn.io/role": "gateway"}},
        "spec": {"publicKey": base64.b64encode(hashlib.sha256(name(number).encode()).digest()).decode()},
    }


def status(number: int, nodes: int) -> Object:
    """Return the status of the Gateway as the controller writes it."""
    active = {**gateway(number)["spec"]["endpoints"][0], "config": {"enable-l3-tunnel": "true"}}
    return {
        "activeEndpoints": [active],
        "nodes": [
            {
                "nodeName": made["metadata"]["name"],
                "privateIP": made["status"]["addresses"][0]["address"],
                "subnets": made["spec"]["podCIDRs"],
            }
            for made in (node(number, index) for index in range(nodes))
        ],
    }


def sow(mesh: Mesh, numbers: Iterable[int], nodes: int = 1, *, finished: bool = False) -> None:
    """Create these regions, eight at a time.

    `finished` fills the status and creates no Nodes, for meshes without a controller that would read them.
    """

    def one(number: int) -> None:
        api = mesh.cluster.connect()
        try:
            for index in range(0 if finished else nodes):
                api.create("/api/v1/nodes", node(number, index))
            api.create(PEERS, peer(number))
            api.create(GATEWAYS, gateway(number))
            if finished:
                api.merge(f"{GATEWAYS}/{name(number)}/status", {"status": status(number, nodes)})
        finally:
            api.close()

    with ThreadPoolExecutor(max_workers=8) as workers:
        for _ in workers.map(one, numbers):
            pass  # raises the error of a worker


def reap(api: Api, numbers: Iterable[int], nodes: int = 1) -> None:
    for number in numbers:
        api.delete(f"{GATEWAYS}/{name(number)}")
        api.delete(f"{PEERS}/{name(number)}-0")
        for index in range(nodes):
            api.delete(f"/api/v1/nodes/{name(number)}-{index}")
