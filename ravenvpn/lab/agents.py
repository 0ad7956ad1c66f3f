"""Real agents on the nodes of a lab, each with key, manifests and log; and questions to them through the CLI."""

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

WORLD = "/etc/ravenvpn/world"
STATE = "/var/lib/ravenvpn"
LOG = f"{STATE}/agent.log"
PATIENCE = 20.0  # seconds that anything we wait for may take
START = 60.0  # and the start of many agents at once, on a machine with little to spare

# The program of this very installation, whatever PATH says inside a namespace.
RAVEN_VPN = (sys.executable, "-m", "ravenvpn")


class Agents:
    """One agent per node, at most. Names of nodes are those of the lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.public_keys: dict[str, str] = {}

    # Life.

    def prepare(self) -> None:
        """A key for every node, and the same manifests on each; the suites are those this CPU is good at."""
        suites = [suite.value for suite in own_suites()]
        for node in self._lab.nodes:
            # As `raven-vpn keygen` would, without a new process for each.
            key = keyfile.load_or_create(node.path(f"{STATE}/private.key"), os.urandom)
            self.public_keys[node.name] = str(key.public)
        for node in self._lab.nodes:
            self._lab.write_manifests(node.path(WORLD), self.public_keys, suites)

    def start_all(self) -> None:
        """Those that can be called first: a call to one that does not listen yet is repeated after 5 s only."""
        listens = ["ss", "-Hlun", "sport", "=", str(LISTEN_PORT)]
        public, others = (
            [node for node in self._lab.nodes if (node.region.nat is Nat.NONE) is dialable]
            for dialable in (True, False)
        )
        for node in public:
            self.start(node)
        for node in public:
            try:
                wait_until(functools.partial(answers, node, listens), f"{node.name} listens", START)
            except HostError as error:
                raise HostError(f"{error}\n{self.log(node)}") from None
        for node in others:
            self.start(node)

    def start(self, node: LabNode, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the node's agent; its log goes on in the same file."""
        with node.path(LOG).open("ab") as log:
            process = node.popen(
                [*RAVEN_VPN, "agent", "--node", node.name, *arguments], stdout=log, stderr=subprocess.STDOUT, env=env
            )
        self._running[node.name] = process
        return process

    def end(self, node: LabNode, how: signal.Signals = signal.SIGTERM) -> None:
        """End the node's agent and wait for it."""
        process = self._running.pop(node.name)
        process.send_signal(how)
        process.wait(timeout=PATIENCE)

    def process(self, node: LabNode) -> subprocess.Popen[bytes]:
        return self._running[node.name]

    # Asking.

    def cli(self, node: LabNode, *arguments: str) -> str:
        """Standard output of `raven-vpn …` on the node. HostError if it fails."""
        return node.run([*RAVEN_VPN, *arguments]).stdout.rstrip()

    def status(self, node: LabNode) -> dict[str, Any]:
        """`raven-vpn status -o json`. HostError with its words where no agent answers."""
        done = node.run([*RAVEN_VPN, "status", "-o", "json"], check=False)
        if not done.stdout:
            raise HostError(done.stderr.strip() or f"raven-vpn status ended with {done.returncode}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def peers(self, node: LabNode) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = json.loads(self.cli(node, "peers", "-o", "json"))
        return reports

    def complaint(self, node: LabNode) -> str:
        """Why the node is not well, in its own words; empty when it is and all wanted sessions are up."""
        try:
            report = self.status(node)
        except HostError as error:
            return str(error)
        if reasons := report["reasons"]:
            return str(reasons[0])
        if report["sessions_up"] < report["sessions_wanted"]:
            return f"{report['sessions_up']} of {report['sessions_wanted']} sessions are up"
        return ""

    def wait_until_well(self, nodes: Sequence[LabNode] = (), patience: float = PATIENCE) -> None:
        """HostError with the node's complaint and the end of its log if one does not get well in time."""
        for node in nodes or self._lab.nodes:
            deadline = time.monotonic() + patience
            while complaint := self.complaint(node):
                if time.monotonic() > deadline:
                    raise HostError(f"{node.name} after {patience:g} s: {complaint}\n{self.log(node)}")
                time.sleep(0.05)

    def log(self, node: LabNode, lines: int = 15) -> str:
        """The end of the agent's log."""
        path = node.path(LOG)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> float:
    """Wait until it holds, and return how many seconds that took. HostError after `patience`."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > patience:
            raise HostError(f"{patience:g} s have passed and it is not so that {what}")
        time.sleep(0.02)
    return time.monotonic() - begin


def answers(host: LabHost, argv: Sequence[str]) -> bool:
    """Whether the command prints anything."""
    return bool(host.run(argv, check=False).stdout)
