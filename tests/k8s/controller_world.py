"""API objects as an API server returns them, and a cluster in memory on which the controller decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.conflict_view import ConflictView
from ravenvpn.k8s.controller.decide import Decision, WriteScope, decide
from ravenvpn.k8s.controller.decode import EXTRA_FIELDS
from ravenvpn.k8s.controller.desired_status import desired_status
from ravenvpn.k8s.controller.events import EventNotice
from ravenvpn.mesh.model import GatewayStatus, World

Object = dict[str, Any]
KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="
OTHER_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
NOW = "2026-01-31T12:00:00Z"
EVERYTHING = WriteScope(elects=True, extra_fields=EXTRA_FIELDS, keys=True)


def tunnel(node: str, **more: Any) -> Object:
    """Return an endpoint of type tunnel."""
    return {"nodeName": node, "type": "tunnel", **more}


def gateway(name: str, endpoints: Sequence[Object] = (), *, version: int = 1, **more: Any) -> Object:
    """Return a Gateway with one tunnel replica. `more` goes into the spec, except for metadata and status."""
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    metadata |= more.pop("metadata", {})
    status = more.pop("status", None)
    spec = {"tunnelConfig": {"Replicas": 1}, "endpoints": list(endpoints), **more}
    document = {"apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway", "metadata": metadata, "spec": spec}
    return document if status is None else {**document, "status": status}


def node(
    name: str, region: str, *, ready: bool = True, cidrs: Sequence[str] = (), ip: str = "10.0.0.1", **metadata: Any
) -> Object:
    """A Node of a region. `ip` holds its InternalIPs with commas between them."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"raven.openyurt.io/gateway": region}, **metadata},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "addresses": [{"type": "InternalIP", "address": one} for one in ip.split(",")],
        },
    }


def peer(name: str, region: str, key: str = KEY, **spec: Any) -> Object:
    """The Peer of a node."""
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": name, "labels": {"raven.openyurt.io/gateway": region}},
        "spec": {"publicKey": key, **spec},
    }


class Cluster:
    """A cache, and an API server that accepts every write."""

    def __init__(self, *objects: Object) -> None:
        self.cache = ClusterCache()
        self.conflicts = ConflictView("test")
        self.documents: dict[str, Object] = {}  # Gateways as stored
        self.reported: dict[str, frozenset[EventNotice]] = {}
        self.names: Mapping[str, Sequence[str]] = {}  # host names that resolve
        self.put(*objects)

    def put(self, *objects: Object) -> None:
        """Create or change objects, and deliver them as a watch does."""
        for document in objects:
            if document["kind"] == "Gateway":
                self.documents[document["metadata"]["name"]] = document
            self.cache.apply(ObjectKind(document["kind"]), [document])

    def drop(self, kind: str, name: str) -> None:
        """Delete an object."""
        self.cache.apply(ObjectKind(kind), (), (name,))

    def drain(self) -> set[str]:
        """Return the dirty Gateways, and mark them clean."""
        return set(self.cache.drain()[0])

    def resolve(self, host: str) -> Sequence[str]:
        return self.names.get(host, (host,) if host[0].isdigit() else ())

    def decide(self, name: str, scope: WriteScope = EVERYTHING, now: str = NOW) -> Decision:
        """Decide for one Gateway, without writing."""
        found = self.cache.gateways.get(name)
        value = found.value if found else None
        status = GatewayStatus() if value is None else desired_status(self.cache, value, self.resolve)
        lost = self.conflicts.lost_by(name)
        reported = self.reported.get(name, frozenset())
        return decide(self.cache, name, status, lost, scope, reported=reported, now=now)

    def reconcile(self, name: str, scope: WriteScope = EVERYTHING, now: str = NOW) -> Decision:
        """Decide for one Gateway and write the decision."""
        decision = self.decide(name, scope, now)
        self.reported[name] = decision.ongoing
        if decision.status is not None:
            before = self.documents[name]
            metadata = {**before["metadata"], "resourceVersion": str(int(before["metadata"]["resourceVersion"]) + 1)}
            status = {**(before.get("status") or {}), **decision.status["status"]}
            self.put({**before, "metadata": metadata, "status": status})
        for document in decision.exposure.services:
            self.put(document)
        for document in decision.exposure.slices:
            self.put(document)
        for gone in decision.exposure.drop_services:
            self.drop("Service", gone)
        for gone in decision.exposure.drop_slices:
            self.drop("EndpointSlice", gone)
        return decision

    def reconcile_all(self) -> list[tuple[str, str]]:
        """Reconcile every readable Gateway, conflicts first, as a round does; returns reasons and messages."""
        values = {name: found.value for name, found in self.cache.gateways.items() if found.value}
        desired = {
            name: replace(value, status=desired_status(self.cache, value, self.resolve))
            for name, value in values.items()
        }
        self.conflicts.update(desired, dict(self.cache.peers))
        return [notice for name in sorted(values) for notice in reasons(self.reconcile(name))]

    def world(self) -> World:
        """The world as agents have it."""
        gateways = [found.value for found in self.cache.gateways.values() if found.value]
        return World.of(gateways, self.cache.peers.values(), mesh="test")

    def status(self, name: str) -> Object:
        found: Object = self.documents[name].get("status") or {}
        return found

    def active(self, name: str) -> list[str]:
        """Nodes of the active endpoints."""
        return [e["nodeName"] for e in self.status(name).get("activeEndpoints", [])]

    def condition(self, name: str, kind: str) -> Object:
        found: Object = next(c for c in self.status(name)["conditions"] if c["type"] == kind)
        return found


def reasons(decision: Decision) -> list[tuple[str, str]]:
    """Reason and message of each notice."""
    return [(notice.reason, notice.message) for notice in decision.notices]
