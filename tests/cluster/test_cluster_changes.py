"""Time from a write to the API until the kernels of all nodes have the change."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import cluster_field as field
import pytest
from agent.agent_mesh import Measured
from agent.agent_routes import RouteWatch, percentile
from cluster_mesh import CONTROLLER_NODES, GATEWAYS, Mesh, cluster_mesh
from cluster_pairs import Pairs

from ravenvpn.lab import Nat, Region
from ravenvpn.lab.agents import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]

BAR = 0.1  # seconds, 99th percentile, with ten Gateways
PAUSE = 0.1  # seconds before the next change, in which agents finish the work of the last one
ROUNDS = 5  # attempts, since the machine may be busy
CHANGES = 100  # per round, so that the 99th percentile is not the maximum


@pytest.fixture
def ten(mesh: Mesh) -> Iterator[Mesh]:
    """A mesh with ten Gateways, seven of which exist as objects only."""
    numbers = range(1, 8)
    field.sow(mesh, numbers)
    try:
        wait_until_routed(mesh, [field.prefix(number) for number in numbers])
        yield mesh
    finally:
        field.reap(mesh.cluster.api, numbers)


def wait_until_routed(mesh: Mesh, prefixes: list[str]) -> None:
    """Wait until every node of the lab has routes to these prefixes."""
    for node in mesh.lab.nodes:
        wait_until(
            lambda node=node: all(prefix in node.ip("route show table 9127") for prefix in prefixes),
            f"{node.name} has routes to {prefixes[0]} and {len(prefixes) - 1} more",
            60,
        )


def delays(mesh: Mesh, change: Callable[[int], tuple[str, bool]], count: int) -> list[float]:
    """Return for each change the seconds until the slowest node's kernel has it.

    `change` makes the nth change and returns the prefix and whether it is added.
    """
    taken = []
    with RouteWatch(mesh.lab.nodes) as watch:
        for number in range(count):
            begin = time.monotonic()
            prefix, there = change(number)
            taken.append(max(watch.wait(node.name, prefix, there, begin) for node in mesh.lab.nodes))
            time.sleep(PAUSE)
    return taken


def judged(measure: Callable[[], list[float]], measured: Measured, what: str, bar: float) -> None:
    worst = []
    for _ in range(ROUNDS):
        taken = measure()
        worst.append(percentile(taken, 0.99))
        measured(f"{what}, median, s", statistics.median(taken))
        measured(f"{what}, 99 in 100, s", worst[-1])
        if worst[-1] <= bar:
            return
    raise AssertionError(f"{what}: {min(worst):.3f} s at best, and {bar:g} s are allowed")


@pytest.mark.soak  # 88 to 150 ms with nine agents and the API server on two cores: too close to the limit
def test_a_status_written_is_in_all_kernels_within_a_tenth_of_a_second(ten: Mesh, measured: Measured) -> None:
    """The test writes the status itself, so only the time of the agents counts."""
    for name in CONTROLLER_NODES:
        ten.end_controller(name)
    region = field.name(5)
    status = ten.gateway(region)["status"]
    own = status["nodes"][0]["subnets"]

    def change(number: int) -> tuple[str, bool]:
        added = field.more_prefix(5)
        status["nodes"][0]["subnets"] = own if number % 2 else [*own, added]
        ten.cluster.api.merge(f"{GATEWAYS}/{region}/status", {"status": {"nodes": status["nodes"]}})
        return added, not number % 2

    try:
        judged(lambda: delays(ten, change, CHANGES), measured, "status to kernel", BAR)
    finally:
        for name in CONTROLLER_NODES:
            ten.start_controller(name)


@pytest.mark.soak  # two cores are not always enough for nine agents, two controllers and the API server
def test_a_gateway_changed_is_in_all_kernels_within_a_tenth_of_a_second(ten: Mesh, measured: Measured) -> None:
    by_the_controller(ten, measured)


def test_a_gateway_changed_is_in_three_kernels_within_a_tenth_of_a_second(measured: Measured) -> None:
    regions = (
        Region("cloud"),
        Region("factory", nat=Nat.PORT_RESTRICTED),
        Region("ship", nat=Nat.SYMMETRIC),
    )
    numbers = range(1, 8)
    with cluster_mesh(*regions, controllers=("cloud-1",)) as mesh:
        mesh.apply_gateways()
        with Pairs(mesh.lab.pods) as pairs:
            pairs.until_complete(60)
        field.sow(mesh, numbers)
        wait_until_routed(mesh, [field.prefix(number) for number in numbers])
        by_the_controller(mesh, measured)


def by_the_controller(mesh: Mesh, measured: Measured) -> None:
    """Measure changes of a Gateway whose status the controller writes."""
    region = field.name(6)

    def change(number: int) -> tuple[str, bool]:
        added = field.more_prefix(6)
        cidrs = None if number % 2 else added
        notes = {"raven.openyurt.io/extra-allowed-source-cidrs": cidrs}
        mesh.cluster.api.merge(f"{GATEWAYS}/{region}", {"metadata": {"annotations": notes}})
        return added, not number % 2

    change(0)
    wait_until_routed(mesh, [field.more_prefix(6)])  # true once a controller leads
    change(1)
    time.sleep(1)
    judged(lambda: delays(mesh, change, CHANGES), measured, "Gateway by the controller to kernel", BAR)
