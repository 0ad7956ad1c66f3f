"""Tests of the control plane fixture itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import ControlPlane, require_kube, running


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane shared by the destructive tests of this file. Each leaves it running."""
    with running(tmp_path_factory.mktemp("wrecked") / "kube") as plane:
        yield plane


def test_it_is_the_version_that_was_asked_for(any_cluster: ControlPlane) -> None:
    assert json.loads(any_cluster.kubectl("get", "--raw", "/version"))["gitVersion"] == any_cluster.version


def test_a_service_account_is_who_its_token_says_and_may_do_nothing(any_cluster: ControlPlane) -> None:
    any_cluster.kubectl("create", "serviceaccount", "somebody", "-n", "default")
    try:
        somebody = any_cluster.account("somebody", "default")
        refused = any_cluster.kubectl("get", "nodes", kubeconfig=somebody, check=False)
        assert 'User "system:serviceaccount:default:somebody" cannot list resource "nodes"' in refused
        seen = [
            r for r in any_cluster.requests() if r["user"]["username"] == "system:serviceaccount:default:somebody"
        ]
        assert {(r["verb"], r["objectRef"]["resource"]) for r in seen if "objectRef" in r} == {("list", "nodes")}
    finally:
        any_cluster.kubectl("delete", "serviceaccount", "somebody", "-n", "default")


def test_killed_and_started_again_it_has_its_port_and_its_data(plane: ControlPlane) -> None:
    plane.kubectl("create", "namespace", "kept")
    url = plane.url
    plane.kill()
    assert "refused" in plane.kubectl("get", "namespaces", check=False)
    plane.start()
    assert plane.url == url
    assert plane.kubectl("get", "namespace", "kept", "-o", "name") == "namespace/kept\n"


def test_hung_it_answers_nobody_until_it_is_let_go(plane: ControlPlane) -> None:
    with plane.hung():
        # kubectl times out while it waits for an answer or while it connects; the two messages differ.
        said = plane.kubectl("get", "nodes", "--request-timeout=1s", check=False).lower()
        assert "deadline exceeded" in said or "timeout exceeded while awaiting headers" in said
    assert plane.kubectl("get", "nodes", "-o", "name") == ""


def test_with_another_ca_the_old_identities_are_strangers(plane: ControlPlane) -> None:
    old = plane.folder / "old.kubeconfig"
    old.write_bytes(plane.admin.read_bytes())
    plane.kill()
    plane.forget_serving_certificate(new_ca=True)
    plane.start()
    assert "certificate" in plane.kubectl("get", "nodes", kubeconfig=old, check=False)
    assert plane.kubectl("get", "nodes", "-o", "name") == ""


def test_what_is_compacted_cannot_be_watched_from_any_more(plane: ControlPlane) -> None:
    plane.compact()
    plane.kill()  # its watch cache still holds a few events
    plane.start()
    said = plane.kubectl("get", "--raw", "/api/v1/namespaces?watch=1&resourceVersion=1", check=False)
    assert json.loads(said)["object"]["code"] == 410


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    require_kube()
    folder = tmp_path / "kube"
    script = "import sys, os, pathlib; from control_plane import ControlPlane\n"
    script += "ControlPlane(pathlib.Path(sys.argv[1])).start(); os._exit(9)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=Path(__file__).parent, check=False, timeout=100
    )
    assert done.returncode == 9
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()


def test_without_the_programs_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAVENVPN_KUBE", str(tmp_path))
    wanted = pytest.fail.Exception if os.environ.get("CI") == "true" else pytest.skip.Exception
    with pytest.raises(wanted, match=r"NOT RUN, NOT BUILT: .*v1\.34\.4/kube-apiserver.* run `make kube` "):
        require_kube("v1.34.4")
    with pytest.raises(wanted, match="run `make kube-all` "):
        require_kube("v1.22.17")
