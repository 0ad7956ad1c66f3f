"""Sessions after a NAT lost its mappings and after a gateway restarted: the time until traffic flows again."""

from __future__ import annotations

import signal
import time

import pytest
from agent_mesh import Measured, Mesh
from agent_traffic import Traffic

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "ss", "conntrack"),
    pytest.mark.timeout(180),
]

IDLE_BAR = 30.0  # seconds, while only the remote side sends
RESTART_BAR = 6.0
AT_ONCE = 0.5


def test_a_new_mapping_is_followed_while_only_the_far_side_sends(mesh: Mesh, measured: Measured) -> None:
    far, near = mesh.lab.pod("cloud-1-pod-1"), mesh.lab.pod("factory-1-pod-1")
    with Traffic([(far, near)], rate=50) as traffic:
        time.sleep(1)
        rebound = time.monotonic()
        mesh.lab.rebind("factory", binding=2)
        flow = traffic.flows[0]
        while (len(flow.sent) - 1) not in flow.arrived and time.monotonic() < rebound + IDLE_BAR:
            time.sleep(0.05)
        time.sleep(1)
    measured("outage, s", flow.outage(rebound - 0.5))
    assert flow.outage(rebound - 0.5) <= IDLE_BAR
    assert max(flow.arrived) > len(flow.sent) - 10, "it flows again"


def test_a_new_mapping_is_followed_at_once_when_the_near_side_sends(mesh: Mesh, measured: Measured) -> None:
    far, near = mesh.lab.pod("cloud-1-pod-1"), mesh.lab.pod("factory-1-pod-1")
    with Traffic([(near, far), (far, near)], rate=50) as traffic:
        time.sleep(1)
        rebound = time.monotonic()
        mesh.lab.rebind("factory", binding=3)
        time.sleep(2)
    for flow in traffic.flows:
        measured(f"outage {flow}, s", flow.outage(rebound - 0.5))
        assert flow.outage(rebound - 0.5) <= AT_ONCE, flow


@pytest.mark.parametrize("restarted", ["cloud-1", "factory-1"])
def test_a_gateway_that_was_killed_carries_traffic_within_6_s_of_its_start(
    mesh: Mesh, restarted: str, measured: Measured
) -> None:
    """The time counts from the start of the new agent. Only the side behind NAT sends."""
    far, near = mesh.lab.pod("cloud-1-pod-1"), mesh.lab.pod("factory-1-pod-1")
    with Traffic([(far, near), (near, far)], rate=50) as traffic:
        time.sleep(1.5)  # endpoints of peers are saved once a second
        mesh.agents.end(mesh.node(restarted), signal.SIGKILL)
        time.sleep(1)
        started = time.monotonic()
        mesh.start(restarted)
        time.sleep(RESTART_BAR + 1.5)
    for flow in traffic.flows:
        lost = flow.lost(started)
        took = (lost[-1] - started) if lost else 0.0
        measured(f"{flow} after start of {restarted}, s", took)
        assert took <= RESTART_BAR, flow


def test_a_restarted_public_gateway_calls_its_natted_peers_at_their_last_endpoints(mesh: Mesh) -> None:
    """No peer behind NAT sends a packet: the gateway initiates to the endpoints in its file."""
    node = mesh.node("cloud-1")
    mesh.agents.end(node, signal.SIGKILL)
    seen = node.read("/var/lib/ravenvpn/endpoints")
    assert str(mesh.lab.router("factory").v4) in seen
    mesh.start("cloud-1")
    mesh.wait_until_healthy("cloud-1")
    assert "session with factory-1 is up" in mesh.agents.log(node, 12)
