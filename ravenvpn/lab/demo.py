"""Demonstration: a mesh in namespaces with real agents and real traffic. Every claim is checked before it is printed.

Each step is printed with its duration when it is done. The first check that fails ends the demo with the reason.
"""

from __future__ import annotations

import functools
import json
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ravenvpn.errors import RavenError
from ravenvpn.lab.agents import RAVEN_VPN, Agents, answers, wait_until
from ravenvpn.lab.build import Lab
from ravenvpn.lab.echo import PORT
from ravenvpn.lab.host import Pod
from ravenvpn.lab.topology import Nat, Region

# One public region and two behind NAT: the two reach each other through the public one.
REGIONS = (
    Region("cloud", pods=2),
    Region("factory", nodes=2, pods=2, nat=Nat.PORT_RESTRICTED),  # factory-2 is a plain node behind its gateway
    Region("ship", pods=2, nat=Nat.SYMMETRIC),
)
IPERF_SECONDS = 3  # long enough to leave slow start
ECHO = (sys.executable, "-m", "ravenvpn.lab.echo")


class DemoError(RavenError):
    """A check of the demo failed; the message says which and how."""


class Demo:
    """One run of the demo in a lab that is built already."""

    def __init__(self, lab: Lab, print_line: Callable[[str], None], print_block: Callable[[str], None]) -> None:
        """Prepare a run. `print_block` prints the output of a program, of several lines."""
        self._lab, self._print_line, self._print_block = lab, print_line, print_block
        self._agents = Agents(lab)

    def run(self) -> None:
        """Run all steps in order. DemoError if a check fails, HostError if a program does."""
        self._start_agents()
        self._start_servers()
        self._send_requests()
        self._check_encryption()
        self._measure_throughput()
        self._show_tables()

    def _start_agents(self) -> None:
        """Start an agent on every node from the same manifests, and wait until all regions are reachable."""
        with self._step("a key for every node, the same manifests on each"):
            self._agents.prepare()
        with self._step(f"{len(self._lab.nodes)} agents started"):
            self._agents.start_all()
        with self._step("agents ready, handshakes done, every region reachable from every node"):
            self._agents.wait_until_well()

    def _start_servers(self) -> None:
        """Start the server of `lab.echo` in every pod, and wait until all listen."""
        with self._step(f"an HTTP server in each of {len(self._lab.pods)} pods"):
            for pod in self._lab.pods:
                pod.popen([*ECHO, "serve"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            listens = ["ss", "-Hltn", "sport", "=", str(PORT)]
            for pod in self._lab.pods:
                wait_until(functools.partial(answers, pod, listens), f"{pod.name} serves")

    def _send_requests(self) -> None:
        """Check that pods of different regions reach each other, and that source addresses are not replaced."""
        pairs = 0
        with self._step("HTTP from every pod to every pod of the other regions, IPv4 and IPv6, by Pod IP") as note:
            for pod in self._lab.pods:
                others = [other for other in self._lab.pods if other.node.region is not pod.node.region]
                targets = [str(address) for other in others for address in (other.v4, other.v6)]
                for answer in self._ask(pod, targets):
                    own = pod.v6 if ":" in str(answer["host"]) else pod.v4
                    if not answer["ok"]:
                        raise DemoError(f"{pod.name} → {answer['host']}: {answer['error']}")
                    if answer["source"] != str(own):
                        raise DemoError(
                            f"{answer['host']} received the request from {answer['source']} instead of {own}, "
                            f"the pod's own address"
                        )
                    pairs += 1
            note(f"{pairs} of {pairs} answered, each received the request from the pod's own address")

    def _check_encryption(self) -> None:
        """Check that traffic through the tunnel cannot be read on the internet between the regions."""
        marker = f"marker-{secrets.token_hex(12)}"
        with self._step("a marker sent through the tunnel is not readable on the internet") as note:
            first, second = self._two_regions()
            with self._lab.internet.capture(expression="ip or ip6") as seen:
                target = [str(second.v4), str(second.v6)]
                if any(answer["marker"] != marker for answer in self._ask(first, target, marker)):
                    raise DemoError("the marker did not arrive through the tunnel")
            inside, frames = seen.count(marker.encode()), seen.count()
            # Positive control: the same marker sent from router to router, outside of the tunnel, must be captured.
            with self._lab.internet.capture(expression="ip or ip6") as control:
                self._send_in_clear(marker)
            outside = control.count(marker.encode())
            if inside or not outside or not frames:
                raise DemoError(
                    f"the marker was captured {inside} times when sent through the tunnel ({frames} frames) "
                    f"and {outside} times when sent outside of it"
                )
            note(f"0 of {frames} captured frames contain it; sent outside of the tunnel, {outside} do")

    def _send_in_clear(self, marker: str) -> None:
        """Send the marker in a UDP packet from router to router; port 9 is discard (RFC 863)."""
        regions = [plan.region.name for plan in self._lab.plans]
        sender, receiver = self._lab.router(regions[0]), self._lab.router(regions[1])
        script = f"import socket;s=socket.socket(2,2);s.sendto({marker.encode()!r},('{receiver.v4}',9))"
        sender.run([sys.executable, "-I", "-S", "-c", script])

    def _measure_throughput(self) -> None:
        """Measure a TCP flow with iperf3. Any throughput passes: the figure depends on the machine."""
        with self._step(f"one TCP flow between pods of two regions, {IPERF_SECONDS} s") as note:
            client, server = self._two_regions()
            server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            listens = ["ss", "-Hltn", "sport", "=", "5201"]
            wait_until(functools.partial(answers, server, listens), f"iperf3 listens in {server.name}")
            command = ["iperf3", "-c", str(server.v4), "-t", str(IPERF_SECONDS), "-J"]
            report = json.loads(client.run(command, check=False, timeout=IPERF_SECONDS + 20).stdout)
            if "error" in report:
                raise DemoError(f"iperf3 from {client.name} to {server.name}: {report['error']}")
            note(f"{report['end']['sum_received']['bits_per_second'] / 1e6:.0f} Mbit/s")

    def _show_tables(self) -> None:
        """Print what the agents report, after a check of the paths, and what wg(8) shows on one node."""
        for node in self._lab.nodes:
            self._print_line(f"raven-vpn peers, on {node.name}:")
            self._print_block(self._agents.cli(node, "peers"))
        self._check_paths()
        first = self._lab.nodes[0]
        self._print_line(f"wg show, on {first.name}:")
        self._print_block(first.run(["wg", "show", "ravenvpn0"]).stdout)

    def _check_paths(self) -> None:
        """Check the path to each region as each agent reports it.

        A plain node goes through its gateway; two regions behind NAT meet at the public one; all others are direct.
        """
        hidden = [plan.region.name for plan in self._lab.plans if plan.region.nat is not Nat.NONE]
        for node in self._lab.nodes:
            status = self._agents.status(node)
            for region in status["regions"]:
                hub = node.region.name in hidden and region["name"] in hidden
                through = f"{node.region.name}-1" if status["role"] == "plain node" else "cloud" if hub else ""
                if region["path"] != (f"via {through}" if through else "direct"):
                    raise DemoError(f"{node.name} reaches {region['name']} {region['path']}")

    def suggestions(self) -> list[str]:
        """Return commands to try on a mesh that was kept, ready to paste."""
        node, (pod, other) = self._lab.nodes[0], self._two_regions()
        inside = shlex.join(node.enter)
        program = shlex.join(RAVEN_VPN)
        return [
            f"{inside} {program} status",
            f"{inside} {program} peers --watch",
            f"{inside} {program} plan",
            f"{inside} wg show",
            f"{shlex.join(pod.enter)} ping {other.v4}",
            f"{program} demo --remove",
        ]

    def _two_regions(self) -> tuple[Pod, Pod]:
        """Return two pods of different regions."""
        first = self._lab.pods[0]
        # Pods are ordered by region, so the first pod of another region is in the second one.
        return first, next(pod for pod in self._lab.pods if pod.node.region is not first.node.region)

    def _ask(self, pod: Pod, hosts: Sequence[str], marker: str = "-") -> list[dict[str, object]]:
        """Send a request from a pod to each host, and return the results of `echo.ask`."""
        done = pod.run([*ECHO, "ask", marker, *hosts], timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextmanager
    def _step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Run a step, and print its title and duration if nothing is raised. Yields a function that adds a note."""
        notes: list[str] = []
        begin = time.monotonic()
        yield notes.append
        duration = f"({time.monotonic() - begin:.1f} s)"
        self._print_line(f"✓ {title} {duration}" + "".join(f"\n    {note}" for note in notes))
