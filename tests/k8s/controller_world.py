"""Objects as the API server hands them out, and what the controller decides over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.conflict_view import ConflictView
from ravenvpn.k8s.controller.decide import Decision, Rights, decide
from ravenvpn.k8s.controller.decode import ADDED
from ravenvpn.k8s.controller.desired import status_of
from ravenvpn.k8s.controller.events import EventNotice
from ravenvpn.mesh.model import GatewayStatus, World

Object = dict[str, Any]
KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="
OTHER_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
NOW = "2026-01-31T12:00:00Z"
EVERYTHING = Rights(elects=True, added=ADDED, keys=True)


def tunnel(node: str, **more: Any) -> Object:
    return {"nodeName": node, "type": "tunnel", **more}


def gateway(name: str, endpoints: Sequence[Object] = (), *, version: int = 1, **more: Any) -> Object:
    """`more` goes into the spec, but for metadata and status."""
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    metadata |= more.pop("metadata", {})
    status = more.pop("status", None)
    spec = {"tunnelConfig": {"Replicas": 1}, "endpoints": list(endpoints), **more}
    thing = {"apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway", "metadata": metadata, "spec": spec}
    return thing if status is None else {**thing, "status": status}


def node(
    name: str, region: str, *, ready: bool = True, cidrs: Sequence[str] = (), ip: str = "10.0.0.1", **metadata: Any
) -> Object:
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
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": name, "labels": {"raven.openyurt.io/gateway": region}},
        "spec": {"publicKey": key, **spec},
    }


class Cluster:
    """A view, and an API server that takes every status that is decided on."""

    def __init__(self, *objects: Object) -> None:
        self.view = ClusterCache()
        self.standing = ConflictView("test")
        self.documents: dict[str, Object] = {}
        self.told: dict[str, frozenset[EventNotice]] = {}
        self.names: Mapping[str, Sequence[str]] = {}
        self.put(*objects)

    def put(self, *objects: Object) -> None:
        for thing in objects:
            if thing["kind"] == "Gateway":
                self.documents[thing["metadata"]["name"]] = thing
            self.view.take(ObjectKind(thing["kind"]), [thing])

    def drop(self, kind: str, name: str) -> None:
        self.view.take(ObjectKind(kind), (), (name,))

    def touched(self) -> set[str]:
        touched, self.view.touched = self.view.touched, set()
        return touched

    def addresses(self, host: str) -> Sequence[str]:
        return self.names.get(host, (host,) if host[0].isdigit() else ())

    def decide(self, name: str, rights: Rights = EVERYTHING, now: str = NOW) -> Decision:
        held = self.view.gateways.get(name)
        value = held.value if held else None
        status = GatewayStatus() if value is None else status_of(self.view, value, self.addresses)
        return decide(
            self.view,
            name,
            status,
            self.standing.lost_by(name),
            rights,
            told=self.told.get(name, frozenset()),
            now=now,
        )

    def settle(self, name: str, rights: Rights = EVERYTHING, now: str = NOW) -> Decision:
        """Decide, and have the API server take it."""
        decision = self.decide(name, rights, now)
        self.told[name] = decision.lasting
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

    def world(self) -> World:
        """As an agent has it."""
        gateways = [held.value for held in self.view.gateways.values() if held.value]
        return World.of(gateways, self.view.peers.values(), mesh="test")

    def status(self, name: str) -> Object:
        found: Object = self.documents[name].get("status") or {}
        return found

    def active(self, name: str) -> list[str]:
        return [e["nodeName"] for e in self.status(name).get("activeEndpoints", [])]

    def condition(self, name: str, kind: str) -> Object:
        found: Object = next(c for c in self.status(name)["conditions"] if c["type"] == kind)
        return found


def reasons(decision: Decision) -> list[tuple[str, str]]:
    return [(notice.reason, notice.message) for notice in decision.notices]
