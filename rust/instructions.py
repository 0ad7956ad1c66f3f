"""Compare the instruction counts of the packet path's steps, under callgrind, with the committed baseline.

    python instructions.py            compare; exits 1 if a case differs by more than the tolerance
    python instructions.py --write    write the counts as the new baseline (instructions.json)

Counts show whether our code does more work than before, which times on a busy machine do not. They do not depend on
the processor, because valgrind emulates the same one everywhere (AVX2 and AES-NI, no VAES); on newer processors AEAD
takes other code paths. They depend on the compiler, so with another compiler than the baseline's only large changes
count.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
TOLERANCE = 0.03  # relative difference from the baseline
TOLERANCE_OF_ANOTHER_COMPILER = 0.25  # the same if rustc differs from the baseline's
# Repetitions of the two runs of a case. Both contain the same start-up and set-up, so their difference is that of the
# repetitions alone.
FEW, MANY = 2, 12


@dataclass(frozen=True)
class Counts:
    """Instruction counts by case, and the environment they depend on."""

    machine: str  # platform.machine()
    rustc: str  # version
    cases: dict[str, int]  # instructions of one run of the case


def bench_program() -> Path:
    """Build `benches/packets.rs` and return the path of the program."""
    command = ["cargo", "bench", "--locked", "--no-run", "--package=raven-dataplane", "--bench=packets"]
    done = subprocess.run(
        [*command, "--message-format=json"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        check=True,
    )
    messages = map(json.loads, done.stdout.splitlines())
    (program,) = (m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "packets")
    return Path(program)


def count_instructions(program: Path, case: str, times: int) -> int:
    """Return the instructions of the whole program, running the case so many times. Raises RuntimeError."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, "--count", case, str(times)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"{case}: {done.stderr}")
    return int(found[1])


def count(program: Path) -> Counts:
    """Count every case, on all cores."""
    listed = subprocess.run([program, "--cases"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()

    def one(case: str) -> int:
        difference = count_instructions(program, case, MANY) - count_instructions(program, case, FEW)
        return round(difference / (MANY - FEW))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cases = dict(zip(listed, pool.map(one, listed), strict=True))
    version = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return Counts(platform.machine(), version.split()[1], cases)


def compare(baseline: Counts, found: Counts) -> list[str]:
    """Return the differences beyond the tolerance, one line each; none if the baseline is of another machine type.

    Lower counts are reported too: a baseline that is too high would hide the next regression.
    """
    if baseline.machine != found.machine:
        return []
    same = baseline.rustc == found.rustc
    tolerance = TOLERANCE if same else TOLERANCE_OF_ANOTHER_COMPILER
    differences = [f"{name}: not in the baseline" for name in found.cases.keys() - baseline.cases.keys()]
    differences += [f"{name}: only in the baseline" for name in baseline.cases.keys() - found.cases.keys()]
    for name in baseline.cases.keys() & found.cases.keys():
        before, now = baseline.cases[name], found.cases[name]
        if now > before * (1 + tolerance) or (same and now < before * (1 - tolerance)):
            differences.append(f"{name}: {now} instructions, {now / before - 1:+.1%} of {before}")
    return sorted(differences)


def main() -> int:
    """Compare with the baseline or replace it; return the exit status."""
    found = count(bench_program())
    if "--write" in sys.argv:
        BASELINE.write_text(json.dumps(asdict(found), indent=1) + "\n")
        return 0
    for name, number in found.cases.items():
        print(f"{number:10} {name}")
    differences = compare(Counts(**json.loads(BASELINE.read_text())), found)
    print(*differences, sep="\n", end="\n" if differences else "")
    return min(len(differences), 1)


if __name__ == "__main__":
    sys.exit(main())
