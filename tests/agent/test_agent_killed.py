"""A killed agent leaves a host that leaks no packet, and its next start changes nothing that is in place."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter

import pytest
from agent_hosts import dump
from agent_mesh import Measured, Mesh

from ravenvpn.lab.agents import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "tcpdump", "ping"),
    pytest.mark.timeout(180),
]

NODE = "factory-1"


def reaches(mesh: Mesh, version: int = 4) -> bool:
    lab = mesh.lab
    pod, other = lab.pod("factory-1-pod-1"), lab.pod("cloud-1-pod-1")
    target = other.v4 if version == 4 else other.v6
    return pod.run(["ping", "-c", "1", "-W", "1", str(target)], check=False).returncode == 0


def test_nothing_leaves_unencrypted_after_kill_and_traffic_is_back_within_6_s_of_a_start(
    mesh: Mesh, measured: Measured
) -> None:
    lab, agents = mesh.lab, mesh.agents
    node, pod, other = lab.node(NODE), lab.pod("factory-1-pod-1"), lab.pod("cloud-1-pod-1")
    wait_until(lambda: reaches(mesh) and reaches(mesh, 6), "pods reach each other before the kill")
    inner = f"host {other.v4} or host {other.v6}"
    with node.capture(node.DEVICE, inner) as uplink:
        pings = [
            pod.popen(["ping", "-i", "0.01", "-q", str(target)], stdout=subprocess.PIPE)
            for target in (other.v4, other.v6)
        ]
        time.sleep(0.5)
        agents.end(node, signal.SIGKILL)
        time.sleep(1.5)
        assert not reaches(mesh), "the tunnel is dead, so nothing can have answered"
        agents.start(node)
        back = wait_until(lambda: reaches(mesh) and reaches(mesh, 6), "traffic is back")
        for ping in pings:
            ping.send_signal(signal.SIGINT)
            ping.communicate(timeout=5)
    measured("traffic is back after s", back)
    assert uplink.count() == 0
    assert back <= 6.0


def test_a_capture_on_the_uplink_would_see_such_a_packet(mesh: Mesh) -> None:
    """The positive control of the test above."""
    lab = mesh.lab
    node = lab.node("cloud-1")
    stranger = "10.244.250.1"
    with node.capture(node.DEVICE, f"host {stranger}") as uplink:
        lab.pod("cloud-1-pod-1").run(["ping", "-c", "1", "-W", "1", stranger], check=False)
    assert uplink.count() >= 1


def test_a_second_start_adds_nothing_to_the_host(mesh: Mesh) -> None:
    node, agents = mesh.node(NODE), mesh.agents
    first = dump(node)
    agents.end(node, signal.SIGKILL)
    agents.start(node)
    mesh.wait_until_healthy(NODE)
    second = dump(node)
    for command in ("ip -j -4 route show table all", "ip -j -6 route show table all", "ip -j rule", "ip -j -6 rule"):
        lines = Counter(json.dumps(entry, sort_keys=True) for entry in second[command])  # type: ignore[attr-defined]
        assert max(lines.values()) == 1, command
        assert len(second[command]) == len(first[command]), command  # type: ignore[arg-type]
    assert len(second["nft -j list ruleset"]) == len(first["nft -j list ruleset"])  # type: ignore[arg-type]


def test_after_cleanup_the_host_is_as_before_the_first_start(mesh: Mesh) -> None:
    node, agents, before = mesh.node(NODE), mesh.agents, mesh.before[NODE]
    agents.end(node, signal.SIGKILL)
    assert dump(node) != before, "what a killed agent leaves must show in a dump"
    agents.cli(node, "cleanup")
    assert dump(node) == before
    assert agents.cli(node, "cleanup") == "nothing of ravenvpn is on this host"
    agents.start(node)
