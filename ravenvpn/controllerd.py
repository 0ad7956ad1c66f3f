"""The controller's process: everything put together, started, looked at, and taken down again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ravenvpn import logs
from ravenvpn.agent.resolve import Resolver
from ravenvpn.httpd import Site
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.controller import Controller, ControllerReport, Options
from ravenvpn.process import run as run_process

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """What only the process needs to know. `http` is where probes and scrapers are answered, None: nowhere."""

    kubeconfig: str = ""
    context: str = ""
    http: tuple[str, int] | None = ("0.0.0.0", 10285)  # noqa: S104 (a pod's own address: the kubelet probes it)
    log_level: str = "info"
    log_format: str = "auto"


def run(process: Process, options: Options) -> None:
    """Run the controller until SIGTERM or SIGINT; then the Lease is given up. ConfigError and HostError say what is
    missing at the start."""
    logs.set_up(process.log_level, process.log_format)
    run_process(_serve(process, options), "controller", allocations=100_000)


async def _serve(process: Process, options: Options) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.connect(process.kubeconfig or None, process.context or None))

        def resolved() -> None:
            controller.names_changed()

        names = Resolver(resolved)
        stack.callback(names.close)
        dice = random.SystemRandom()
        controller = Controller(client, options, names, draw=dice.random, clock=_boottime)
        if process.http is not None:
            site = Site(application(controller.report), *process.http)
            await site.start()
            stack.push_async_callback(site.stop)
        log.info("controller %s starts, process %d", options.identity, os.getpid())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(controller.run(), name="controller")
            await stop.wait()
            log.info("stopping")
            running.cancel()
    log.info("controller stopped")


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def application(look: Callable[[], ControllerReport]) -> web.Application:
    """Live: the loop turns. Ready: this replica could lead, or does. What it does is said in either case."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        report = look()
        status, lines = (503, list(report.unready)) if report.unready else (200, ["ok"])
        return web.Response(status=status, text="".join(f"{line}\n" for line in (*lines, *describe(report))))

    async def scrape(_: web.Request) -> web.Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ControllerCollector(look))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    return app


def describe(report: ControllerReport) -> list[str]:
    """For whoever reads /readyz by eye."""
    lines = ["this replica leads" if report.leading else f"leader: {report.leader or 'nobody'}"]
    if report.leading:
        lines.append(f"{'elects' if report.elects else 'steps back'}: {report.why}")
    lines.append(f"{report.gateways} Gateways, {report.nodes} Nodes, {report.peers} Peers")
    lines += [f"Gateway {name}: {why}" for name, why in sorted(report.failing.items())[:5]]
    return lines


class ControllerCollector(Collector):
    """One scrape is one look."""

    def __init__(self, look: Callable[[], ControllerReport]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        report = self._look()
        for name, text, value in (
            ("leader", "1 on the replica that leads.", report.leading),
            ("elects", "0 where the election is left to another controller.", report.elects),
            ("gateways", "Gateways in this cluster.", report.gateways),
            ("nodes", "Nodes that belong to a Gateway.", report.nodes),
            ("peers", "Peers in this cluster.", report.peers),
            ("conflicts", "Contradictions between objects.", report.conflicts),
            ("failing", "Gateways whose last write failed.", len(report.failing)),
        ):
            yield GaugeMetricFamily(f"ravenvpn_controller_{name}", text, float(value))
        yield CounterMetricFamily("ravenvpn_controller_defects", "Decisions that broke off.", float(report.defects))
        yield CounterMetricFamily(
            "ravenvpn_controller_events_suppressed", "Events not written, too many.", float(report.events_suppressed)
        )
        writes = CounterMetricFamily(
            "ravenvpn_controller_writes", "Writes, by object and outcome.", labels=["object", "outcome"]
        )
        for (what, outcome), count in sorted(report.written.items()):
            writes.add_metric([what, outcome], count)
        yield writes
        watched = GaugeMetricFamily("ravenvpn_controller_watch_up", "1 for a watch that stands.", labels=["kind"])
        for kind, up in sorted(report.connected.items()):
            watched.add_metric([kind], float(up))
        yield watched
