"""The packet path takes no more instructions than it did, where valgrind can count them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"


def _load():
    spec = importlib.util.spec_from_file_location("instructions", RUST / "instructions.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


instructions = _load()
BEFORE = instructions.Counts("x86_64", "1.95.0", {"seal": 1000, "open": 2000})


def found(**changes) -> instructions.Counts:
    return replace(BEFORE, cases=BEFORE.cases | changes)


@pytest.mark.needs("cargo", "valgrind")
@pytest.mark.timeout(900)  # a cold build compiles everything
def test_every_step_of_the_packet_path_takes_what_the_baseline_says():
    baseline = instructions.Counts(**json.loads(instructions.BASELINE.read_text()))
    counted = instructions.count(instructions.bench_program())
    if counted.machine != baseline.machine:
        pytest.skip(f"NOTHING TO COMPARE WITH: THE BASELINE IS OF {baseline.machine}")
    complaints = instructions.compare(baseline, counted)
    assert not complaints, "if it is meant: python rust/instructions.py --write"


def test_more_than_the_tolerance_is_told():
    assert instructions.compare(BEFORE, found(seal=1029)) == []
    assert instructions.compare(BEFORE, found(seal=1031)) == ["seal: 1031 instructions, +3.1% of 1000"]


def test_a_baseline_that_became_too_high_is_told():
    assert instructions.compare(BEFORE, found(open=1900)) == ["open: 1900 instructions, -5.0% of 2000"]


def test_another_compiler_is_allowed_more():
    assert instructions.compare(BEFORE, replace(found(seal=1200, open=100), rustc="1.99.0")) == []
    assert instructions.compare(BEFORE, replace(found(seal=1300), rustc="1.99.0")) != []


def test_cases_that_come_and_go_are_told():
    assert instructions.compare(BEFORE, replace(BEFORE, cases={"seal": 1000, "split": 5})) == [
        "open: only in the baseline",
        "split: not in the baseline",
    ]
