"""The hub of two regions fails and recovers."""

from __future__ import annotations

import signal
import time

import pytest
from agent_mesh import Measured, Mesh
from agent_traffic import Traffic

from ravenvpn.lab.agents import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss"), pytest.mark.timeout(240)]

BAR = 3.0  # seconds without the hub


def test_traffic_moves_to_the_other_hub_within_3_s_and_back_without_loss(mesh: Mesh, measured: Measured) -> None:
    hub = mesh.hub()
    other = "harbour-1" if hub == "cloud-1" else "cloud-1"
    one, two = mesh.lab.pod("factory-1-pod-1"), mesh.lab.pod("ship-1-pod-1")
    beside = mesh.lab.pod(f"{other}-pod-1")
    with Traffic([(one, two), (two, one), (one, beside)], rate=50) as traffic:
        time.sleep(2)
        killed = time.monotonic()
        mesh.agents.end(mesh.node(hub), signal.SIGKILL)
        wait_until(lambda: mesh.hub() == other, "the pair meets through the other hub")
        time.sleep(1)
        back = time.monotonic()
        mesh.start(hub)
        wait_until(lambda: mesh.hub() == hub, "the pair meets through its first hub again", 60)
        time.sleep(1)
    there, home, untouched = traffic.flows
    for name, flow in (("factory to ship", there), ("ship to factory", home)):
        measured(f"outage {name}, s", flow.outage(killed - 0.5, back))
        assert 0.0 < flow.outage(killed - 0.5, back) <= BAR, flow
        assert flow.lost(back) == [], f"{flow} on the way back"
    assert untouched.lost() == [], "a flow that never met the dead hub"
