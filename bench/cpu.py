"""Processor time and memory of process trees and of the whole machine, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


@dataclass(frozen=True, slots=True)
class Usage:
    """Core-seconds since some start. The difference of two values is the usage in between."""

    processes: float  # of the given process trees, user and system, with children that have ended
    machine: float  # of all cores: user, system and interrupts
    stolen: float  # of all cores: given to other machines by the hypervisor
    elapsed: float  # seconds of time

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            self.processes - earlier.processes,
            self.machine - earlier.machine,
            self.stolen - earlier.stolen,
            self.elapsed - earlier.elapsed,
        )


def now(roots: Iterable[int]) -> Usage:
    """Return the usage so far of the machine and of the process trees with these pids at their roots."""
    # proc(5): user nice system idle iowait irq softirq steal guest guest_nice; guests are part of user and nice.
    user, nice, system, _, _, irq, softirq, steal, *_ = (
        int(ticks) * TICK for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return Usage(_trees(roots), user + nice + system + irq + softirq, steal, uptime)


def resident(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes together, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return float(sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids))


def _trees(roots: Iterable[int]) -> float:
    times: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:
            continue  # the process has ended; its time is part of its parent's cutime
        fields = stat.rpartition(")")[2].split()  # from field 3, the state; proc_pid_stat(5)
        children[int(fields[1])].append(int(entry.name))
        times[int(entry.name)] = sum(int(ticks) for ticks in fields[11:15])  # utime stime cutime cstime
    total, waiting = 0, list(roots)
    while waiting:
        pid = waiting.pop()
        total += times.get(pid, 0)
        waiting += children[pid]
    return total * TICK
