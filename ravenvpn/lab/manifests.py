"""The objects of a lab that an agent reads: Gateways, Nodes and Peers with the lab's addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ravenvpn import atomic_file
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.k8s import crd
from ravenvpn.lab.host import LabNode
from ravenvpn.lab.topology import LabRegionPlan, Nat
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, GATEWAY_LABEL, HostPort, PeerObject

LISTEN_PORT = DEFAULT_TUNNEL_PORT  # of every node, UDP
WIREGUARD_SUITE = ("chacha20poly1305",)  # the one that every WireGuard implementation has
_SUITES = {suite.value: suite for suite in Suite}
Manifest = dict[str, Any]  # one Kubernetes object


def of_lab(
    plans: Sequence[LabRegionPlan], nodes: Sequence[LabNode], public_keys: Mapping[str, str], suites: Sequence[str]
) -> list[Manifest]:
    """Return a Gateway for each region, a Node for each node, and a Peer for each node in `public_keys`.

    `public_keys` are base64 by name of the node. `suites` are announced by each Peer, in order of preference.
    """
    # The first nodes of a region are its candidates; the agents elect the first of them that is ready.
    gateways = []
    for plan in plans:
        candidates = [node for node in nodes if node.region is plan.region][: plan.region.gateways]
        gateways.append(_gateway(plan, candidates))
    peers = [_peer(node, public_keys[node.name], suites) for node in nodes if node.name in public_keys]
    return [*gateways, *(_node(node) for node in nodes), *peers]


def _gateway(plan: LabRegionPlan, candidates: Sequence[LabNode]) -> Manifest:
    """Return a Gateway whose endpoints are `candidates`, with a public address unless the region is behind NAT."""
    region = plan.region
    return {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {"name": region.name},
        "spec": {
            # Nodes carry this label already; in a cluster yurt-manager writes it.
            "nodeSelector": {"matchLabels": {GATEWAY_LABEL: region.name}},
            "tunnelConfig": {"Replicas": 1},
            "endpoints": [
                {
                    "nodeName": node.name,
                    "type": "tunnel",
                    "port": LISTEN_PORT,
                    # A public address is dialled; behind NAT the gateway dials, so no address is listed.
                    **({"publicIP": str(node.v4)} if region.nat is Nat.NONE else {"underNAT": True}),
                }
                for node in candidates
            ],
        },
    }


def _node(node: LabNode) -> Manifest:
    """Return a Node that is Ready. With the Calico model it has one podCIDR for each of its blocks."""
    cidrs = [str(cidr) for block in node.blocks for cidr in block]
    # podCIDR is the first of podCIDRs, as the API server requires.
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {GATEWAY_LABEL: node.region.name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        # Readiness is fixed: there is no kubelet in a lab that would renew it.
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": str(node.v4)},
                {"type": "InternalIP", "address": str(node.v6)},
                {"type": "Hostname", "address": node.name},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _peer(node: LabNode, public_key: str, suites: Sequence[str]) -> Manifest:
    """Return the Peer that the agent of this node would write. Behind NAT it announces no address to dial."""
    lan = (node.v4, node.v6)
    peer = PeerObject(
        name=node.name,
        public_key=PublicKey.from_base64(public_key).raw,
        listen_port=LISTEN_PORT,
        addresses=tuple(HostPort(str(address)) for address in lan) if node.region.nat is Nat.NONE else (),
        node_addresses=lan,
        sources=tuple(node.source),
        suites=tuple(_SUITES[name] for name in suites),
    )
    return crd.write_peer(peer, node.region.name)


def write(folder: Path, objects: Sequence[Manifest]) -> None:
    """Write `<kind>-<name>.yaml` for each object, each in one step: a watching agent never reads half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for manifest in objects:
        target = folder / f"{manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml"
        content = yaml.safe_dump(manifest, sort_keys=False).encode()
        atomic_file.replace(target, content, mode=0o644, durable=False)
