"""A reload reads the configuration again: settings change under traffic, or are reported as waiting for a restart."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_mesh import Mesh
from agent_traffic import Traffic
from lab.lab_mesh import SOCKET

from ravenvpn.agent.reports import ReloadReport
from ravenvpn.cli.client import ask
from ravenvpn.config import CONFIG_FILE, RELOAD, SETTINGS
from ravenvpn.errors import RavenError
from ravenvpn.lab.agents import WORLD, wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss"), pytest.mark.timeout(400)]

ENDS = ("cloud-1", "harbour-1")  # both public: behind a NAT the outer port would be the NAT's
KEY_FILE = "/etc/ravenvpn/preshared.key"
OTHER_KEY_FILE = "/etc/ravenvpn/other.key"
RATE = 1000.0  # packets a second and direction
PAUSE = 0.5  # seconds of traffic after each change
REKEY = 140.0  # seconds until sessions are renewed: rekey-after-time is 120 s, an attempt is repeated every 5 s


@pytest.fixture
def ends(mesh: Mesh) -> Iterator[Mesh]:
    """The mesh without ports in the two regions' Gateways, since they take precedence over the setting."""
    gateways = [mesh.node(end).path(f"{WORLD}/gateway-{name.split('-')[0]}.yaml") for end in ENDS for name in ENDS]
    before = {path: path.read_text() for path in gateways}
    for path, text in before.items():
        path.write_text(text.replace("port: 4500", "port: 0"))
    yield mesh
    for path, text in before.items():
        path.write_text(text)
    for end in ENDS:
        mesh.agents.end(mesh.node(end))
        configure(mesh, end)
        mesh.start(end)
    mesh.wait_until_healthy()


def restart(mesh: Mesh, body: str) -> None:
    """Restart both agents with this data plane and a raised priority.

    An agent without CPU time for 0.3 s loses packets.
    """
    for end in ENDS:
        mesh.agents.end(mesh.node(end))
        mesh.start(end, "--dataplane", body)
    mesh.wait_until_healthy(*ENDS)
    for end in ENDS:
        for task in Path(f"/proc/{mesh.agents.process(mesh.node(end)).pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), -15)


def configure(mesh: Mesh, end: str, **settings: Any) -> None:
    """Write the configuration of this folder's tests plus these settings."""
    mesh.node(end).write(CONFIG_FILE, yaml.safe_dump({"preshared_key_file": KEY_FILE, **settings}))


def reload(mesh: Mesh, end: str) -> ReloadReport:
    """Reload through the control API and return its answer."""
    report = ask(mesh.node(end).path(SOCKET), "/v1/reload", ReloadReport, method="POST", timeout=20.0)
    assert isinstance(report, ReloadReport)
    return report


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("body", ["auto", "pure"])
def test_every_setting_changes_under_traffic_without_a_lost_packet(ends: Mesh, body: str) -> None:
    """Each setting changes at either end. At the end new sessions start with the new settings."""
    restart(ends, body)
    other_key = base64.b64encode(secrets.token_bytes(32)).decode()
    changes: dict[str, Any] = {
        "log_level": "debug",
        "log_format": "json",
        "probe_interval": 0.5,
        "probe_interval_idle": 1.5,
        "cleanup_on_exit": True,
        "addresses": "192.0.2.77",
        "forward_node_ip": True,
        "without": "udp_gso,udp_gro,tun_tso,tun_uso,tun_gro",
        "aes": False,
        "preshared_key_file": OTHER_KEY_FILE,
        "listen_port": 4600,
    }
    assert changes.keys() == {name for name, setting in SETTINGS.items() if setting.metadata["applies"] == RELOAD}
    there, back = (ends.node(end).pods[0] for end in ENDS)
    for end in ENDS:
        ends.node(end).write(OTHER_KEY_FILE, f"{ends.preshared_key}\n", mode=0o600)
    # Traffic in one direction establishes the session, so that one end is its initiator. If both ends were, both
    # would rekey at the same time, and two new sessions displace the one in use (a peer has three keypairs: previous,
    # current, next).
    with Traffic([(there, back)], rate=10.0):
        wait_until(lambda: all(handshake(ends, end) for end in ENDS), "a session is up", 20)
    made: dict[str, Any] = {}
    phases = [(0.0, "begin")]
    with Traffic([(there, back), (back, there)], rate=RATE) as traffic:
        time.sleep(PAUSE)
        for name, value in changes.items():
            made[name] = value
            for end in ENDS:
                phases.append((time.monotonic(), f"{name} at {end}"))
                configure(ends, end, **made)
                assert reload(ends, end).changed == (name,)
                time.sleep(PAUSE)
        for end in ENDS:  # the same file with another key in it
            phases.append((time.monotonic(), f"another preshared key at {end}"))
            ends.node(end).write(OTHER_KEY_FILE, f"{other_key}\n", mode=0o600)
            assert reload(ends, end).changed == ("preshared_key_file",)
            time.sleep(PAUSE)
        phases.append((time.monotonic(), "new sessions"))
        changed = time.time()
        wait_until(lambda: all(handshake(ends, end) > changed for end in ENDS), "sessions are new", REKEY)
        time.sleep(PAUSE)
    lost = [
        f"{flow}: {at - began:.3f} s after {phase}"
        for flow in traffic.flows
        for at in flow.lost()
        for began, phase in [max(one for one in phases if one[0] <= at)]
    ]
    assert lost == []
    for end in ENDS:
        status = ends.status(end)
        assert status.listen_port == 4600
        assert not {"udp_gso", "udp_gro", "tun_tso", "tun_uso", "tun_gro"} & set(status.data_plane.offloads)
        assert session(ends, end)["suite"] == "chacha20poly1305"


def session(mesh: Mesh, end: str) -> dict[str, Any]:
    """Return the report of the peer at the other end."""
    other = next(name for name in ENDS if name != end)
    return next(peer for peer in mesh.agents.peers(mesh.node(end)) if peer["name"] == other)


def handshake(mesh: Mesh, end: str) -> float:
    return float(session(mesh, end)["last_handshake"] or 0.0)


def test_a_setting_that_needs_a_restart_is_named(mesh: Mesh) -> None:
    """The answer and the log name it.

    The status names it until the agent is restarted or the file is as before.
    """
    configure(mesh, "harbour-1", dataplane="pure", log_level="debug")
    answer = reload(mesh, "harbour-1")
    assert (answer.changed, answer.restart) == (("log_level",), ("dataplane",))
    assert "systemctl restart ravenvpn" in answer.remedy
    assert "setting dataplane changed, but takes effect at a restart" in mesh.agents.log(mesh.node("harbour-1"), 20)
    assert "settings that wait for a restart: dataplane" in mesh.status("harbour-1").notes
    configure(mesh, "harbour-1")
    assert reload(mesh, "harbour-1").restart == ()
    assert not [note for note in mesh.status("harbour-1").notes if "restart" in note]


def test_a_configuration_that_does_not_parse_changes_nothing(mesh: Mesh) -> None:
    """The problem is reported with file, key and remedy, and the agent continues."""
    node = mesh.node("harbour-1")
    node.write(CONFIG_FILE, f"preshared_key_file: {KEY_FILE}\nlog_level: debug\nlisten_prot: 4600\n")
    complaint = f"{CONFIG_FILE}: listen_prot: unknown key (did you mean listen_port?)"
    with pytest.raises(RavenError, match="unknown key") as refused:
        reload(mesh, "harbour-1")
    assert str(refused.value) == complaint
    mesh.agents.process(node).send_signal(signal.SIGHUP)
    wait_until(lambda: f"reload: {complaint}" in mesh.agents.log(node, 10), "the log has it", 20)
    status = mesh.status("harbour-1")
    assert not status.healthy
    assert complaint in status.reasons[0]
    configure(mesh, "harbour-1")
    assert reload(mesh, "harbour-1").changed == ()
    assert mesh.status("harbour-1").healthy


def test_flags_and_variables_keep_precedence_over_the_file(mesh: Mesh) -> None:
    node = mesh.node("harbour-1")
    mesh.agents.end(node)
    mesh.agents.start(node, "--log-level", "warning", env={"RAVENVPN_PROBE_INTERVAL": "3"})
    mesh.wait_until_healthy("harbour-1")
    try:
        configure(mesh, "harbour-1", log_level="debug", probe_interval=0.5, probe_interval_idle=1.0)
        assert reload(mesh, "harbour-1").changed == ("probe_interval_idle",)
    finally:
        configure(mesh, "harbour-1")
        mesh.agents.end(node)
        mesh.start("harbour-1")
