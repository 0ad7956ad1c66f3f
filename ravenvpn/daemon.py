"""The agent's process: put the parts together, start them, report to systemd, stop them in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ravenvpn import logs, process
from ravenvpn.agent.agent import Agent, WorldSource
from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.reports import PeerReport, PlanLine, ReloadReport, StatusReport
from ravenvpn.config import AgentConfig, ConfigReader
from ravenvpn.control import ControlSocket
from ravenvpn.crypto import keyfile
from ravenvpn.errors import ConfigError, RavenError
from ravenvpn.health import judged, unready_reasons
from ravenvpn.httpd import HealthServer
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.cluster import ClusterSource
from ravenvpn.k8s.files import FileSource
from ravenvpn.k8s.peer_writer import PeerWriter
from ravenvpn.k8s.world_cache import WorldCache
from ravenvpn.mesh.model import DEFAULT_MESH
from ravenvpn.mesh.situation import IdentityKeys
from ravenvpn.notify import Notifier
from ravenvpn.reconfigure import RunningConfig

log = logging.getLogger(__name__)

# Seconds between updates.
STATUS_INTERVAL = 2.0  # of the line in `systemctl status`, and upper bound between two WATCHDOG=1
PEER_STATUS_INTERVAL = 5.0  # of the status of our Peer object; the writer itself writes far more seldom

# Allocations between two runs of the cyclic garbage collector, see `process.run`.
GC_ALLOCATIONS = 200_000


def run(config: AgentConfig, reader: ConfigReader | None = None) -> None:
    """Run the agent until SIGTERM or SIGINT; SIGHUP reloads world and configuration, which `reader` reads again.

    Raises ConfigError and HostError that name what is missing. Any other exception is logged with its traceback and
    ends in SystemExit(1)."""
    logs.set_up(config.log_level, config.log_format)
    state = Path(config.state_dir)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=config.state_dir, field="state_dir") from error
    process.run(_serve(config, reader, state), "agent", allocations=GC_ALLOCATIONS)


class AgentApi:
    """The agent as the control socket, the health probes and the scrapers see it: its reports, judged, and
    `reload`."""

    def __init__(self, agent: Agent, running: RunningConfig, notifier: Notifier) -> None:
        """`running` is read again at each reload, whose beginning and end are sent to systemd by `notifier`."""
        self._agent, self._running, self._notifier = agent, running, notifier
        self.vitals = agent.introspection.vitals
        self.peers: Callable[[], list[PeerReport]] = agent.introspection.peers
        self.plan: Callable[[], list[PlanLine]] = agent.introspection.plan
        self.plan_diff: Callable[[], Coroutine[Any, Any, list[PlanLine]]] = agent.introspection.plan_diff

    def status(self) -> StatusReport:
        """Return the status with the verdict of `health` and the state of the configuration."""
        return judged(self._running.annotate(self._agent.introspection.status()), self.vitals())

    async def reload(self) -> ReloadReport:
        """Read configuration, world and host again; return when the result is in force and systemd has been notified.

        Raises ConfigError or HostError for a configuration that cannot be read; nothing changes then."""
        log.info("reload: reading configuration, world and host again")
        # While the first world is not in force yet, systemd still waits for READY=1 and must not get it from here.
        announced = self._agent.converged.is_set()
        if announced:
            self._notifier.reloading()
        try:
            report = self._running.reload()
            self._agent.set_intent(self._running.intent)
            await self._agent.reload()
        finally:
            if announced:
                self._notifier.ready()
        return report

    async def reload_on_signal(self) -> None:
        """Reload for SIGHUP, whose sender gets no answer: a configuration that cannot be read is logged."""
        try:
            await self.reload()
        except RavenError as error:
            log.error("reload: %s; the settings before stay in force", error)


async def _serve(config: AgentConfig, reader: ConfigReader | None, state: Path) -> None:
    """Run everything until a signal asks to stop, then end it in reverse order of its start.

    The control socket comes first: it refuses to start beside another agent, before anything on the host is touched.
    The agent ends when its task is cancelled; an exception in one task ends all of them and leaves this function as
    an exception group, which `process.run` unpacks."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Ignored before the agent runs and while it stops; the default action would end the process.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    notifier = Notifier()
    # Callbacks run in reverse order, also when one of the later steps fails.
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(notifier.close)
        client: Client | None = None
        if config.world_directory is None:
            client = Client.connect(config.kubeconfig, config.context)
            await stack.enter_async_context(client)
        # Without a cluster there is nobody to announce this node to: its Peer is a manifest that an operator wrote.
        peer_writer = PeerWriter(client) if client is not None else None
        running = RunningConfig(config, reader)
        agent = _make_agent(running, state, client, peer_writer)
        api = AgentApi(agent, running, notifier)
        control = ControlSocket(api, config.control_socket)
        await control.start()
        stack.push_async_callback(control.stop)
        if config.http_endpoint is not None:
            health = HealthServer(api, *config.http_endpoint)
            await health.start()
            stack.push_async_callback(health.stop)
        log.info("agent of node %s starts, world from %s", config.node_name, config.source)
        children: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as tasks:

                def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
                    children.append(tasks.create_task(work, name=name))

                spawn(agent.run(cleanup=lambda: running.config.cleanup_on_exit), "agent")
                spawn(_report_to_systemd(agent, notifier), "sd_notify")
                if peer_writer is not None:
                    spawn(_report_in_peer(agent, peer_writer), "peer status")
                # From here on a SIGHUP reloads, even before the first world is in force.
                loop.add_signal_handler(signal.SIGHUP, lambda: spawn(api.reload_on_signal(), "reload"))
                await stop.wait()
                loop.add_signal_handler(signal.SIGHUP, lambda: None)
                notifier.stopping()
                # Cancelled one by one, not by an exception: the group then ends without an error.
                for child in children:
                    child.cancel()
        finally:
            notifier.stopping()
    log.info("agent stopped")


def _make_agent(running: RunningConfig, state: Path, client: Client | None, peer_writer: PeerWriter | None) -> Agent:
    """Load the keys and the saved state, and make the agent; a missing private key is created.

    Raises ConfigError for a key file with a wrong mode or content, HostError where the host lacks a capability."""
    config = running.config
    key = keyfile.load_or_create(config.private_key_path, os.urandom)
    source: WorldSource
    if client is not None:
        source = ClusterSource(client, config.node_name, WorldCache(state / "world"), mesh=config.mesh)
    else:
        assert config.world_directory is not None
        source = FileSource(config.world_directory, config.mesh or DEFAULT_MESH)
    log.info("public key %s", key.public)
    return Agent(
        config.node_name,
        source,
        running.intent,
        IdentityKeys(key),
        last_seen=LastSeen(state / "endpoints"),
        state_file=state / "host",
        body=None if config.dataplane == "auto" else config.dataplane,
        peer_writer=peer_writer,
    )


async def _report_in_peer(agent: Agent, peer_writer: PeerWriter) -> None:
    """Keep the status of our Peer object current, once the first world is in force.

    Before that it would report faults of a start that is still going on."""
    await agent.converged.wait()
    while True:
        vitals = agent.introspection.vitals()
        peer_writer.set_status(agent.introspection.peer_report(unready_reasons(vitals), vitals))
        await asyncio.sleep(PEER_STATUS_INTERVAL)


async def _report_to_systemd(agent: Agent, notifier: Notifier) -> None:
    """Send READY=1 once the first world is in force, and STATUS and WATCHDOG as long as the loop runs.

    The watchdog is fed from the loop, so that a blocked loop gets the agent restarted."""
    if not notifier.heard:
        return
    # Half of WatchdogSec= or less; the status line is refreshed at the same pace.
    interval = min(notifier.watchdog_interval or STATUS_INTERVAL, STATUS_INTERVAL)
    ready = False
    while True:
        if not ready and agent.converged.is_set():
            ready = True
            notifier.ready()
        vitals = agent.introspection.vitals()
        reasons = unready_reasons(vitals)
        wanted = vitals.sessions_wanted
        sessions = f"{vitals.sessions_up} of {wanted} sessions up" if wanted else "no sessions wanted"
        notifier.status(f"{vitals.role}, {sessions}" + (f"; {reasons[0]}" if reasons else ""))
        notifier.watchdog()
        # Before READY=1 the wait ends as soon as the first world is in force, not at the next interval.
        if ready:
            await asyncio.sleep(interval)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await agent.converged.wait()
