"""Notifications to systemd, and the checks of systemd-analyze on the unit."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_mesh import ROOT, Measured, Mesh

UNIT = ROOT / "systemd" / "ravenvpn.service"
NOTIFY_SOCKET = "/run/notify"
WATCHDOG = 2.0  # seconds
EXPOSURE_BAR = 30  # threshold of systemd-analyze, which is ten times the printed value


class Systemd:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.heard: list[tuple[float, str]] = []  # (monotonic, one assignment)

    def listen_until(self, assignment: str, patience: float) -> float:
        """Receive notifications until this assignment arrives. Return its time.

        Raises AssertionError if it does not arrive in time.
        """
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                break
            now = time.monotonic()
            self.heard += [(now, line) for line in message.splitlines()]
            if any(line.startswith(assignment) for line in message.splitlines()):
                return now
        raise AssertionError(f"{assignment} was not said within {patience} s, but {[what for _, what in self.heard]}")

    def said(self, assignment: str) -> list[float]:
        return [at for at, what in self.heard if what.startswith(assignment)]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(mesh: Mesh) -> Iterator[Systemd]:
    path = mesh.node("harbour-1").path(NOTIFY_SOCKET)  # each node has its own /run
    listener = Systemd(path)
    yield listener
    listener.close()
    path.unlink()


@pytest.mark.root
@pytest.mark.needs("ip", "nft", "nsenter", "ss")
@pytest.mark.timeout(180)
def test_notifications_to_systemd_from_start_to_stop(mesh: Mesh, systemd: Systemd, measured: Measured) -> None:
    node = mesh.node("harbour-1")
    mesh.agents.end(node)
    variables = {"NOTIFY_SOCKET": NOTIFY_SOCKET, "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
    process = mesh.agents.start(node, env=variables)

    ready = systemd.listen_until("READY=1", 60)
    # READY=1 is not sent before the first world is in force, so the routes exist.
    assert "ravenvpn0" in node.ip("route show table 9127")
    assert len(systemd.said("READY=1")) == 1
    systemd.listen_until("STATUS=active gateway, ", 10)

    systemd.listen_until("WATCHDOG=1", WATCHDOG)
    for _ in range(4):
        systemd.listen_until("WATCHDOG=1", WATCHDOG)
    beats = systemd.said("WATCHDOG=1")
    measured("longest silence with a watchdog of 2 s", max(b - a for a, b in itertools.pairwise(beats)))

    process.send_signal(signal.SIGHUP)
    reloading = systemd.listen_until("RELOADING=1", 5)
    again = systemd.listen_until("READY=1", 10)
    assert ready < reloading <= again
    assert any(what.startswith("MONOTONIC_USEC=") for _, what in systemd.heard)

    process.send_signal(signal.SIGTERM)
    systemd.listen_until("STOPPING=1", 5)
    assert process.wait(timeout=10) == 0
    mesh.start("harbour-1")


@pytest.mark.root
@pytest.mark.needs("ip", "nft", "nsenter", "ss")
@pytest.mark.timeout(120)
def test_an_agent_without_a_world_is_not_ready(mesh: Mesh, systemd: Systemd) -> None:
    node = mesh.node("harbour-1")
    mesh.agents.end(node)
    variables = {"NOTIFY_SOCKET": NOTIFY_SOCKET, "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
    process = mesh.agents.start(node, "--source", "file:/etc/ravenvpn/nowhere", env=variables)
    try:
        for _ in range(3):
            systemd.listen_until("WATCHDOG=1", 60)
        assert systemd.said("READY=1") == [], "nothing is in force yet, and systemd must not be told so"
        assert any("no world has been read yet" in what for _, what in systemd.heard)
    finally:
        process.terminate()
        process.wait(timeout=10)
        mesh.start("harbour-1")


def installed(tmp_path: Path) -> Path:
    """Return the unit as `make install` writes it, with a program that exists."""
    folder = tmp_path / "units"
    folder.mkdir()
    text = UNIT.read_text()
    program = next(line for line in text.splitlines() if line.startswith("ExecStart=")).split("=", 1)[1].split()[0]
    unit = folder / UNIT.name
    unit.write_text(text.replace(program, shutil.which("true") or sys.executable))
    return unit


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed(tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_hardened(tmp_path: Path, measured: Measured) -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_BAR}"]
    done = subprocess.run(
        [*command, str(installed(tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SYSTEMD_COLORS": "0"},
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, last
    measured("exposure level", float(last.split(": ")[1].split()[0]))
