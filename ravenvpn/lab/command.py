"""Running the programs a lab is made with: bounded in time, and clear when they fail."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from ravenvpn.errors import HostError

TIMEOUT = 30.0  # seconds; each of them takes milliseconds when all is well


def run(argv: Sequence[str], *, input: str | None = None, timeout: float = TIMEOUT) -> str:  # noqa: A002
    """Its standard output. HostError, with what it said, if it fails, is not there or takes too long."""
    try:
        done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed; a lab needs it") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{shlex.join(argv)}: no end within {timeout:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise HostError(f"{shlex.join(argv)}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def ip_batch(commands: str, namespace: str | None = None) -> None:
    """Many commands of ip(8), a line each, by one process."""
    if commands:
        where = ["-n", namespace] if namespace else []
        run(["ip", *where, "-batch", "-"], input=commands)


def require(*programs: str) -> None:
    """HostError that names what is missing."""
    if missing := [program for program in programs if not shutil.which(program)]:
        raise HostError(f"not installed: {', '.join(missing)}; Debian: apt-get install iproute2 nftables util-linux")
