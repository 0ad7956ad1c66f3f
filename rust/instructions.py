"""How many instructions the steps of the packet path take, under callgrind, beside the committed baseline.

    python instructions.py            compare; exits 1 if one differs by more than the tolerance
    python instructions.py --write    make what is found the baseline (instructions.json)

Counts say what time cannot on a busy machine: whether our code does more than it did. They do not depend on the
processor, for valgrind shows every program the same one (AVX2 and AES-NI, no VAES): on newer ones AEAD takes other
paths. They do depend on the compiler, so with another one than the baseline's only gross changes count.
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
TOLERANCE = 0.03
TOLERANCE_OF_ANOTHER_COMPILER = 0.25
# What starting and setting up takes is in both runs, so the difference is that of the repetitions alone.
FEW, MANY = 2, 12


@dataclass(frozen=True)
class Counts:
    """Instructions of one run of each case, and what they depend on."""

    machine: str
    rustc: str
    cases: dict[str, int]


def bench_program() -> Path:
    """The compiled `benches/packets.rs`."""
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


def instructions(program: Path, case: str, times: int) -> int:
    """Of the whole program, running the case so many times."""
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
    """Every case, on as many cores as there are."""
    listed = subprocess.run([program, "--cases"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()

    def one(case: str) -> int:
        return round((instructions(program, case, MANY) - instructions(program, case, FEW)) / (MANY - FEW))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cases = dict(zip(listed, pool.map(one, listed), strict=True))
    version = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return Counts(platform.machine(), version.split()[1], cases)


def compare(baseline: Counts, found: Counts) -> list[str]:
    """What is not as it was, a sentence each. Less than before counts too: a baseline that is too high would hide
    the next step back."""
    if baseline.machine != found.machine:
        return []
    same = baseline.rustc == found.rustc
    tolerance = TOLERANCE if same else TOLERANCE_OF_ANOTHER_COMPILER
    complaints = [f"{name}: not in the baseline" for name in found.cases.keys() - baseline.cases.keys()]
    complaints += [f"{name}: only in the baseline" for name in baseline.cases.keys() - found.cases.keys()]
    for name in baseline.cases.keys() & found.cases.keys():
        before, now = baseline.cases[name], found.cases[name]
        if now > before * (1 + tolerance) or (same and now < before * (1 - tolerance)):
            complaints.append(f"{name}: {now} instructions, {now / before - 1:+.1%} of {before}")
    return sorted(complaints)


def main() -> int:
    found = count(bench_program())
    if "--write" in sys.argv:
        BASELINE.write_text(json.dumps(asdict(found), indent=1) + "\n")
        return 0
    for name, number in found.cases.items():
        print(f"{number:10} {name}")
    complaints = compare(Counts(**json.loads(BASELINE.read_text())), found)
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return min(len(complaints), 1)


if __name__ == "__main__":
    sys.exit(main())
