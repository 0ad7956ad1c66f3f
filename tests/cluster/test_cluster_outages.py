"""Outages of the API server: traffic over established paths is not affected."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cluster_field as field
import pytest
from agent.agent_mesh import Measured
from cluster_api import until_answered
from cluster_mesh import GATEWAYS, Mesh
from cluster_pings import Pings

from ravenvpn.backoff import LIMIT
from ravenvpn.lab.agents import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "iptables", "openssl", "curl", "ping"),
    pytest.mark.timeout(300),
]

AWAY = 3.0  # seconds


def killed(mesh: Mesh) -> None:
    mesh.cluster.plane.kill()
    time.sleep(AWAY)
    mesh.cluster.plane.start()


def killed_and_history_forgotten(mesh: Mesh) -> None:
    """The resourceVersions of the agents are compacted during the outage."""
    path = "/api/v1/namespaces/default/configmaps"
    for number in range(20):
        mesh.cluster.api.create(path, {"metadata": {"generateName": f"history-{number}-"}})
    mesh.cluster.plane.kill()
    mesh.cluster.plane.compact()
    time.sleep(AWAY)
    mesh.cluster.plane.start()


def back_with_another_certificate(mesh: Mesh) -> None:
    mesh.cluster.plane.forget_serving_certificate()
    mesh.cluster.plane.kill()
    mesh.cluster.plane.start()


def all_of_it_killed(mesh: Mesh) -> None:
    mesh.cluster.plane.kill()
    mesh.cluster.plane.kill("etcd")
    time.sleep(AWAY)
    mesh.cluster.plane.start()


def hung(mesh: Mesh) -> None:
    with mesh.cluster.plane.hung():
        time.sleep(2 * AWAY)


def everything_at_once(mesh: Mesh) -> None:
    """Restart with another certificate and without history: all outages in one."""
    mesh.cluster.plane.forget_serving_certificate()
    killed_and_history_forgotten(mesh)


@pytest.mark.parametrize(
    "outage",
    [
        everything_at_once,
        hung,
        pytest.param(killed, marks=pytest.mark.soak),
        pytest.param(killed_and_history_forgotten, marks=pytest.mark.soak),
        pytest.param(back_with_another_certificate, marks=pytest.mark.soak),
        pytest.param(all_of_it_killed, marks=pytest.mark.soak),
    ],
)
def test_traffic_is_not_affected_and_agents_watch_again(
    mesh: Mesh, measured: Measured, outage: Callable[[Mesh], None], tmp_path: Path
) -> None:
    pod = {node.name: node.pods[0] for node in mesh.lab.nodes}
    pairs = [
        (pod["cloud-2"], pod["factory-3"]),
        (pod["factory-3"], pod["ship-2"]),  # over a hub
        (pod["ship-3"], pod["cloud-1"]),
    ]
    added = field.more_prefix(1)
    notes = "raven.openyurt.io/extra-allowed-source-cidrs"
    with Pings(pairs, tmp_path) as pings:
        time.sleep(1)
        outage(mesh)
        begin = time.monotonic()
        change = {"metadata": {"annotations": {notes: added}}}
        until_answered(lambda: mesh.cluster.api.merge(f"{GATEWAYS}/ship", change))
        for node in mesh.lab.nodes:
            if node.region.name != "ship":
                wait_until(
                    lambda node=node: added in node.ip("route show table 9127"), f"{node.name} heard", LIMIT + 5
                )
        measured(f"{outage.__name__}: API back to change heard by all, s", time.monotonic() - begin)
        mesh.cluster.api.merge(f"{GATEWAYS}/ship", {"metadata": {"annotations": {notes: None}}})
    measured(f"{outage.__name__}: pings", sum(pings.sent.values()))
    assert min(pings.sent.values()) > 1000
    assert set(pings.lost.values()) == {0}, pings.lost
