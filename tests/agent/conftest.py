"""One mesh for the tests of this folder: what they do to it they undo, and each begins with it well.

Two public regions, so that there is a second hub, and two behind NAT that meet through one of them.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_hosts import dump

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents
from ravenvpn.lab.host import Node

ROOT = Path(__file__).parent.parent.parent
REGIONS = (
    Region("cloud", pods=2),
    Region("harbour", pods=1),
    Region("factory", pods=2, nat=Nat.PORT_RESTRICTED),
    Region("ship", pods=2, nat=Nat.SYMMETRIC),
)
Measured = Callable[[str, float], None]
PATIENCE = 60.0  # seconds to get well; four agents that start at once on a busy machine take most of them


@dataclass
class Mesh:
    lab: Lab
    agents: Agents
    before: dict[str, dict[str, object]]  # dumps of each node from before its agent's first start
    preshared_key: str

    def node(self, name: str) -> Node:
        return self.lab.node(name)

    def well(self, *nodes: str) -> None:
        self.agents.wait_until_well([self.node(name) for name in nodes], PATIENCE)

    def start(self, name: str, *arguments: str) -> None:
        self.agents.start(self.node(name), *arguments)

    def hub(self) -> str:
        """The node of the region through which factory and ship meet now."""
        paths = {r["name"]: str(r["path"]) for r in self.agents.status(self.node("factory-1"))["regions"]}
        return paths["ship"].removeprefix("via ") + "-1"


@pytest.fixture(scope="session")
def standing_mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        before = {node.name: dump(node) for node in lab.nodes}
        agents = Agents(lab)
        agents.prepare()
        preshared_key = base64.b64encode(secrets.token_bytes(32)).decode()
        for node in lab.nodes:
            node.write("/etc/ravenvpn/preshared.key", f"{preshared_key}\n", mode=0o600)
            node.write("/etc/ravenvpn/config.yaml", "preshared_key_file: /etc/ravenvpn/preshared.key\n")
        agents.start_all()
        yield Mesh(lab, agents, before, preshared_key)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Call it with a figure and what it is; all are shown at the end of the run."""

    def note(what: str, figure: float) -> None:
        request.config.stash.setdefault(_FIGURES, []).append(f"{request.node.name}: {what}: {figure:.4g}")

    return note


_FIGURES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(_FIGURES, []):
        terminalreporter.section("measured with agents")
        for line in figures:
            terminalreporter.line(line)


@pytest.fixture
def mesh(standing_mesh: Mesh) -> Mesh:
    standing_mesh.well()
    return dataclasses.replace(standing_mesh)
