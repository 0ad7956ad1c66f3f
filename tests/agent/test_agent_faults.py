"""Faults that prevent or end the run of an agent: one log line, an exit code, and no process left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from agent_hosts import dump
from agent_mesh import Mesh

from ravenvpn.errors import HostError
from ravenvpn.lab.agents import RAVEN_VPN, WORLD, wait_until
from ravenvpn.lab.host import LabNode
from ravenvpn.mesh.model import GATEWAY_LABEL as LABEL

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss", "sysctl"), pytest.mark.timeout(180)]

NODE = "harbour-1"


@contextmanager
def stopped(mesh: Mesh) -> Iterator[LabNode]:
    """A node whose agent has been stopped."""
    node = mesh.node(NODE)
    mesh.agents.end(node)
    try:
        yield node
    finally:
        mesh.start(NODE)


def agent(node: LabNode, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run an agent that is expected to exit by itself."""
    command = [*before, *RAVEN_VPN, "agent", "--node", node.name, "--log-format", "human", *arguments]
    return node.run(command, check=False, timeout=60)


def complaints(mesh: Mesh) -> str:
    """Return all reasons why the node is not healthy, or an empty text if no agent answers."""
    try:
        return " ".join(mesh.status(NODE).reasons)
    except HostError:
        return ""


def test_a_taken_http_port_ends_the_start(mesh: Mesh) -> None:
    with stopped(mesh) as node, node.socket() as _:
        holder = node.popen(
            [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "10275"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: "10275" in node.run(["ss", "-Hltn"]).stdout, "the port is taken")
        done = agent(node)
        holder.kill()
        holder.wait()
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("raven-vpn: cannot listen on 127.0.0.1, TCP port 10275: ")
    assert told.endswith(" (choose another --http-address)")


def test_a_missing_capability_ends_the_start(mesh: Mesh) -> None:
    with stopped(mesh) as node:
        done = agent(node, before=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("raven-vpn: ")
    assert "CAP_NET_ADMIN" in last


def test_a_read_only_run_directory_ends_the_start(mesh: Mesh) -> None:
    with stopped(mesh) as node:
        done = agent(node, "--run-dir", "/sys/ravenvpn")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("raven-vpn: /sys/ravenvpn/agent.sock: ")


def test_a_private_key_with_wrong_mode_ends_the_start(mesh: Mesh) -> None:
    with stopped(mesh) as node:
        key = node.path("/var/lib/ravenvpn/private.key")
        key.chmod(0o644)
        done = agent(node)
        key.chmod(0o600)
    assert done.returncode == 2
    assert "chmod" in done.stderr.splitlines()[-1]


def test_a_taken_tunnel_port_is_retried_until_it_is_free(mesh: Mesh) -> None:
    """Another program holds the port for a while. The agent reports it and recovers."""
    with stopped(mesh) as node:
        holder = node.socket()
        wait_until(lambda: ":4500" not in node.run(["ss", "-Hlun"]).stdout, "the port is free")
        holder.bind(("0.0.0.0", 4500))
    try:
        wait_until(lambda: "4500" in complaints(mesh), "it says so", 60)
        assert not mesh.status(NODE).device_up
    finally:
        holder.close()
    mesh.wait_until_healthy(NODE)
    assert "ravenvpn0" in node.ip("route show table 9127")


def test_without_nft_everything_else_works_and_the_reason_is_reported(mesh: Mesh) -> None:
    node = mesh.node(NODE)
    program = str(Path(shutil.which("nft") or "").resolve())
    with stopped(mesh):
        node.run(["nft", "delete", "table", "inet", "ravenvpn"])
        node.run(["mount", "--bind", "/dev/null", program])  # in the mount namespace of the node
    try:
        wait_until(lambda: "nft" in complaints(mesh), "it says so", 60)
        assert "ravenvpn0" in node.ip("route show table 9127")
    finally:
        node.run(["umount", program])
    mesh.wait_until_healthy(NODE)
    assert "table inet ravenvpn" in node.run(["nft", "list", "tables"]).stdout


def test_cleanup_on_exit_leaves_no_trace(mesh: Mesh) -> None:
    node = mesh.node(NODE)
    mesh.agents.end(node)
    mesh.agents.start(node, "--cleanup-on-exit")
    mesh.wait_until_healthy(NODE)
    with stopped(mesh):
        assert dump(node) == mesh.before[NODE]


def test_a_restart_without_its_source_keeps_the_unreachable_routes(mesh: Mesh) -> None:
    """The unreachable routes of the previous agent stay until a world is read."""
    node = mesh.node(NODE)
    mesh.agents.end(node)
    closed = [line for line in node.ip("route show table 9127").splitlines() if line.startswith("unreachable")]
    assert len(closed) == 3
    mesh.agents.start(node, "--source", "file:/etc/ravenvpn/nowhere")
    try:
        wait_until(lambda: "no world has been read yet" in complaints(mesh), "it says so", 60)
        time.sleep(0.5)
        kept = [line for line in node.ip("route show table 9127").splitlines() if line.startswith("unreachable")]
        assert kept == closed
    finally:
        mesh.agents.end(node)
        mesh.start(NODE)


def test_an_unexpected_exception_ends_the_agent_with_a_traceback_in_one_line_of_json(mesh: Mesh) -> None:
    """A failed task must end all others; systemd then restarts the agent."""
    defect = (
        "import sys; from ravenvpn.agent.peer_liveness import PeerLiveness;"
        "PeerLiveness.observe = lambda *_: 1 // 0;"
        "from ravenvpn.cli import main; main(sys.argv[1:])"
    )
    with stopped(mesh) as node:
        done = node.run(
            [sys.executable, "-c", defect, "agent", "--node", NODE, "--log-format", "json"], check=False, timeout=60
        )
    assert done.returncode == 1
    last = yaml.safe_load(done.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert last["message"] == (
        "this agent ends by an unexpected exception, ZeroDivisionError: integer division or modulo by zero"
    )
    assert "Traceback" in last["exception"]


def test_a_node_changes_its_role_with_the_manifests(mesh: Mesh) -> None:
    """Gateway, plain node, no region, gateway again: devices and routes of each role are added and removed."""
    node = mesh.node(NODE)
    gateway_file, node_file = f"{WORLD}/gateway-harbour.yaml", f"{WORLD}/node-{NODE}.yaml"
    gateway, itself = node.read(gateway_file), node.read(node_file)

    def is_role(role: str) -> None:
        wait_until(lambda: mesh.status(NODE).role == role, f"it is {role}", 30)

    def routes(kind: str) -> int:
        return sum(line.startswith(kind) for line in node.ip("route show table 9127").splitlines())

    plain = yaml.safe_load(gateway)
    plain["spec"]["endpoints"] = []
    node.write(gateway_file, yaml.safe_dump(plain))
    is_role("plain node")
    wait_until(lambda: "ravenvpn0" not in node.ip("-br link"), "the tunnel's device is gone")
    wait_until(lambda: routes("unreachable") == 3, "what no gateway carries is closed")

    homeless = yaml.safe_load(itself)
    del homeless["metadata"]["labels"][LABEL]
    node.write(node_file, yaml.safe_dump(homeless))
    is_role("node without region")
    wait_until(lambda: routes("unreachable") == 0, "nothing of ours is left")
    assert dump(node) == mesh.before[NODE]

    node.write(gateway_file, gateway)
    node.write(node_file, itself)
    is_role("active gateway")
    mesh.wait_until_healthy(NODE)
    assert routes("10.244") == 3
