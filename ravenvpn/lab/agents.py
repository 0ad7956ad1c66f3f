"""Real agents on the nodes of a lab, each with its key, manifests and log; queries to them through the CLI."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ravenvpn.crypto import keyfile
from ravenvpn.errors import HostError
from ravenvpn.lab.build import Lab
from ravenvpn.lab.host import LabHost, LabNode
from ravenvpn.lab.manifests import LISTEN_PORT
from ravenvpn.lab.topology import Nat
from ravenvpn.tunnel.linux.cpu import own_suites

# Paths on a node: the agent's defaults.
WORLD = "/etc/ravenvpn/world"  # folder of manifests
STATE = "/var/lib/ravenvpn"
LOG = f"{STATE}/agent.log"
WAIT_TIMEOUT = 20.0  # seconds, of every wait for one event; on an idle machine each takes less than two
START_TIMEOUT = 60.0  # seconds, for the start of many agents at the same time on a machine with two cores

# The program of this installation, whatever PATH is inside a namespace.
RAVEN_VPN = (sys.executable, "-m", "ravenvpn")


class Agents:
    """Agents of a lab, at most one on each node."""

    def __init__(self, lab: Lab) -> None:
        """Start nothing yet; `prepare` and `start_all` do."""
        self._lab = lab
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # by name of the node
        self.public_keys: dict[str, str] = {}  # base64, by name of the node

    # Processes.

    def prepare(self) -> None:
        """Write a private key on every node and the manifests of the whole lab, which are the same everywhere.

        Peers announce the suites that this CPU has instructions for, as the agents themselves would.
        """
        suites = [suite.value for suite in own_suites()]
        for node in self._lab.nodes:
            # The same as `raven-vpn keygen`, without a process for each node.
            key = keyfile.load_or_create(node.path(f"{STATE}/private.key"), os.urandom)
            self.public_keys[node.name] = str(key.public)
        for node in self._lab.nodes:
            self._lab.write_manifests(node.path(WORLD), self.public_keys, suites)

    def start_all(self) -> None:
        """Start the agents of all nodes, those without NAT first.

        An agent behind NAT initiates the handshake. If the responder does not listen yet, the initiation is lost and
        is repeated after 5 s (REKEY_TIMEOUT), so public agents are waited for. HostError if one does not listen.
        """
        listens = ["ss", "-Hlun", "sport", "=", str(LISTEN_PORT)]
        public, others = (
            [node for node in self._lab.nodes if (node.region.nat is Nat.NONE) is dialable]
            for dialable in (True, False)
        )
        for node in public:
            self.start(node)
        for node in public:
            try:
                wait_until(functools.partial(answers, node, listens), f"{node.name} listens", START_TIMEOUT)
            except HostError as error:
                raise HostError(f"{error}\n{self.log(node)}") from None
        for node in others:
            self.start(node)

    def start(self, node: LabNode, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the agent of a node and return its process. The log is appended to."""
        with node.path(LOG).open("ab") as log:
            process = node.popen(
                [*RAVEN_VPN, "agent", "--node", node.name, *arguments], stdout=log, stderr=subprocess.STDOUT, env=env
            )
        self._running[node.name] = process
        return process

    def end(self, node: LabNode, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the agent of a node and wait until it has ended. KeyError if none runs."""
        process = self._running.pop(node.name)
        process.send_signal(how)
        process.wait(timeout=WAIT_TIMEOUT)

    def process(self, node: LabNode) -> subprocess.Popen[bytes]:
        """Return the process of a node's agent. KeyError if none runs."""
        return self._running[node.name]

    # Queries.

    def cli(self, node: LabNode, *arguments: str) -> str:
        """Run `raven-vpn` with these arguments on a node and return its standard output. HostError if it fails."""
        return node.run([*RAVEN_VPN, *arguments]).stdout.rstrip()

    def status(self, node: LabNode) -> dict[str, Any]:
        """Return the output of `raven-vpn status -o json`. HostError with its error message if no agent answers."""
        # A status with problems is printed with an exit status that is not 0.
        done = node.run([*RAVEN_VPN, "status", "-o", "json"], check=False)
        if not done.stdout:
            raise HostError(done.stderr.strip() or f"raven-vpn status ended with {done.returncode}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def peers(self, node: LabNode) -> list[dict[str, Any]]:
        """Return the output of `raven-vpn peers -o json`. HostError if it fails."""
        reports: list[dict[str, Any]] = json.loads(self.cli(node, "peers", "-o", "json"))
        return reports

    def complaint(self, node: LabNode) -> str:
        """Return why a node is not healthy; empty if its agent reports no problem and all wanted sessions are up."""
        try:
            report = self.status(node)
        except HostError as error:
            return str(error)
        if reasons := report["reasons"]:
            return str(reasons[0])
        if report["sessions_up"] < report["sessions_wanted"]:
            return f"{report['sessions_up']} of {report['sessions_wanted']} sessions are up"
        return ""

    def wait_until_well(self, nodes: Sequence[LabNode] = (), patience: float = WAIT_TIMEOUT) -> None:
        """Wait until these nodes, or all, are healthy; at most `patience` seconds for each.

        HostError with the fault and the end of the log of the first node that is not.
        """
        for node in nodes or self._lab.nodes:
            deadline = time.monotonic() + patience
            while fault := self.complaint(node):
                if time.monotonic() > deadline:
                    raise HostError(f"{node.name} is not healthy after {patience:g} s: {fault}\n{self.log(node)}")
                time.sleep(0.05)

    def log(self, node: LabNode, lines: int = 15) -> str:
        """Return the last lines of an agent's log; empty if there is none."""
        path = node.path(LOG)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, patience: float = WAIT_TIMEOUT) -> float:
    """Poll `condition` until it is true, and return how many seconds that took.

    HostError after `patience` seconds; `what` is the condition as a clause, as in "factory-1 listens".
    """
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > patience:
            raise HostError(f"not true after {patience:g} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - begin


def answers(host: LabHost, argv: Sequence[str]) -> bool:
    """Return whether a command on the host prints anything, whatever its exit status, as in `ss -Hltn sport = 80`."""

    return bool(host.run(argv, check=False).stdout)
