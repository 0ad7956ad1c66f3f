# ruff: noqa: ASYNC240
"""The control socket: permissions, malformed requests, and the CLI's exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_reports import FakeAgent, peer, status

from ravenvpn.control import ControlSocket
from ravenvpn.errors import HostError

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent(peers=(peer("cloud-1"), peer("harbour-1")))


@pytest.fixture
async def control(agent: FakeAgent, path: Path) -> AsyncIterator[ControlSocket]:
    control = ControlSocket(agent, path)
    await control.start()
    yield control
    await control.stop()


async def ask(path: Path, request: str) -> tuple[int, object]:
    """Return status and JSON of one raw request."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"{request} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.usefixtures("control")
async def test_status_peers_and_plan_can_be_read(path: Path) -> None:
    code, report = await ask(path, "GET /v1/status")
    assert (code, report["node"]) == (200, "edge-1")  # type: ignore[index]
    code, peers = await ask(path, "GET /v1/peers")
    assert (code, [one["name"] for one in peers]) == (200, ["cloud-1", "harbour-1"])  # type: ignore[attr-defined]
    assert await ask(path, "GET /v1/peers/cloud-1") == (200, {**peers[0]})  # type: ignore[index]
    assert (await ask(path, "GET /v1/plan"))[1] == [
        {"what": "route 10.0.0.0/8", "why": "because", "code": "remote-prefix", "change": ""}
    ]
    assert (await ask(path, "GET /v1/plan?diff=1"))[1] == [
        {"what": "route 10.0.0.0/8", "why": "because", "code": "remote-prefix", "change": "+"}
    ]


@pytest.mark.usefixtures("control")
async def test_an_unknown_resource_is_an_error_in_json(path: Path) -> None:
    assert await ask(path, "GET /v1/peers/atlantis") == (404, {"error": "no peer named 'atlantis'"})
    assert await ask(path, "GET /v2/status") == (404, {"error": "GET /v2/status: Not Found"})
    assert await ask(path, "DELETE /v1/status") == (405, {"error": "DELETE /v1/status: Method Not Allowed"})


@pytest.mark.usefixtures("control")
async def test_the_socket_is_accessible_to_owner_and_group_only(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o007 == 0


@pytest.mark.usefixtures("control")
async def test_the_owner_may_reload(path: Path, agent: FakeAgent) -> None:
    answer = {"reloaded": True, "changed": ["log_level"], "restart": ["node"], "remedy": "restart"}
    assert await ask(path, "POST /v1/reload") == (200, answer)
    assert agent.reloads == 1


@pytest.mark.root
@pytest.mark.needs("curl")
@pytest.mark.usefixtures("control")
async def test_other_users_may_read_but_not_change_anything(path: Path, agent: FakeAgent) -> None:
    """The caller is identified by SO_PEERCRED, independent of the headers."""
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent, path.parent.parent.parent.parent):
        folder.chmod(0o755)
    path.chmod(0o666)

    def as_nobody(*request: str) -> str:
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--include", "--unix-socket", str(path), *request],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return done.stdout + done.stderr

    assert " 200 " in await asyncio.to_thread(as_nobody, "http://agent/v1/status")
    refused = await asyncio.to_thread(as_nobody, "-XPOST", "-HX-Remote-User: root", "http://root/v1/reload")
    assert " 403 " in refused
    assert "only root may change something" in refused
    assert agent.reloads == 0


async def test_a_socket_of_a_dead_agent_is_replaced(agent: FakeAgent, path: Path) -> None:
    path.parent.mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    control = ControlSocket(agent, path)
    await control.start()
    assert (await ask(path, "GET /v1/status"))[0] == 200
    await control.stop()
    assert not path.exists()


async def test_a_second_agent_is_refused_and_the_first_keeps_running(
    agent: FakeAgent, control: ControlSocket, path: Path
) -> None:
    assert control is not None
    with pytest.raises(HostError, match="another agent is listening"):
        await ControlSocket(agent, path).start()
    assert (await ask(path, "GET /v1/status"))[0] == 200


async def test_a_file_in_place_of_the_socket_is_left_alone(agent: FakeAgent, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("somebody's file")
    with pytest.raises(HostError, match="is not a socket"):
        await ControlSocket(agent, path).start()
    assert path.read_text() == "somebody's file"


async def test_a_run_directory_that_cannot_be_created_is_an_error(agent: FakeAgent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"File exists|Not a directory"):
        await ControlSocket(agent, tmp_path / "file" / "agent.sock").start()


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize("length", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
async def test_a_request_with_a_body_is_refused_before_the_body_is_read(
    path: Path, agent: FakeAgent, length: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"POST /v1/reload HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await writer.wait_closed()
    assert agent.reloads == 0


@pytest.mark.usefixtures("control")
async def test_a_header_without_end_is_refused(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 200_000)
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.usefixtures("control")
async def test_idle_clients_delay_no_other_client(path: Path) -> None:
    idle = [await asyncio.open_unix_connection(path) for _ in range(20)]
    idle[0][1].write(b"GET /v1/sta")
    assert (await asyncio.wait_for(ask(path, "GET /v1/status"), 2))[0] == 200
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()


async def test_stop_does_not_wait_for_idle_clients(agent: FakeAgent, path: Path) -> None:
    control = ControlSocket(agent, path)
    await control.start()
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /v1/sta")
    await asyncio.sleep(0)
    await asyncio.wait_for(control.stop(), 5)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def raven_vpn(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ravenvpn", *arguments, "--socket", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAVENVPN")},
    )


async def test_exit_codes_of_status(path: Path) -> None:
    """0 healthy, 1 not healthy with the reason first, 2 wrong usage, 3 no agent answers."""
    control = ControlSocket(FakeAgent(), path)
    await control.start()
    well = await asyncio.to_thread(raven_vpn, "status", path=path)
    await control.stop()
    ill = status(healthy=False, reasons=("the tunnel device is missing or down",))
    control = ControlSocket(FakeAgent(ill), path)
    await control.start()
    unwell = await asyncio.to_thread(raven_vpn, "status", path=path)
    await control.stop()
    usage = await asyncio.to_thread(raven_vpn, "status", "--nonsense", path=path)
    nobody = await asyncio.to_thread(raven_vpn, "status", path=path)
    assert [done.returncode for done in (well, unwell, usage, nobody)] == [0, 1, 2, 3]
    assert unwell.stdout.splitlines()[0] == "not healthy: the tunnel device is missing or down"
    assert nobody.stdout == ""
    assert nobody.stderr.startswith(f"raven-vpn: no agent answers on {path}")
    assert len(nobody.stderr.splitlines()) == 1
