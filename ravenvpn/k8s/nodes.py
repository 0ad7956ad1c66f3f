"""Node: reads the fields of a Kubernetes Node that `mesh.status` needs to compute the status of a Gateway.

Only the controller and directories of manifests have Nodes. Agents in a cluster read no Nodes: they get addresses and
prefixes from the status of Gateways.
"""

from __future__ import annotations

from ravenvpn.k8s import wire
from ravenvpn.k8s.fields import ProblemCollector, check_name, read_address, read_prefix
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import EMPTY, GATEWAY_LABEL, Node


def read(raw: wire.NodeWire, collector: ProblemCollector, *, handwritten: bool) -> Node:
    """Convert a Node. Malformed fields are reported to `collector` and left out.

    A Node without conditions is not ready, unless it is `handwritten`: manifests written by hand have none."""
    spec = raw.spec or wire.NodeSpec()
    status = raw.status or wire.NodeStatus()
    labels = raw.metadata.labels or EMPTY
    if labels.get(GATEWAY_LABEL):
        check_name(collector, f"metadata.labels[{GATEWAY_LABEL}]", labels[GATEWAY_LABEL])
    # ExternalIP and Hostname are not read: the LAN of a region uses InternalIPs.
    addresses = [
        read_address(collector, f"status.addresses[{i}].address", entry.address)
        for i, entry in enumerate(status.addresses or ())
        if entry.type == "InternalIP"
    ]
    # Ready has the values True, False and Unknown; Unknown means that the kubelet stopped reporting.
    conditions = status.conditions
    ready = any(c.type == "Ready" and c.status == "True" for c in conditions or ())
    return Node(
        name=raw.metadata.name,
        # Upstream's label; "": the node belongs to no region, and agents leave it alone.
        gateway=labels.get(GATEWAY_LABEL, ""),
        ready=ready or (handwritten and conditions is None),
        internal_ips=tuple(dict.fromkeys(a for a in addresses if a is not None)),
        pod_cidrs=_pod_cidrs(spec, collector),
        labels=labels,
    )


def _pod_cidrs(spec: wire.NodeSpec, collector: ProblemCollector) -> tuple[Prefix, ...]:
    """podCIDRs, or podCIDR if that is missing (clusters before dual stack). Both must agree, as in Kubernetes."""
    if spec.podCIDRs:
        texts = {f"spec.podCIDRs[{i}]": text for i, text in enumerate(spec.podCIDRs)}
        if spec.podCIDR and spec.podCIDR != spec.podCIDRs[0]:
            collector.error(
                "spec.podCIDR", "differs from spec.podCIDRs[0]", "leave podCIDR out, or make both the same"
            )
    else:
        texts = {"spec.podCIDR": spec.podCIDR} if spec.podCIDR else {}
    # A malformed prefix is reported and left out; the others of the node stay usable.
    read = []
    for field, text in texts.items():
        if text:
            read.append(read_prefix(collector, field, text))
        else:
            collector.error(field, "is empty", "write the pod prefix of the node, or leave the entry out")
    return tuple(dict.fromkeys(prefix for prefix in read if prefix is not None))
