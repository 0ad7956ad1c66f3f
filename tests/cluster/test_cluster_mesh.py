"""Three regions of three nodes in a real cluster: after three Gateways are applied, every pod reaches every pod."""

from __future__ import annotations

import time

import pytest
from agent.agent_mesh import Measured
from agent.agent_routes import RouteWatch
from cluster_mesh import GATEWAYS, Mesh
from cluster_pairs import Pairs
from control_plane import DEFAULT, OLDEST

from ravenvpn.lab.agents import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl"),
    pytest.mark.timeout(300),
]


BAR = 10.0  # seconds from `kubectl apply` to the last pair
CHANCES = 3  # attempts, since the machine may be busy
ON_BOTH = pytest.mark.parametrize("mesh", [(DEFAULT, "nftables"), (OLDEST, "iptables")], indirect=True, ids="-".join)


@ON_BOTH
def test_three_gateways_applied_and_all_pairs_meet_within_ten_seconds(mesh: Mesh, measured: Measured) -> None:
    apart = 2 * 3 * 3 * 6  # pairs of pods of different regions, one after the other
    taken: list[float] = []
    with Pairs(mesh.lab.pods) as pairs:
        while len(taken) < CHANCES and min(taken, default=BAR + 1) > BAR:
            for thing in mesh.cluster.gateways():
                mesh.cluster.api.delete(f"{GATEWAYS}/{thing['metadata']['name']}")
            wait_until(lambda: len(pairs.missing()) == apart, "no pod reaches one of another region", 20)
            begin = time.monotonic()
            mesh.apply_gateways()
            taken.append(pairs.until_complete(60, since=begin))
            measured("kubectl apply to all pairs, s", taken[-1])
    assert min(taken) <= BAR


@ON_BOTH
def test_kubectl_shows_who_is_active_how_many_nodes_and_that_all_is_healthy(mesh: Mesh) -> None:
    wait_until(lambda: all("True" in line for line in rows(mesh)[1:]), "all Gateways are Ready")
    heading, *lines = (line.split() for line in rows(mesh))
    assert heading == ["NAME", "ACTIVE", "NODES", "READY", "AGE"]
    assert [line[:4] for line in lines] == [
        ["cloud", "cloud-1", "3", "True"],
        ["factory", "factory-1", "3", "True"],
        ["ship", "ship-1", "3", "True"],
    ]


def rows(mesh: Mesh) -> list[str]:
    return mesh.cluster.plane.kubectl("get", "gw").splitlines()


@ON_BOTH
def test_a_deleted_gateway_takes_its_routes_along_within_a_second(mesh: Mesh, measured: Measured) -> None:
    others = [node for node in mesh.lab.nodes if node.region.name != "ship"]
    prefixes = [str(node.pod_cidrs.v4) for node in mesh.lab.nodes if node.region.name == "ship"]
    gateway = next(thing for thing in mesh.cluster.gateways() if thing["metadata"]["name"] == "ship")
    with RouteWatch(others) as watch, Pairs(mesh.lab.pods) as pairs:
        begin = time.monotonic()
        mesh.cluster.api.delete(f"{GATEWAYS}/ship")
        took = max(watch.wait(node.name, prefix, False, begin) for node in others for prefix in prefixes)
        measured("Gateway deleted to routes gone on all, s", took)
        assert took <= 1
        missing = {(p.sender.split("-")[0], p.receiver.split("-")[0]) for p in pairs.missing()}
        assert missing == {("ship", "cloud"), ("cloud", "ship"), ("ship", "factory"), ("factory", "ship")}
        mesh.cluster.apply(gateway)
        pairs.until_complete(20)


@ON_BOTH
def test_a_gateway_that_loses_its_node_elects_the_standby(mesh: Mesh, measured: Measured) -> None:
    """Node not Ready: the controller elects the standby and the agents follow.

    Five seconds later all pods except those of the failed node reach each other.
    """
    factory = [pod for pod in mesh.lab.pods if pod.node.name in ("factory-2", "factory-3")]
    cloud = [pod for pod in mesh.lab.pods if pod.node.region.name == "cloud"]
    with Pairs([*factory, *cloud], across=True) as pairs:
        pairs.until_complete(20)
        begin = time.monotonic()
        mesh.cluster.set_ready("factory-1", False)
        wait_until(lambda: mesh.active("factory") == ["factory-2"], "factory-2 is elected")
        measured("not Ready to elected, s", time.monotonic() - begin)
        wait_until(lambda: mesh.status(mesh.node("factory-2")).role == "active gateway", "factory-2 has heard it")
        pairs.until_complete(5)
    mesh.cluster.set_ready("factory-1", True)
    time.sleep(0.5)
    assert mesh.active("factory") == ["factory-2"], "who is active stays so"
