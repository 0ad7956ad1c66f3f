"""An agent killed at any moment leaves a host that leaks nothing; the next start finds all in its place."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents, wait_until
from ravenvpn.lab.host import Node

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "tcpdump", "ping")]

DUMPS = (
    "ip -j link",
    "ip -j address",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "nft -j list ruleset",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.conf",
)
# What the kernel counts or what comes and goes by itself.
VOLATILE = {"valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"}


def dump(node: Node) -> dict[str, object]:
    """Everything of the host's network that an agent could have changed."""
    found: dict[str, object] = {}
    for command in DUMPS:
        text = node.run(command.split()).stdout
        found[command] = steady(json.loads(text or "[]")) if " -j " in f" {command} " else sorted(text.splitlines())
    return found


def steady(value: object) -> object:
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Region("cloud", pods=1), Region("factory", pods=1, nat=Nat.PORT_RESTRICTED)) as lab:
        yield lab


@pytest.fixture(scope="module")
def before(lab: Lab) -> dict[str, object]:
    return dump(lab.node("factory-1"))


@pytest.fixture(scope="module")
def agents(lab: Lab, before: dict[str, object]) -> Agents:
    agents = Agents(lab)
    agents.prepare()
    agents.start_all()
    agents.wait_until_well()
    return agents


def reaches(lab: Lab, version: int = 4) -> bool:
    pod, other = lab.pod("factory-1-pod-1"), lab.pod("cloud-1-pod-1")
    target = other.v4 if version == 4 else other.v6
    return pod.run(["ping", "-c", "1", "-W", "1", str(target)], check=False).returncode == 0


def test_nothing_leaves_in_clear_after_kill_and_traffic_is_back_within_6_s_of_a_start(
    lab: Lab, agents: Agents
) -> None:
    node, pod, other = lab.node("factory-1"), lab.pod("factory-1-pod-1"), lab.pod("cloud-1-pod-1")
    wait_until(lambda: reaches(lab) and reaches(lab, 6), "pods reach each other before the kill")
    inner = f"host {other.v4} or host {other.v6}"
    with node.capture(node.DEVICE, inner) as uplink:
        pings = [
            pod.popen(["ping", "-i", "0.01", "-q", str(target)], stdout=subprocess.PIPE)
            for target in (other.v4, other.v6)
        ]
        time.sleep(0.5)
        agents.end(node, signal.SIGKILL)
        time.sleep(1.5)
        assert not reaches(lab), "the tunnel is dead, so nothing can have answered"
        agents.start(node)
        back = wait_until(lambda: reaches(lab) and reaches(lab, 6), "traffic is back")
        for ping in pings:
            ping.send_signal(signal.SIGINT)
            ping.communicate(timeout=5)
    assert uplink.count() == 0
    assert back <= 6.0


def test_a_capture_on_the_uplink_would_see_such_a_packet(lab: Lab) -> None:
    """The positive control of the test above."""
    node = lab.node("cloud-1")
    stranger = "10.244.250.1"
    with node.capture(node.DEVICE, f"host {stranger}") as uplink:
        lab.pod("cloud-1-pod-1").run(["ping", "-c", "1", "-W", "1", stranger], check=False)
    assert uplink.count() >= 1


def test_a_second_start_duplicates_nothing(lab: Lab, agents: Agents) -> None:
    node = lab.node("factory-1")
    agents.wait_until_well([node])
    first = dump(node)
    agents.end(node, signal.SIGKILL)
    agents.start(node)
    agents.wait_until_well([node])
    second = dump(node)
    for command in ("ip -j -4 route show table all", "ip -j -6 route show table all", "ip -j rule", "ip -j -6 rule"):
        lines = Counter(json.dumps(entry, sort_keys=True) for entry in second[command])  # type: ignore[attr-defined]
        assert max(lines.values()) == 1, command
        assert len(second[command]) == len(first[command]), command  # type: ignore[arg-type]
    assert len(second["nft -j list ruleset"]) == len(first["nft -j list ruleset"])  # type: ignore[arg-type]


def test_after_cleanup_the_host_is_as_before_the_first_start(
    lab: Lab, agents: Agents, before: dict[str, object]
) -> None:
    node = lab.node("factory-1")
    agents.end(node, signal.SIGKILL)
    assert dump(node) != before, "what a killed agent leaves must show in a dump"
    agents.cli(node, "cleanup")
    assert dump(node) == before
    assert agents.cli(node, "cleanup") == "nothing of ravenvpn's was here"
    agents.start(node)
    agents.wait_until_well()
