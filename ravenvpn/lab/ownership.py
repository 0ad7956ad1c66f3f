"""Who owns which namespaces, so that nothing outlives its owner for long.

Every lab has a random prefix `rv-<hex>` and, before its first namespace, a record under /run/ravenvpn-lab that names
the process that built it. A record whose owner is dead is a leftover; the next lab removes it. A lab that was kept on
purpose has a record that says so, and stays until someone asks. Namespaces without a record are somebody else's.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ravenvpn import atomic_file
from ravenvpn.errors import HostError
from ravenvpn.lab.command import ip_batch

RECORDS = Path("/run/ravenvpn-lab")
NAMESPACES = Path("/run/netns")
# In the environment of everything a lab starts, so that it is found also when its namespace is not.
MARK = "RAVENVPN_LAB"


def _started(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone. Tells a reused pid apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(rest[18])


@dataclass(frozen=True, slots=True)
class OwnershipRecord:
    """Of one lab. Everything in its folder goes when the lab does."""

    prefix: str
    owner: int
    owner_started: int
    kept: bool = False

    @classmethod
    def new(cls) -> OwnershipRecord:
        pid = os.getpid()
        started = _started(pid)
        assert started is not None  # we are running
        record = cls(f"rv-{secrets.token_hex(3)}", pid, started)
        record.folder.mkdir(parents=True, mode=0o700)
        record.write()
        return record

    @property
    def folder(self) -> Path:
        return RECORDS / self.prefix

    def write(self) -> None:
        content = json.dumps({"owner": self.owner, "started": self.owner_started, "kept": self.kept}).encode()
        atomic_file.replace(self.folder / "record", content, mode=0o644, durable=False)

    def is_left_over(self) -> bool:
        return not self.kept and _started(self.owner) != self.owner_started

    def namespaces(self) -> list[Path]:
        return sorted(NAMESPACES.glob(f"{self.prefix}-*"))


def records() -> list[OwnershipRecord]:
    found = []
    for file in RECORDS.glob("rv-*/record"):
        try:
            facts = json.loads(file.read_text())
            found.append(OwnershipRecord(file.parent.name, facts["owner"], facts["started"], facts["kept"]))
        except (OSError, ValueError, KeyError):
            continue  # being written or removed right now
    return found


def kept() -> list[str]:
    """Prefixes of the labs that were left standing on purpose."""
    return [record.prefix for record in records() if record.kept]


def sweep(also: Collection[str] = ()) -> list[str]:
    """Remove the labs of dead owners, and those with these prefixes. Returns the prefixes of what it removed."""
    removed = []
    for record in records():
        if record.is_left_over() or record.prefix in also:
            remove(record)
            removed.append(record.prefix)
    return removed


def remove(record: OwnershipRecord) -> None:
    """End every process in the lab, delete its namespaces (and with them every device), forget it."""
    _end(record)
    names = [path.name for path in record.namespaces()]
    ip_batch("".join(f"netns delete {name}\n" for name in names))
    shutil.rmtree(record.folder, ignore_errors=True)


def _end(record: OwnershipRecord) -> None:
    deadline = time.monotonic() + 10
    # More than one round: a process may have forked between being seen and being killed.
    while pids := _processes(record):
        if time.monotonic() > deadline:
            raise HostError(f"{record.prefix}: processes {pids} do not end")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def _processes(record: OwnershipRecord) -> list[int]:
    """Everything alive that carries the lab's mark or is in one of its network namespaces."""
    mark = f"{MARK}={record.prefix}".encode()
    inodes = {path.stat().st_ino for path in record.namespaces()}
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            inside = os.stat(f"/proc/{pid}/ns/net").st_ino in inodes
            if inside or mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue  # gone, or a zombie
    return [pid for pid in found if pid != os.getpid() and _started(pid) is not None]
