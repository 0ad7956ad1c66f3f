"""The control API: JSON over HTTP/1.1 on a Unix socket, under `/v1`, for the CLI and other programs on this host.

    GET  /v1/status        StatusReport
    GET  /v1/peers         list of PeerReport
    GET  /v1/peers/NAME    PeerReport
    GET  /v1/plan          list of PlanLine; ?diff=1: what the host has different from the plan
    POST /v1/reload        ReloadReport, once the result is in force

An error is `{"error": "one line"}` with status 403, 404, 405, 409 or 413. Reading needs access to the socket (root,
or the group that owns it). Changing something needs to be root or the user that runs the agent, as the kernel reports
the caller (SO_PEERCRED, unix(7)); no header is considered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

from ravenvpn.agent.reports import PeerReport, PlanLine, ReloadReport, StatusReport
from ravenvpn.errors import HostError, RavenError

log = logging.getLogger(__name__)

API = "/v1"
SHUTDOWN_TIMEOUT = 1.0  # seconds that open requests may take when the agent stops; then they are cancelled


class ControlSubject(Protocol):
    """The part of an agent that the control API serves."""

    def status(self) -> StatusReport:
        """Return the status, judged."""

    def peers(self) -> list[PeerReport]:
        """Return a report of every peer."""

    def plan(self) -> list[PlanLine]:
        """Return everything planned."""

    async def plan_diff(self) -> list[PlanLine]:
        """Return what the host has different from the plan."""

    async def reload(self) -> ReloadReport:
        """Read configuration, world and host again. A RavenError becomes the error of the answer."""


def application(subject: ControlSubject) -> web.Application:
    """Return the API as an aiohttp application, access checks included."""

    async def status(_: web.Request) -> web.Response:
        return _json(subject.status())

    async def peers(_: web.Request) -> web.Response:
        return _json(subject.peers())

    async def peer(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = next((peer for peer in subject.peers() if peer.name == name), None)
        return _json(found) if found else _error(404, f"no peer named {name!r}")

    async def plan(request: web.Request) -> web.Response:
        return _json(await subject.plan_diff() if request.query.get("diff") else subject.plan())

    async def reload(_: web.Request) -> web.Response:
        return _json(await subject.reload())

    # Routes of /v1. Resources are added; what exists keeps its path and its fields.
    app = web.Application(middlewares=[_guard])
    app.router.add_get(f"{API}/status", status)
    app.router.add_get(f"{API}/peers", peers)
    app.router.add_get(f"{API}/peers/{{name}}", peer)
    app.router.add_get(f"{API}/plan", plan)
    app.router.add_post(f"{API}/reload", reload)
    return app


class ControlSocket:
    """Serve the API on a path with mode 0660, in the agent's group. A stale socket of a dead agent is replaced."""

    def __init__(self, subject: ControlSubject, path: Path) -> None:
        """`path` is the socket; its folder is created with mode 0750 if it is absent."""
        self._subject, self._path = subject, path
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to serve. HostError where another agent answers on the path, or the path cannot be used."""
        if _answers(self._path):
            raise HostError(f"another agent is listening on {self._path}; stop it first, or choose another --run-dir")
        if self._path.exists() and not self._path.is_socket():
            raise HostError(f"{self._path} is not a socket; remove it, or choose another --run-dir")
        self._runner = web.AppRunner(
            application(self._subject), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        await self._runner.setup()
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # A socket without listener: bind(2) would fail with EADDRINUSE.
            self._path.unlink(missing_ok=True)
            await web.UnixSite(self._runner, str(self._path)).start()
            self._path.chmod(0o660)
        except OSError as error:
            await self._runner.cleanup()
            raise HostError(f"{self._path}: {error.strerror or error}") from error

    async def stop(self) -> None:
        """Stop serving and remove the socket. Safe to call without `start`."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Return whether a process accepts connections on this socket; a file left by a dead one refuses them."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(1.0)
        probe.connect(str(path))
        return True
    return False


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Check the caller, refuse bodies (nothing here needs one), and turn errors into JSON."""
    if request.method not in ("GET", "HEAD") and _caller(request) not in (0, os.geteuid()):
        return _error(403, "only root may change something")
    if request.can_read_body:
        return _error(413, "requests of this API carry no body")
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")
    except RavenError as error:
        return _error(409, str(error))


def _caller(request: web.Request) -> int | None:
    """Return the user id of the process at the other end; None where the connection is gone."""
    link = request.transport.get_extra_info("socket") if request.transport else None
    if link is None:
        return None
    size = struct.calcsize("3i")  # struct ucred: pid, uid, gid
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    body: Mapping[str, str] = {"error": message}
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
