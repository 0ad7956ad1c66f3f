"""Fixtures and hooks for all tests: requirements of a test, network namespaces, figures and left-overs at the end.

A test marked `root` works in network namespaces of its own, named `rv-…`, and never touches the machine's network.
If its requirements are missing it is skipped with a reason in capitals. With CI=true that is an error: a skipped test
proves nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ravenvpn.lab.ownership import records

CI = os.environ.get("CI") == "true"
ROOT = Path(__file__).parent.parent
NAMESPACES = Path("/run/netns")

# Folders of administrators' programs, which the PATH of a plain user may lack.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): needs these programs on PATH")
    config.addinivalue_line("markers", "soak: takes minutes; only `make soak` (-m soak) runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in (config.getoption("-m") or ""):
        return
    soaking = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=soaking)
    items[:] = [item for item in items if item not in soaking]


def pytest_runtest_setup(item: pytest.Item) -> None:
    lacking = []
    if item.get_closest_marker("root"):
        if os.geteuid() != 0:
            lacking.append("ROOT")
        if not Path("/dev/net/tun").exists():
            lacking.append("/dev/net/tun")
        if not shutil.which("ip"):
            lacking.append("ip")
    if item.get_closest_marker("wireguard_go") and not cached_wireguard_go():
        lacking.append("wireguard-go (make tools)")
    for marker in item.iter_markers("needs"):
        lacking += [program for program in marker.args if not shutil.which(program)]
    if lacking:
        reason = f"NOT RUN, THIS MACHINE LACKS: {', '.join(lacking)}"
        if CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def cached_wireguard_go() -> Path | None:
    """Return the wireguard-go that `make tools` built, or None. A test run builds nothing and needs no network."""
    if override := os.environ.get("RAVENVPN_WIREGUARD_GO"):
        return Path(override)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ravenvpn" / "wireguard-go"
    # Pseudo-versions of Go modules contain the date, so they sort by age.
    built = sorted(program for program in cache.glob("v*/wireguard-go") if os.access(program, os.X_OK))
    return built[-1] if built else None


@pytest.fixture(scope="session")
def wireguard_go() -> Path:
    """The program wireguard-go. A test that uses it is marked `wireguard_go`, so that it is skipped without one."""
    program = cached_wireguard_go()
    assert program is not None, "mark tests that use this fixture with pytest.mark.wireguard_go"
    return program


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Function that records a figure under a name; all figures are printed at the end of the run."""

    def note(what: str, figure: float) -> None:
        request.config.stash.setdefault(_FIGURES, []).append(f"{request.node.name}: {what}: {figure:.4g}")

    return note


_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def netns() -> Iterator[Callable[[], str]]:
    """Function that makes an empty network namespace with loopback up and returns its name.

    All of them are deleted at the end of the test.
    """
    names: list[str] = []

    def add() -> str:
        name = f"rv-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
        names.append(name)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=10)
        return name

    yield add
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=10)


def our_namespaces() -> set[str]:
    """Return the names of all namespaces made by tests, labs and benchmarks."""
    return {path.name for path in NAMESPACES.glob("rv-*")} if NAMESPACES.is_dir() else set()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = our_namespaces()


_BEFORE = pytest.StashKey[set[str]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    left = our_namespaces() - session.config.stash[_BEFORE]
    # A demo or another test run on the same machine has a record of its labs with a running process.
    others = [record.prefix for record in records() if record.owner != os.getpid() and not record.is_orphaned()]
    left -= {name for name in left for prefix in others if name.startswith(f"{prefix}-")}
    # A namespace without a record may belong to another run, which deletes it soon.
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= our_namespaces()
    session.config.stash[_LEFT] = left
    if left and CI and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_LEFT = pytest.StashKey[set[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(_FIGURES, []):
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.line(line)
    if left := config.stash.get(_LEFT, set()):
        terminalreporter.section("NETWORK NAMESPACES LEFT BEHIND", red=True)
        terminalreporter.line(" ".join(sorted(left)))
