"""Ownership records of labs, so that a lab whose process was killed is removed by the next one.

Every lab has a random prefix `rv-<hex>`. A record under /run/ravenvpn-lab, written before the first namespace exists,
names the process that builds the lab. If that process is dead, the lab is orphaned and the next lab removes it. A lab
that was kept on purpose is marked so in its record, and stays until it is named in a call of `sweep`. Namespaces
without a record belong to other programs and are never touched.
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

RECORDS = Path("/run/ravenvpn-lab")  # one folder for each lab; gone after a reboot, as the namespaces are
NAMESPACES = Path("/run/netns")  # where ip(8) binds named network namespaces
# Environment variable of every process that a lab starts, with the lab's prefix. It finds a process that has left, or
# not yet entered, a namespace of the lab.
MARK = "RAVENVPN_LAB"
KILL_TIMEOUT = 10.0  # seconds until all processes of a lab are gone after SIGKILL


def _start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (proc_pid_stat(5), field 22); None if it is gone or a
    zombie. Together with the pid it identifies a process: pids are reused."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name in front may contain spaces and brackets
    return None if state in "ZX" else int(rest[18])


@dataclass(frozen=True, slots=True)
class OwnershipRecord:
    """Record of one lab: who built it, and whether it stays after that process has ended."""

    prefix: str  # "rv-" and 6 hex digits; names of all its namespaces begin with it
    owner: int  # pid
    owner_started: int  # start time of that process, clock ticks since boot
    kept: bool = False

    @classmethod
    def new(cls) -> OwnershipRecord:
        """Return the written record of a new lab, owned by this process."""
        pid = os.getpid()
        started = _start_time(pid)
        assert started is not None  # this process runs
        record = cls(f"rv-{secrets.token_hex(3)}", pid, started)
        record.folder.mkdir(parents=True, mode=0o700)
        record.write()
        return record

    @property
    def folder(self) -> Path:
        """Folder for the record and for files of the lab, removed with the lab. Mode 0700, for logs and captures."""
        return RECORDS / self.prefix

    def write(self) -> None:
        """Write the record in one step, so that another lab never reads half of it."""

        content = json.dumps({"owner": self.owner, "started": self.owner_started, "kept": self.kept}).encode()
        atomic_file.replace(self.folder / "record", content, mode=0o644, durable=False)

    def is_orphaned(self) -> bool:
        """Return whether the owner is dead and the lab was not kept on purpose."""
        return not self.kept and _start_time(self.owner) != self.owner_started

    def namespaces(self) -> list[Path]:
        """Return the paths of the lab's network namespaces that exist."""
        return sorted(NAMESPACES.glob(f"{self.prefix}-*"))


def records() -> list[OwnershipRecord]:
    """Return the records of all labs on this machine."""
    found = []
    for file in RECORDS.glob("rv-*/record"):
        try:
            fields = json.loads(file.read_text())
            found.append(OwnershipRecord(file.parent.name, fields["owner"], fields["started"], fields["kept"]))
        except (OSError, ValueError, KeyError):
            continue  # another process removes it at this moment
    return found


def kept_labs() -> list[str]:
    """Return the prefixes of the labs that were kept on purpose."""
    return [record.prefix for record in records() if record.kept]


def sweep(also: Collection[str] = ()) -> list[str]:
    """Remove orphaned labs, and the labs with the prefixes in `also`. Return the prefixes of the removed labs.

    HostError if a process of such a lab cannot be killed.
    """
    removed = []
    for record in records():
        if record.is_orphaned() or record.prefix in also:
            remove(record)
            removed.append(record.prefix)
    return removed


def remove(record: OwnershipRecord) -> None:
    """Kill every process of a lab, delete its namespaces and with them every device, then its folder with the record.

    The record goes last: if this process is killed in between, the next lab finishes the removal.
    """
    _kill_processes(record)
    ip_batch([f"netns delete {path.name}" for path in record.namespaces()])
    shutil.rmtree(record.folder, ignore_errors=True)


def _kill_processes(record: OwnershipRecord) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT
    # The list is read again after each round: a process may have forked before it was killed.
    while pids := _processes(record):
        if time.monotonic() > deadline:
            raise HostError(f"{record.prefix}: processes {pids} still run {KILL_TIMEOUT:g} s after SIGKILL")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def _processes(record: OwnershipRecord) -> list[int]:
    """Return the pids of other processes that have the lab's mark or are in one of its network namespaces."""
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
            continue  # the process has ended, or is a zombie
    return [pid for pid in found if pid != os.getpid() and _start_time(pid) is not None]
