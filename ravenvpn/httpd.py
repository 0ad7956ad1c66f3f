"""/livez, /readyz and /metrics: plain HTTP for kubelets, balancers and Prometheus.

Probes come every few seconds, for ever, so they cost little: they read vital signs, not reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from ravenvpn.agent.reports import PeerReport, StatusReport, Vitals
from ravenvpn.errors import HostError
from ravenvpn.health import unready_reasons

SHUTDOWN_TIMEOUT = 1.0  # seconds that requests may still take when the agent stops


class HealthSubject(Protocol):
    """What is looked at."""

    def vitals(self) -> Vitals: ...
    def status(self) -> StatusReport: ...
    def peers(self) -> Sequence[PeerReport]: ...


def application(subject: HealthSubject) -> web.Application:
    """Live: the loop turns, or nobody would answer. Ready: the data path works; if not, a line for each reason."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(subject.vitals())
        return web.Response(status=503 if reasons else 200, text="".join(f"{r}\n" for r in reasons) or "ok\n")

    async def scrape(_: web.Request) -> web.Response:
        # Memory that an agent nobody scrapes need not spend.
        from ravenvpn import metrics  # noqa: PLC0415

        body = metrics.exposition(lambda: (subject.status(), subject.peers()))
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    return app


class Site:
    """An application on one address."""

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        self._app, self._host, self._port = app, host, port
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Raises HostError where the address cannot be had."""
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await self.stop()
            raise HostError(
                f"cannot listen on {self._host}, TCP port {self._port}: {error.strerror or error}",
                remedy="choose another --http-address",
            ) from error

    async def stop(self) -> None:
        await self._stack.aclose()


class HealthServer(Site):
    """The agent's."""

    def __init__(self, subject: HealthSubject, host: str, port: int) -> None:
        super().__init__(application(subject), host, port)
