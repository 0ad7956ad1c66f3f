"""Run the programs a lab is built with: with a time limit, and with their error text in the exception."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from ravenvpn.errors import HostError

TIMEOUT = 30.0  # seconds; each program takes milliseconds on an idle machine, and a loaded one is slow, not stuck


def run(argv: Sequence[str], *, input: str | None = None, timeout: float = TIMEOUT) -> str:  # noqa: A002
    """Run a program to its end and return its standard output.

    HostError if it is not installed, takes more than `timeout` seconds, or fails; then with what it printed.
    """
    try:
        done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed; a lab needs it") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{shlex.join(argv)}: did not end within {timeout:g} s") from None
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise HostError(f"{shlex.join(argv)}: {output or f'exit status {done.returncode}'}")
    return done.stdout


def ip_batch(lines: Sequence[str], namespace: str | None = None) -> None:
    """Run many commands of ip(8), one a line, in one process; in a named namespace, or outside of any.

    One process for each command would take most of the time that building a lab takes.
    """
    if lines:
        where = ["-n", namespace] if namespace else []
        run(["ip", *where, "-batch", "-"], input="".join(f"{line}\n" for line in lines))


def require(*programs: str) -> None:
    """Raise HostError that names the programs which are not installed."""
    if missing := [program for program in programs if not shutil.which(program)]:
        raise HostError(f"not installed: {', '.join(missing)}; Debian: apt-get install iproute2 nftables util-linux")
