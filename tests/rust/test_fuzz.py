"""Fuzzing of the native body under AddressSanitizer: both directions on real descriptors, and coalescing.

Ten seconds per target in CI, ten minutes per target with `make soak`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "rust" / "fuzz"
TARGETS = ["udp", "tun", "join"]

pytestmark = [pytest.mark.needs("cargo", "g++"), pytest.mark.timeout(1800)]


def fuzz(target: str, seconds: int) -> None:
    """Run one fuzz target; fail with its output if it finds a crash."""
    done = subprocess.run([FUZZ / "run.sh", str(seconds), target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="NOT RUN, TAKES MINUTES: WITH CI=true OR make soak")
@pytest.mark.parametrize("target", TARGETS)
def test_ten_seconds_of_fuzzing_find_no_crash(target):
    fuzz(target, 10)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_ten_minutes_of_fuzzing_find_no_crash(target):
    fuzz(target, 600)
