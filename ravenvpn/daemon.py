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

from ravenvpn import logs, process
from ravenvpn.agent.agent import Agent, WorldSource
from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.own_peer import OwnPeer
from ravenvpn.agent.reports import PeerReport, PlanLine, StatusReport
from ravenvpn.agent.tunnel_owner import TunnelOwner
from ravenvpn.config import AgentConfig
from ravenvpn.control import ControlSocket
from ravenvpn.crypto import keyfile
from ravenvpn.errors import ConfigError
from ravenvpn.health import judged, unready_reasons
from ravenvpn.httpd import HealthServer
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.cluster import ClusterSource
from ravenvpn.k8s.files import FileSource
from ravenvpn.k8s.peer_writer import PeerWriter
from ravenvpn.k8s.world_cache import WorldCache
from ravenvpn.mesh.model import DEFAULT_MESH
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import IdentityKeys, Intent
from ravenvpn.notify import Notifier
from ravenvpn.tunnel.linux.cpu import own_suites
from ravenvpn.tunnel.peer import WIREGUARD_ONLY

log = logging.getLogger(__name__)

# Seconds between looks at what is to be told,
STATUS_INTERVAL = 2.0  # to systemd
DESCRIBE_INTERVAL = 5.0  # in the status of our Peer


def run(config: AgentConfig) -> None:
    """Run the agent until SIGTERM or SIGINT. ConfigError and HostError say what is missing; a defect of ours is
    logged with its traceback and ends in SystemExit(1)."""
    logs.set_up(config.log_level, config.log_format)
    state = Path(config.state_dir)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=config.state_dir, field="state_dir") from error
    process.run(_serve(config, state), "agent", allocations=200_000)


class JudgedAgent:
    """The agent as the control socket, the probes and the scrapers see it: with the verdict of `health`."""

    def __init__(self, agent: Agent, notifier: Notifier) -> None:
        self._agent, self._notifier = agent, notifier
        self.vitals = agent.introspection.vitals
        self.peers: Callable[[], list[PeerReport]] = agent.introspection.peers
        self.plan: Callable[[], list[PlanLine]] = agent.introspection.plan
        self.plan_diff: Callable[[], Coroutine[Any, Any, list[PlanLine]]] = agent.introspection.plan_diff

    def status(self) -> StatusReport:
        return judged(self._agent.introspection.status(), self.vitals())

    async def reload(self) -> None:
        """Returns when what was read is in force, and systemd knows."""
        log.info("reloading")
        running = self._agent.converged.is_set()  # before that systemd waits for a READY=1 that must be true
        if running:
            self._notifier.reloading()
        await self._agent.reload()
        if running:
            self._notifier.ready()


async def _serve(config: AgentConfig, state: Path) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # too early or too late to reload is no reason to die
    notifier = Notifier()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(notifier.close)
        client: Client | None = None
        if config.world_directory is None:
            client = Client.connect(config.kubeconfig, config.context)
            await stack.enter_async_context(client)
        announcer = PeerWriter(client) if client is not None else None
        agent = _assemble(config, state, client, announcer)
        subject = JudgedAgent(agent, notifier)
        control = ControlSocket(subject, config.control_socket)
        await control.start()
        stack.push_async_callback(control.stop)
        if config.http_endpoint is not None:
            health = HealthServer(subject, *config.http_endpoint)
            await health.start()
            stack.push_async_callback(health.stop)
        log.info("agent of node %s starts, world from %s", config.node_name, config.source)
        children: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as tasks:

                def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
                    children.append(tasks.create_task(work, name=name))

                spawn(agent.run(cleanup=config.cleanup_on_exit), "agent")
                spawn(_tell_systemd(subject, agent, notifier), "sd_notify")
                if announcer is not None:
                    spawn(_describe(agent, announcer), "describe")
                loop.add_signal_handler(signal.SIGHUP, lambda: spawn(subject.reload(), "reload"))
                await stop.wait()
                loop.add_signal_handler(signal.SIGHUP, lambda: None)
                notifier.stopping()
                for child in children:
                    child.cancel()
        finally:
            notifier.stopping()
    log.info("agent stopped")


def _assemble(config: AgentConfig, state: Path, client: Client | None, announcer: PeerWriter | None) -> Agent:
    key = keyfile.load_or_create(config.private_key_path, os.urandom)
    preshared = keyfile.load_preshared(Path(config.preshared_key_file)) if config.preshared_key_file else None
    suites = own_suites() if config.aes else WIREGUARD_ONLY
    last_seen = LastSeen(state / "endpoints")
    source: WorldSource
    if client is not None:
        source = ClusterSource(client, config.node_name, WorldCache(state / "world"), mesh=config.mesh)
    else:
        assert config.world_directory is not None
        source = FileSource(config.world_directory, config.mesh or DEFAULT_MESH)
    intent = Intent(
        listen_port=config.listen_port or None,
        forward_node_ip=config.forward_node_ip,
        addresses=config.announced_addresses,
        suites=frozenset(suites),
        preshared_key=preshared,
        probe_intervals=(config.probe_interval, config.probe_interval_idle),
    )
    log.info("public key %s", key.public)
    return Agent(
        config.node_name,
        source,
        Planner(config.node_name),
        last_seen,
        intent=intent,
        keys=IdentityKeys(key),
        state_file=state / "host",
        peer_writer=announcer,
        own_peer=OwnPeer(config.node_name, key.public, suites, config.announced_addresses, intent),
        make_tunnel_owner=lambda on_resolved, listeners: TunnelOwner(
            key=key,
            preshared_key=preshared,
            suites=frozenset(suites),
            last_seen=last_seen,
            body=None if config.dataplane == "auto" else config.dataplane,
            offloads=config.offloads,
            on_resolved=on_resolved,
            listeners=listeners,
        ),
    )


async def _describe(agent: Agent, announcer: PeerWriter) -> None:
    """Keep the status of our Peer true."""
    await agent.converged.wait()
    while True:
        vitals = agent.introspection.vitals()
        announcer.set_status(agent.introspection.peer_report(unready_reasons(vitals), vitals))
        await asyncio.sleep(DESCRIBE_INTERVAL)


async def _tell_systemd(subject: JudgedAgent, agent: Agent, notifier: Notifier) -> None:
    """READY=1 once the first world is in force; STATUS and WATCHDOG as long as the loop turns."""
    if not notifier.heard:
        return
    interval = min(notifier.watchdog_interval or STATUS_INTERVAL, STATUS_INTERVAL)
    ready = False
    while True:
        if not ready and agent.converged.is_set():
            ready = True
            notifier.ready()
        vitals = subject.vitals()
        reasons = unready_reasons(vitals)
        wanted = vitals.sessions_wanted
        sessions = f"{vitals.sessions_up} of {wanted} sessions up" if wanted else "no sessions wanted"
        notifier.status(f"{vitals.role}, {sessions}" + (f"; {reasons[0]}" if reasons else ""))
        notifier.watchdog()
        if ready:
            await asyncio.sleep(interval)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await agent.converged.wait()
