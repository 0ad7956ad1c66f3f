"""The instruction counts of the packet path match the committed baseline; rust/instructions.py compares them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"


def _load():
    """Import rust/instructions.py, which is no package."""
    spec = importlib.util.spec_from_file_location("instructions", RUST / "instructions.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look the module up there
    spec.loader.exec_module(module)
    return module


instructions = _load()
BEFORE = instructions.Counts("x86_64", "1.95.0", {"seal": 1000, "open": 2000})


def found(**changes) -> instructions.Counts:
    """Return the baseline with some counts changed."""
    return replace(BEFORE, cases=BEFORE.cases | changes)


@pytest.mark.needs("cargo", "valgrind")
@pytest.mark.timeout(900)  # a cold build compiles everything
def test_the_instruction_counts_of_the_packet_path_match_the_baseline():
    baseline = instructions.Counts(**json.loads(instructions.BASELINE.read_text()))
    counted = instructions.count(instructions.bench_program())
    if counted.machine != baseline.machine:
        pytest.skip(f"NOTHING TO COMPARE WITH: THE BASELINE IS OF {baseline.machine}")
    differences = instructions.compare(baseline, counted)
    assert not differences, "if the change is intended: python rust/instructions.py --write"


def test_an_increase_above_the_tolerance_is_reported():
    assert instructions.compare(BEFORE, found(seal=1029)) == []
    assert instructions.compare(BEFORE, found(seal=1031)) == ["seal: 1031 instructions, +3.1% of 1000"]


def test_a_decrease_below_the_tolerance_is_reported():
    assert instructions.compare(BEFORE, found(open=1900)) == ["open: 1900 instructions, -5.0% of 2000"]


def test_another_compiler_has_a_larger_tolerance():
    assert instructions.compare(BEFORE, replace(found(seal=1200, open=100), rustc="1.99.0")) == []
    assert instructions.compare(BEFORE, replace(found(seal=1300), rustc="1.99.0")) != []


def test_new_and_removed_cases_are_reported():
    assert instructions.compare(BEFORE, replace(BEFORE, cases={"seal": 1000, "split": 5})) == [
        "open: only in the baseline",
        "split: not in the baseline",
    ]
