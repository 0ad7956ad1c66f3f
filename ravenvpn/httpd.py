"""HTTP server of /livez, /readyz and /metrics, for kubelets, load balancers and Prometheus.

Probes come every few seconds as long as the node lives, so they read `Vitals`, not whole reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from ravenvpn.agent.reports import PeerReport, StatusReport, Vitals
from ravenvpn.errors import HostError
from ravenvpn.health import unready_reasons

SHUTDOWN_TIMEOUT = 1.0  # seconds that open requests may take when the process stops; then they are cancelled


class HealthSubject(Protocol):
    """The part of an agent that probes and scrapes read."""

    def vitals(self) -> Vitals:
        """Return the facts for /readyz; called at every probe."""

    def status(self) -> StatusReport:
        """Return the status for /metrics."""

    def peers(self) -> Sequence[PeerReport]:
        """Return the peers for /metrics."""


def application(subject: HealthSubject) -> web.Application:
    """Return the application. /livez answers 200 as long as the event loop runs; /readyz answers 200 if the data path
    works, else 503 with a line for each reason; /metrics is the Prometheus text format."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(subject.vitals())
        return web.Response(status=503 if reasons else 200, text="".join(f"{r}\n" for r in reasons) or "ok\n")

    async def scrape(_: web.Request) -> web.Response:
        # Imported at the first scrape: prometheus-client takes memory that an agent without scrapes does not need.
        from ravenvpn import metrics  # noqa: PLC0415

        body = metrics.exposition(lambda: (subject.status(), subject.peers()))
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    return app


class Site:
    """An aiohttp application on one TCP address."""

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        self._app, self._host, self._port = app, host, port
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Begin to serve. HostError where the address cannot be bound."""
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
        """Stop serving and close the socket. Safe to call twice."""
        await self._stack.aclose()


class HealthServer(Site):
    """The site of an agent, on a literal address and TCP port."""

    def __init__(self, subject: HealthSubject, host: str, port: int) -> None:
        super().__init__(application(subject), host, port)
