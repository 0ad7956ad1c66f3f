"""Composition root of the controller process: client, resolver, controller, HTTP server for probes and metrics.

One event loop, one thread. The HTTP server starts before the first list, so that probes are answered while a large
cluster is still being listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ravenvpn import logs
from ravenvpn.agent.resolve import Resolver
from ravenvpn.config import parse_host_port
from ravenvpn.httpd import Site
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.controller import Controller, ControllerReport
from ravenvpn.k8s.controller.options import ControllerOptions, ProcessOptions
from ravenvpn.process import run as run_process

log = logging.getLogger(__name__)


def run(process: ProcessOptions, options: ControllerOptions) -> None:
    """Run the controller until SIGTERM or SIGINT, then give up the Lease.

    Raises ConfigError for an HTTP address or kubeconfig that cannot be used and HostError if the HTTP address cannot
    be bound.
    """
    logs.set_up(process.log_level, process.log_format)
    address = parse_host_port(process.http_address, field="--http-address") if process.http_address else None
    run_process(_serve(process, options, address), "controller", allocations=100_000)


async def _serve(process: ProcessOptions, options: ControllerOptions, address: tuple[str, int] | None) -> None:
    """Run until SIGTERM or SIGINT. `address` is that of the HTTP server, None for no server.

    The parts are stopped in reverse order of their start: the controller gives up the Lease while the client still
    works, and the server answers probes until then.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.connect(process.kubeconfig or None, process.context or None))

        # A function of its own, because resolver and controller refer to each other.
        def on_resolved() -> None:
            controller.on_resolved()

        names = Resolver(on_resolved)
        stack.callback(names.close)
        controller = Controller(client, options, names, draw=random.SystemRandom().random, clock=_boottime)
        if address is not None:
            site = Site(application(controller.report), *address)
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
    # CLOCK_BOOTTIME counts suspended time too: a Lease runs out while a virtual machine is paused.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def application(report_now: Callable[[], ControllerReport]) -> web.Application:
    """Return the HTTP application: /livez, /readyz, /metrics.

    /livez is 200 while the event loop runs. /readyz is 200 if this replica leads or could, else 503 with the reasons;
    in both cases the state follows as text. Each request takes one snapshot with `report_now`.
    """

    async def livez(_: web.Request) -> web.Response:
        """Answer from the event loop; a loop that hangs gives no answer, and the kubelet restarts the pod."""
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        """Answer 200 or 503, a reason per line, and the state for people."""
        report = report_now()
        status, lines = (503, list(report.unready)) if report.unready else (200, ["ok"])
        return web.Response(status=status, text="".join(f"{line}\n" for line in (*lines, *describe(report))))

    async def scrape(_: web.Request) -> web.Response:
        """Answer in the text format of Prometheus. A registry of its own leaves out metrics of the Python process."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ControllerCollector(report_now))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    return app


def describe(report: ControllerReport) -> list[str]:
    """Return the state as lines of text, for people who read /readyz. At most five failing Gateways are listed."""
    lines = ["this replica leads" if report.leading else f"leader: {report.leader or 'none known'}"]
    if report.leading:
        lines.append(f"{'elects' if report.elects else 'steps back'}: {report.why}")
    lines.append(f"{report.gateways} Gateways, {report.nodes} Nodes, {report.peers} Peers")
    lines += [f"Gateway {name}: {why}" for name, why in sorted(report.failing.items())[:5]]
    return lines


class ControllerCollector(Collector):
    """Prometheus collector; each scrape takes one snapshot, so that its metrics fit together."""

    def __init__(self, report_now: Callable[[], ControllerReport]) -> None:
        self._report_now = report_now

    def collect(self) -> Iterable[Metric]:
        """Return the metrics `ravenvpn_controller_*`; their names are part of the API."""
        report = self._report_now()
        for name, text, value in (
            ("leader", "1 if this replica leads.", report.leading),
            ("elects", "1 if this controller elects, 0 if another one does.", report.elects),
            ("gateways", "Gateways in this cluster.", report.gateways),
            ("nodes", "Nodes with the label of a Gateway.", report.nodes),
            ("peers", "Peers in this cluster.", report.peers),
            ("conflicts", "Conflicts between Gateways or Peers.", report.conflicts),
            ("failing", "Gateways whose last write failed.", len(report.failing)),
        ):
            yield GaugeMetricFamily(f"ravenvpn_controller_{name}", text, float(value))
        yield CounterMetricFamily(
            "ravenvpn_controller_defects",
            "Decisions and writes that ended with an unexpected exception.",
            float(report.defects),
        )
        yield CounterMetricFamily(
            "ravenvpn_controller_events_suppressed",
            "Events left out because their object had too many.",
            float(report.events_suppressed),
        )
        writes = CounterMetricFamily(
            "ravenvpn_controller_writes",
            "Writes to the API server, by object and outcome.",
            labels=["object", "outcome"],
        )
        for (what, outcome), count in sorted(report.written.items()):
            writes.add_metric([what, outcome], count)
        yield writes
        watched = GaugeMetricFamily(
            "ravenvpn_controller_watch_up", "1 if the watch of this kind is connected.", labels=["kind"]
        )
        for kind, up in sorted(report.connected.items()):
            watched.add_metric([kind], float(up))
        yield watched
