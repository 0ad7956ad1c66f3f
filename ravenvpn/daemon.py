"""The agent's process: everything put together, started, told to systemd, and taken down again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from ravenvpn import logs, metrics
from ravenvpn.agent.agent import Agent
from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.report import PeerReport, PlanLine, StatusReport
from ravenvpn.agent.sessions import Sessions
from ravenvpn.config import AgentConfig
from ravenvpn.control import ControlSocket
from ravenvpn.crypto import keyfile
from ravenvpn.crypto.aead import Suite, cpu_accelerates_aes
from ravenvpn.errors import ConfigError, HostError
from ravenvpn.health import judged, unready_reasons
from ravenvpn.k8s.files import FileSource
from ravenvpn.mesh.context import Settings
from ravenvpn.mesh.plan import Planner
from ravenvpn.notify import Notifier

log = logging.getLogger(__name__)

STATUS_INTERVAL = 2.0  # seconds between looks at what systemd is to be told


def run(config: AgentConfig) -> None:
    """Run the agent until SIGTERM or SIGINT. ConfigError and HostError say what is missing."""
    logs.set_up(config.log_level, config.log_format)
    state = Path(config.state_dir)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=config.state_dir, field="state_dir") from error
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, state))


class JudgedAgent:
    """The agent as the control socket and the scrapers see it: with the verdict of `health`."""

    def __init__(self, agent: Agent, notifier: Notifier) -> None:
        self._agent, self._notifier = agent, notifier
        self.peers: Callable[[], list[PeerReport]] = agent.peers
        self.plan: Callable[[], list[PlanLine]] = agent.plan
        self.plan_diff: Callable[[], Coroutine[Any, Any, list[PlanLine]]] = agent.plan_diff

    def status(self) -> StatusReport:
        return judged(self._agent.status())

    def reload(self) -> None:
        self._notifier.reloading()
        log.info("reloading")
        self._agent.reload()
        self._notifier.ready()


async def _serve(config: AgentConfig, state: Path) -> None:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    agent = _assemble(config, state)
    subject = JudgedAgent(agent, notifier)
    control = ControlSocket(subject, config.control_socket)
    await control.start()
    health = await _serve_http(config, subject)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, subject.reload)
    log.info("agent of node %s starts, world from %s", config.node_name, config.source)
    running = asyncio.create_task(agent.run(), name="agent")
    telling = asyncio.create_task(_tell_systemd(subject, agent, notifier), name="sd_notify")
    try:
        await asyncio.wait((running, asyncio.ensure_future(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
    finally:
        notifier.stopping()
        telling.cancel()
        if config.cleanup_on_exit and not running.done():
            await agent.cleanup()
        running.cancel()
        await control.stop()
        if health is not None:
            await health.cleanup()
        with contextlib.suppress(asyncio.CancelledError):
            await running  # what ended it, if it was not us, comes up here
    log.info("agent stopped")


def _assemble(config: AgentConfig, state: Path) -> Agent:
    key = keyfile.load_or_create(config.private_key_path, os.urandom)
    preshared = keyfile.load_preshared(Path(config.preshared_key_file)) if config.preshared_key_file else None
    suites = {Suite.CHACHA20POLY1305}
    if config.aes and cpu_accelerates_aes(Path("/proc/cpuinfo").read_text()):
        suites.add(Suite.AES256GCM)
    last_seen = LastSeen(state / "endpoints")
    source = FileSource(Path(config.source.removeprefix("file:")), config.mesh)
    planner = Planner(config.node_name, Settings(listen_port=config.listen_port or None))
    log.info("public key %s", key.public)
    return Agent(
        config.node_name,
        source,
        planner,
        last_seen,
        state_file=state / "host",
        probe_intervals=(config.probe_interval, config.probe_interval_idle),
        make_sessions=lambda on_resolved, listeners: Sessions(
            key=key,
            preshared_key=preshared,
            suites=frozenset(suites),
            last_seen=last_seen,
            body=None if config.dataplane == "auto" else config.dataplane,
            on_resolved=on_resolved,
            listeners=listeners,
        ),
    )


async def _serve_http(config: AgentConfig, subject: JudgedAgent) -> web.AppRunner | None:
    """/livez, /readyz and /metrics. HostError where the address cannot be had."""
    if config.http_endpoint is None:
        return None

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(subject.status())
        return web.Response(status=503 if reasons else 200, text="".join(f"{r}\n" for r in reasons) or "ok\n")

    async def scrape(_: web.Request) -> web.Response:
        body = metrics.exposition(lambda: (subject.status(), subject.peers()))
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    host, port = config.http_endpoint
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise HostError(
            f"cannot listen on {config.http_address}: {error.strerror or error}; choose another --http-address"
        ) from error
    return runner


async def _tell_systemd(subject: JudgedAgent, agent: Agent, notifier: Notifier) -> None:
    """READY=1 once the first world is in force; STATUS and WATCHDOG as long as the loop turns."""
    interval = min(notifier.watchdog_interval or STATUS_INTERVAL, STATUS_INTERVAL)
    ready = False
    while True:
        if not ready and agent.converged.is_set():
            ready = True
            notifier.ready()
        report = subject.status()
        sessions = f"{report.sessions_up} of {report.sessions_wanted} sessions up"
        notifier.status(f"{report.role}, {sessions}" + (f"; {report.reasons[0]}" if report.reasons else ""))
        notifier.watchdog()
        if ready:
            await asyncio.sleep(interval)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.converged.wait(), interval)
