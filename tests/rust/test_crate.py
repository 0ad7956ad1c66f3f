"""The Rust crate of the native body passes its tests and lints, and the licences of its dependencies are allowed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"

pytestmark = pytest.mark.timeout(900)  # a cold build compiles everything


def cargo(*words: str) -> None:
    """Run cargo in the workspace; fail with its output."""
    done = subprocess.run(["cargo", *words], cwd=RUST, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def licences():
    """Import rust/licences.py, which is no package."""
    spec = importlib.util.spec_from_file_location("licences", RUST / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.needs("cargo")
def test_the_crate_passes_its_own_tests():
    cargo("test", "--locked", "--quiet", "--package", "raven-dataplane")


@pytest.mark.needs("cargo")
def test_the_crate_passes_its_own_tests_on_aarch64():
    done = subprocess.run([RUST / "aarch64.sh", "--quiet"], cwd=RUST, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(f"NOT RUN FOR AARCH64: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("cargo-fmt")
def test_the_crate_is_formatted():
    cargo("fmt", "--check")


@pytest.mark.needs("cargo-clippy")
def test_the_crate_has_no_clippy_warning():
    cargo("clippy", "--locked", "--quiet", "--all-targets", "--", "--deny", "warnings")


@pytest.mark.needs("cargo")
def test_the_licence_of_every_shipped_crate_is_allowed():
    done = subprocess.run(
        [sys.executable, RUST / "licences.py"], cwd=RUST, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ring 0.17" in done.stdout


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-2.0 OR MIT", True),
        ("GPL-2.0 AND MIT", False),
        ("MIT/Apache-2.0", True),
        ("MPL-2.0", False),
        ("Apache-2.0 WITH LLVM-exception OR MPL-2.0", True),
        ("(MIT OR GPL-3.0-only) AND ISC", True),
        ("MIT AND (GPL-3.0-only OR LGPL-2.1)", False),
        ("none", False),
    ],
)
def test_a_licence_expression_is_allowed_if_one_of_its_choices_is(expression, allowed):
    assert licences().may_ship(expression) == allowed
