"""Description of the machine and of the versions that were measured, for the head of every report."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("ravenvpn", "cryptography", "uvloop", "noiseprotocol", "PyNaCl", "python-pytun")


def describe(wireguard_go: Path | None) -> dict[str, str]:
    """Return processor, memory, kernel and versions by name; "unknown" where one cannot be read."""
    kibibytes = _first(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    facts = {
        "cpu": _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()),
        "cores": str(os.cpu_count()),
        "memory": f"{int(kibibytes) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "iperf3": _first(r"iperf ([0-9.]+)", _output("iperf3", "--version")),
        "commit": _output("git", "describe", "--always", "--dirty") or "unknown",
    }
    if wireguard_go:
        # The cache has a folder for each version, named after it.
        facts["wireguard-go"] = wireguard_go.parent.name
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1).strip() if found else "unknown"


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except OSError as error:
        print(error, file=sys.stderr)
        return ""
