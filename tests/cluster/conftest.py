"""Control planes for the tests of this folder, and a count of the tests that were skipped without one.

All tests of a run share `cluster`. Gateways and Peers are cluster-wide, so a test uses its own names and removes its
objects. A test that kills the cluster, floods it or lists all of it takes `own_cluster`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from cluster_mesh import MESHES, Mesh, Standing
from control_plane import DEFAULT, NOT_BUILT, VERSIONS, ControlPlane, define_kinds, running

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fixtures = {"cluster", "own_cluster", "any_cluster", "watched"}
    for item in items:
        if fixtures & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
    # Tests of the same mesh run one after the other; tests without a mesh run first.
    items.sort(key=_mesh_wanted)


def _mesh_wanted(item: pytest.Item) -> int:
    if HERE not in item.path.parents or "mesh" not in getattr(item, "fixturenames", ()):
        return -1
    callspec = getattr(item, "callspec", None)
    return MESHES.index(callspec.params.get("mesh", MESHES[0]) if callspec else MESHES[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple) and NOT_BUILT in report.longrepr[2]
    )
    if reasons:
        terminalreporter.section("NO KUBERNETES TO TEST AGAINST", yellow=True)
        for reason, count in reasons.items():
            terminalreporter.line(f"{count} tests {reason}")


@pytest.fixture(scope="session")
def _planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ControlPlane]]:
    """Return the shared control plane of a version. The first test that needs it starts it."""
    with ExitStack() as standing:

        @cache
        def plane(version: str) -> ControlPlane:
            return standing.enter_context(running(tmp_path_factory.mktemp("kube") / version, version))

        yield plane


@pytest.fixture(scope="session")
def cluster(_planes: Callable[[str], ControlPlane]) -> ControlPlane:
    """A control plane of the default version, shared by the run."""
    return _planes(DEFAULT)


@pytest.fixture(scope="session", params=VERSIONS)
def any_cluster(request: pytest.FixtureRequest, _planes: Callable[[str], ControlPlane]) -> ControlPlane:
    """Run the test once on each supported version that is built, the oldest and the newest included. Shared."""
    return _planes(request.param)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of the default version for one test, which may kill, hang or compact it."""
    with running(tmp_path / "kube") as plane:
        yield plane


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the CRDs for tests that follow all of it or kill it. Each test leaves it running."""
    with running(tmp_path_factory.mktemp("watched") / "kube") as plane:
        define_kinds(plane)
        yield plane


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Mesh:
    """A complete mesh in a cluster, shared by the tests of the same version and kube-proxy.

    It has regions, control plane, flannel, kube-proxy, controllers and agents. The Gateways are applied, and every
    pod reaches every pod.
    """
    standing = request.config.stash.setdefault(_STANDING, Standing())
    mesh = standing.mesh(*getattr(request, "param", MESHES[0]))
    mesh.wait_until_healthy()
    return mesh


_STANDING = pytest.StashKey[Standing]()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the cluster before tests of other folders start."""
    if nextitem is None or "mesh" not in getattr(nextitem, "fixturenames", ()) or HERE not in nextitem.path.parents:
        item.config.stash.setdefault(_STANDING, Standing()).close()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (standing := config.stash.get(_STANDING, None)) is not None:
        standing.close()
