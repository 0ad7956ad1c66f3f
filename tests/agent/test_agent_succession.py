"""The active gateway of a region fails while no controller runs: the standby takes over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from agent_mesh import Measured
from agent_traffic import Traffic

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents, wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss"), pytest.mark.timeout(240)]

BAR = 3.0  # seconds without the gateway
REKEY_SOON = 90.0  # seconds; sessions renew after 120
REGIONS = (
    Region("cloud", nodes=2),
    Region("factory", nodes=3, nat=Nat.PORT_RESTRICTED, gateways=2),
    Region("ship", nat=Nat.SYMMETRIC),
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[Lab, Agents]]:
    with Lab(*REGIONS) as lab:
        agents = Agents(lab)
        agents.prepare()
        agents.start_all()
        agents.wait_until_well(patience=60.0)
        yield lab, agents


def test_a_standby_takes_over_within_3_s_with_its_existing_sessions(
    mesh: tuple[Lab, Agents], measured: Measured
) -> None:
    """Flows from and to plain nodes, direct and through a hub. They return to the gateway when it has recovered."""
    lab, agents = mesh
    plain, far, ship = (lab.pod(f"{name}-pod-1") for name in ("factory-3", "cloud-2", "ship-1"))

    def role(name: str) -> str:
        return str(agents.status(lab.node(name))["role"])

    def handshakes() -> dict[str, float]:
        return {peer["name"]: peer["last_handshake"] for peer in agents.peers(lab.node("factory-2"))}

    assert role("factory-2") == "standby gateway"
    before = handshakes()
    ways = [(plain, far), (far, plain), (plain, ship), (ship, plain)]
    with Traffic(ways, rate=50) as traffic:
        time.sleep(2)
        killed = time.monotonic()
        agents.end(lab.node("factory-1"), signal.SIGKILL)
        wait_until(lambda: role("factory-2") == "active gateway", "the standby stands in")
        time.sleep(3)
        since = handshakes()
        back = time.monotonic()
        agents.start(lab.node("factory-1"))
        wait_until(lambda: role("factory-2") == "standby gateway", "the gateway is back", 60)
        time.sleep(1)
    for flow in traffic.flows:
        measured(f"outage {flow}, s", flow.outage(killed - 0.5, back))
        assert 0.0 < flow.outage(killed - 0.5, back) <= BAR, flow
        assert flow.lost(back) == [], f"{flow} on the way back"
    for name in ("cloud-1", "factory-3"):
        due = time.time() - before[name] > REKEY_SOON  # this session rekeys by age
        assert since[name] == before[name] or due, f"standing in needs no handshake with {name}"
