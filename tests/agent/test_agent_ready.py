"""/readyz reports a broken data path within 5 s, /livez a blocked loop; both recover with the cause."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from agent_hosts import get
from agent_mesh import Measured, Mesh

from ravenvpn.lab.agents import WORLD, wait_until
from ravenvpn.lab.host import LabNode

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss"), pytest.mark.timeout(180)]

BAR = 5.0  # seconds
# Repeats a command that undoes the agent's work, as a conflicting program would.
FOREVER = "while :; do {}; sleep 0.05; done"


def ready(node: LabNode) -> bool:
    return get(node, "/readyz") == (200, "ok\n")


@contextmanager
def unready(mesh: Mesh, name: str, why: str, measured: Measured) -> Iterator[Callable[[], None]]:
    """Expect that /readyz reports `why` within BAR seconds, and that the node is ready again after the block.

    The block causes the fault. The yielded function waits for the report.
    """
    node = mesh.node(name)
    assert ready(node)

    def shows() -> None:
        begin = time.monotonic()
        said = ""

        def told() -> bool:
            nonlocal said
            code, said = get(node, "/readyz")
            return code != 200 and why in said

        try:
            wait_until(told, f"{name} is not ready: {why}", BAR)
        except Exception as error:
            raise AssertionError(f"it said {said!r}") from error
        measured(f"not ready, {why!r}, after s", time.monotonic() - begin)

    yield shows
    measured("ready again after s", wait_until(lambda: ready(node), f"{name} is ready again", 30))


def test_a_tun_that_is_kept_down(mesh: Mesh, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    with unready(mesh, "harbour-1", "device is missing or down", measured) as shows:
        vandal = node.popen(["sh", "-c", FOREVER.format("ip link set ravenvpn0 down")])
        shows()
        assert get(node, "/livez") == (200, "ok\n")
        vandal.kill()
        vandal.wait()


def test_a_tun_that_was_set_down_once_is_set_up_again_with_a_log_line(mesh: Mesh) -> None:
    node = mesh.node("harbour-1")
    node.ip("link set ravenvpn0 down")
    wait_until(lambda: "restored what was changed" in mesh.agents.log(node, 5), "the log says so")
    wait_until(lambda: ready(node), "it is ready again")


def test_a_deleted_tun_is_replaced(mesh: Mesh) -> None:
    node = mesh.node("harbour-1")
    node.ip("link delete ravenvpn0")
    wait_until(lambda: "device ravenvpn0 was deleted" in mesh.agents.log(node, 12), "the log says so")
    wait_until(lambda: ready(node), "it is ready again")
    mesh.wait_until_healthy("harbour-1")
    assert "ravenvpn0" in node.ip("route show table 9127")


def test_routes_that_keep_being_deleted(mesh: Mesh, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    with unready(mesh, "harbour-1", "are missing on this host", measured) as shows:
        vandal = node.popen(["sh", "-c", FOREVER.format("ip route flush table 9127")])
        shows()
        vandal.kill()
        vandal.wait()
    assert "ravenvpn0" in node.ip("route show table 9127")


def test_all_hubs_out_of_reach(mesh: Mesh, measured: Measured) -> None:
    with unready(mesh, "factory-1", "no other region can be reached", measured) as shows:
        mesh.lab.set_loss("factory", 1.0)
        shows()
        mesh.lab.set_loss("factory", 0.0)


def test_a_source_that_is_gone(mesh: Mesh, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    world = node.path(WORLD)
    with unready(mesh, "harbour-1", "the source cannot be read", measured) as shows:
        world.rename(world.with_name("elsewhere"))
        shows()
        world.with_name("elsewhere").rename(world)


def test_a_source_that_is_no_directory(mesh: Mesh, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    world = node.path(WORLD)
    with unready(mesh, "harbour-1", "the source cannot be read", measured) as shows:
        world.rename(world.with_name("elsewhere"))
        world.write_text("kind: Gateway\n")
        shows()
        world.unlink()
        world.with_name("elsewhere").rename(world)


def test_a_blocked_loop_answers_no_probe_and_is_reported_afterwards(mesh: Mesh, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    with unready(mesh, "harbour-1", "the event loop was blocked", measured) as shows:
        mesh.agents.process(node).send_signal(signal.SIGSTOP)
        try:
            assert get(node, "/livez")[0] == 0
            assert get(node, "/readyz")[0] == 0
        finally:
            mesh.agents.process(node).send_signal(signal.SIGCONT)
        assert get(node, "/livez", 5.0) == (200, "ok\n")
        shows()
