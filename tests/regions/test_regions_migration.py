"""Migration of a region from OpenYurt's raven-agent ("upstream") to ravenvpn and back, node by node, under traffic.

The gateway of the other region runs ravenvpn all the time. It has a session with either kind of gateway: the upstream
gateway is a plain WireGuard peer whose key is in the Gateway.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from agent.agent_traffic import Flow, Traffic
from region_mesh import TOOLS, Mesh
from upstream_node import UpstreamNode

from ravenvpn.errors import HostError
from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab import manifests as manifest_files
from ravenvpn.lab.agents import WORLD, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs(*TOOLS, "iptables-legacy", "wg", "bridge"),
    pytest.mark.timeout(240),
]

REGIONS = (Region("cloud", 2, 1, masquerade=True), Region("factory", 3, 1, Nat.PORT_RESTRICTED))
GATEWAY = "factory-1"
ACROSS = [
    *((f"factory-{i}-pod-1", "cloud-2-pod-1") for i in (1, 2, 3)),
    *(("cloud-2-pod-1", f"factory-{i}-pod-1") for i in (1, 2, 3)),
]
WITHIN = [(f"factory-{i}-pod-1", f"factory-{j}-pod-1") for i in (1, 2, 3) for j in (1, 2, 3) if i != j]


@dataclass
class Move:
    """The state of the migration of region `factory`, and the manifests that describe it."""

    mesh: Mesh
    upstream: dict[str, UpstreamNode]
    private_key: str
    public_key: str
    ours: set[str] = field(default_factory=set)  # nodes of the region that run ravenvpn

    def write_manifests(self) -> None:
        """Write Peers for nodes that run ravenvpn; the key of an upstream gateway goes into the Gateway."""
        lab, agents = self.mesh.lab, self.mesh.agents
        keys = {name: key for name, key in agents.public_keys.items() if name in self.ours or "cloud" in name}
        objects = lab.manifests(keys)
        if GATEWAY not in self.ours:
            gateway = next(o for o in objects if o["kind"] == "Gateway" and o["metadata"]["name"] == "factory")
            gateway["spec"]["endpoints"][0]["config"] = {"publicKey": self.public_key}
        for node in lab.nodes:
            for absent in set(self.upstream) - self.ours:
                node.path(f"{WORLD}/peer-{absent}.yaml").unlink(missing_ok=True)
            manifest_files.write(node.path(WORLD), objects)

    def connect_upstream(self) -> None:
        cloud = self.mesh.node("cloud-1")
        key = self.mesh.agents.public_keys["cloud-1"]
        self.upstream[GATEWAY].connect(self.private_key, key, f"{cloud.v4}:4500")

    def to_ours(self, name: str) -> None:
        """Start ravenvpn on a node where upstream's agent has ended and left its entries.

        On the gateway upstream's tunnel still has the port. It is removed while ravenvpn waits for the port.
        """
        self.ours.add(name)
        self.write_manifests()
        self.mesh.agents.start(self.mesh.node(name))
        if name == GATEWAY:
            wait_until(lambda: "port 4500 is in use" in self.mesh.fault(name), "ravenvpn waits for the port", 60)
            self.upstream[name].disconnect()
        wait_until(functools.partial(plan_is_applied, self.mesh, name), f"the plan of {name} is applied", 60)

    def to_upstream(self, name: str) -> None:
        node, upstream = self.mesh.node(name), self.upstream[name]
        self.mesh.agents.end(node)
        left = upstream.entries()
        self.mesh.agents.cli(node, "cleanup")
        # The kernel deletes the routes over raven0 with the device.
        assert {**upstream.entries(), "routes": left["routes"]} == left
        upstream.remove()
        upstream.install()
        self.ours.discard(name)
        self.write_manifests()
        if name == GATEWAY:
            self.connect_upstream()


@pytest.fixture(scope="module")
def move() -> Iterator[Move]:
    with Lab(*REGIONS) as lab:
        mesh = Mesh.prepared(lab)
        nodes, gateway = mesh.region("factory"), mesh.node(GATEWAY)
        remote = [str(node.pod_cidrs.v4) for node in mesh.region("cloud")]
        private = gateway.run(["wg", "genkey"]).stdout
        public = gateway.run(["wg", "pubkey"], input=private).stdout.strip()
        upstream = {
            node.name: UpstreamNode(node, gateway, [n for n in nodes if n is not node], remote) for node in nodes
        }
        move = Move(mesh, upstream, private, public)
        move.write_manifests()
        for one in upstream.values():
            one.install()
        move.connect_upstream()
        for node in mesh.region("cloud"):
            mesh.agents.start(node)
        mesh.wait_until_healthy("cloud-1", "cloud-2")
        yield move


def arrives(flow: Flow, since: float) -> bool:
    """Return whether a packet that was sent after `since` has arrived."""
    latest = max(list(flow.arrived)[-1:], default=-1)
    return latest >= 0 and flow.sent[latest] > since


def wait_for_all_flows(traffic: Traffic) -> None:
    """Wait until every flow arrives again."""
    since = time.monotonic()
    for flow in traffic.flows:
        wait_until(functools.partial(arrives, flow, since), f"{flow} arrives", 30)
    time.sleep(0.5)


def plan_is_applied(mesh: Mesh, name: str) -> bool:
    """Return whether the agent has applied a plan."""
    try:
        return mesh.status(name).applied_at is not None
    except HostError:
        return False


@contextmanager
def traffic(move: Move) -> Iterator[Traffic]:
    lab = move.mesh.lab
    with Traffic([(lab.pod(one), lab.pod(other)) for one, other in ACROSS + WITHIN], rate=50) as flowing:
        yield flowing


@dataclass(frozen=True)
class Step:
    """The switch of one node, from its begin until every flow arrives again. Times are of CLOCK_MONOTONIC."""

    name: str
    begin: float
    end: float

    def may_interrupt(self, flow: Flow) -> bool:
        """Return whether the flow goes to another region by this node."""
        names = {flow.sender.node.name, flow.receiver.node.name}
        across = flow.sender.node.region is not flow.receiver.node.region
        return across and (self.name in names or self.name == GATEWAY)

    def covers(self, at: float, flow: Flow) -> bool:
        return self.may_interrupt(flow) and self.begin <= at <= self.end


def test_a_region_is_moved_node_by_node_and_back(move: Move, measured: Callable[[str, float], None]):
    """Traffic inside the region is never interrupted, traffic to another region only while its nodes switch.

    Upstream's entries in table 9027, its rule and its chain are not changed.
    """
    steps: list[Step] = []
    left = {name: one.entries() for name, one in move.upstream.items()}
    assert all(left[name]["routes"] and left[name]["rules"] and left[name]["chain"] for name in left)

    with traffic(move) as flowing:
        wait_for_all_flows(flowing)

        def switch(name: str, how: Callable[[str], None]) -> None:
            begin = time.monotonic()
            how(name)
            wait_for_all_flows(flowing)
            steps.append(Step(name, begin, time.monotonic()))
            assert {one: move.upstream[one].entries() for one in move.ours} == {one: left[one] for one in move.ours}

        switch("factory-3", move.to_ours)  # a plain node with ravenvpn behind upstream's gateway
        status = move.mesh.status("factory-3")
        assert (status.healthy, status.sessions_wanted) == (True, 0), status.reasons
        assert status.regions[0].why == "not known: our gateway factory-1 has no Peer, as where upstream's agent runs"
        switch("factory-2", move.to_ours)
        switch(GATEWAY, move.to_ours)
        move.mesh.wait_until_healthy()
        switch("factory-2", move.to_upstream)  # a plain node with upstream's agent behind a gateway with ravenvpn
        switch(GATEWAY, move.to_upstream)

    started = flowing.flows[0].sent[0]
    unexplained = {
        str(flow): sorted(
            {round(at - started, 1) for at in flow.lost() if not any(s.covers(at, flow) for s in steps)}
        )
        for flow in flowing.flows
    }
    switched = [f"{step.name}: {step.begin - started:.1f} to {step.end - started:.1f}" for step in steps]
    log = move.mesh.agents.log(move.mesh.node("cloud-1"), 40)
    assert {flow: lost for flow, lost in unexplained.items() if lost} == {}, f"{switched}\n{log}"
    assert {str(flow): flow.sources for flow in flowing.flows} == {
        str(flow): {flow.own_address} for flow in flowing.flows
    }
    for step in steps:
        outages = [flow.outage(step.begin, step.end) for flow in flowing.flows if step.may_interrupt(flow)]
        measured(f"longest outage while {step.name} is switched, s", max(outages))
