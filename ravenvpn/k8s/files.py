"""The world from a directory of manifests (`source: file:DIR`): read, watched and read again.

Every failure of the directory is a state, never an exception: while it cannot be read the last good world stays in
force, and the snapshot has the reason. Size, times and inode of each file are compared, so a scan reads only changed
files. Notifications (inotify) only make the next scan earlier: a scan also happens every two seconds, for a directory
that was replaced by another one, or a file system without notifications.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import watchfiles

from ravenvpn.k8s.directory import Manifests
from ravenvpn.k8s.manifest import MAX_BYTES
from ravenvpn.k8s.problems import Problem
from ravenvpn.mesh.model import DEFAULT_MESH, World
from ravenvpn.mesh.status import Gates

SUFFIXES = (".yaml", ".yml", ".json")  # of files that are read; other files are ignored
MAX_FILES = 20_000  # in the directory; bounds the time of a scan
DEBOUNCE_MS = 40  # changes within this time are one wake-up
# Interval at which the thread of watchfiles polls its queue: 10 ms would take 0.5 % of a core.
STEP_MS = 40
SCAN_INTERVAL_MS = 2_000  # between scans without a notification
# Nanoseconds. Two writes within one tick of the kernel's clock (up to 10 ms) give a file the same times: a file that
# changed more recently than this is read again at the next scan.
_HOT_NS = 50_000_000

# Size, the later of mtime and ctime, mtime, inode, device. Times are nanoseconds. ctime shows a change even if a tool
# restores mtime.
_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world that is in force at one instant."""

    world: World
    problems: tuple[Problem, ...] = ()  # of objects and files as they are now
    readable: bool = True  # False: the directory cannot be read now, and `world` is the last good one


class FileSource:
    """Source of snapshots from a directory: `load` scans once, `snapshots` keeps scanning. One consumer at a time."""

    def __init__(
        self,
        directory: Path,
        mesh: str = DEFAULT_MESH,
        gates: Gates | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`mesh` and `gates` as in `Manifests`; `now_ns` is Unix time in nanoseconds, the clock of file times."""
        self.directory = Path(directory)
        self._manifests = Manifests(mesh, gates)
        self._stamps: dict[str, _Stamp | None] = {}  # by file name; None: read while hot, or not readable
        self._trust_stamps = True
        self._now_ns = now_ns
        self._last: Snapshot | None = None
        self._wake = asyncio.Event()
        # A directory has no API server; both attributes are part of what an agent asks of a source.
        self.api: None = None
        self.endpoints: tuple[()] = ()

    def __str__(self) -> str:
        return f"file:{self.directory}"

    def load(self) -> Snapshot:
        """Scan the directory now. Blocks on the disk; reads only files that changed since the last scan."""
        try:
            changed = self._changed()
        except OSError as error:
            problem = Problem(
                f"cannot be read: {error.strerror or error}; the last good world stays in force",
                "make the directory readable to the agent",
                file=str(self.directory),
            )
            return Snapshot(self._manifests.world, (problem, *self._manifests.problems), readable=False)
        self._manifests.update(changed)
        return Snapshot(self._manifests.world, self._manifests.problems)

    def reload(self) -> None:
        """Read all files again now (SIGHUP), and yield a snapshot even if nothing changed.

        To be called on the loop that runs `snapshots`."""
        self._trust_stamps = False  # a flag, because a scan may be running in its thread
        self._last = None
        self._wake.set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the directory as it is now, and again after each change."""
        hints = asyncio.create_task(self._watch(), name="watch manifests")
        try:
            while True:
                self._wake.clear()
                # In a thread: a disk or a network file system may block.
                snapshot = await asyncio.to_thread(self.load)
                if snapshot != self._last:
                    self._last = snapshot
                    yield snapshot
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SCAN_INTERVAL_MS / 1000):
                        await self._wake.wait()
        finally:
            hints.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hints

    # Scanning.

    def _changed(self) -> dict[str, bytes | Problem | None]:
        """Files that differ from the last scan, by name: content, Problem, or None if removed.

        Raises OSError if the directory cannot be read."""
        names = _names(self.directory)
        trusted, self._trust_stamps = self._trust_stamps, True
        changed: dict[str, bytes | Problem | None] = dict.fromkeys(self._stamps.keys() - names)
        stamps: dict[str, _Stamp | None] = {}
        for name in names:
            path = self.directory / name
            known = self._stamps.get(name) if trusted else None
            try:
                stamp = _stamp(os.stat(path))
                if known is not None and known == stamp:
                    stamps[name] = stamp
                    continue
                content, read_stamp = _read(path)
            except FileNotFoundError:  # removed since the directory was listed, or a dangling link
                if name in self._stamps:
                    changed[name] = None
                continue
            except OSError as error:
                changed[name] = Problem(
                    f"cannot be read: {error.strerror or error}", "make it a file the agent may read", file=name
                )
                stamps[name] = None
                continue
            changed[name] = content
            # The stamp is that of the open descriptor, taken before the read: a change during it shows next time.
            hot = self._now_ns() - read_stamp[1] < _HOT_NS
            stamps[name] = None if hot else read_stamp
        self._stamps = stamps
        return changed

    # Watching.

    async def _watch(self) -> None:
        """Set `_wake` after file system events. Starts a new watch whenever the path becomes another directory.

        The parent is watched too, for the moment when the directory is created or replaced."""
        while True:
            identity = _identity(self.directory)
            parent = self.directory.absolute().parent
            paths = [path for path in (self.directory, parent) if path.is_dir()]
            if not paths:
                await asyncio.sleep(SCAN_INTERVAL_MS / 1000)
                continue
            try:
                async for changes in watchfiles.awatch(
                    *paths,
                    watch_filter=None,
                    debounce=DEBOUNCE_MS,
                    step=STEP_MS,
                    rust_timeout=SCAN_INTERVAL_MS,
                    yield_on_timeout=True,
                    recursive=False,
                ):
                    if changes:
                        self._wake.set()
                    if _identity(self.directory) != identity:
                        break
            except (OSError, RuntimeError):  # watchfiles raises a RuntimeError of its own
                await asyncio.sleep(SCAN_INTERVAL_MS / 1000)
            self._wake.set()


def _names(directory: Path) -> set[str]:
    """Names of the manifests. Names with a leading dot are temporary files or parts of a ConfigMap volume."""
    names: set[str] = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                names.add(entry.name)
                if len(names) > MAX_FILES:
                    raise OSError(f"more than {MAX_FILES} files")
    return names


def _stamp(status: os.stat_result) -> _Stamp:
    """The fields of stat(2) that show a change of the content."""
    return (
        status.st_size,
        max(status.st_mtime_ns, status.st_ctime_ns),
        status.st_mtime_ns,
        status.st_ino,
        status.st_dev,
    )


def _read(path: Path) -> tuple[bytes, _Stamp]:
    """Content and stamp of a regular file. O_NONBLOCK: opening a FIFO would otherwise wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "is not a regular file")
        content = file.read(MAX_BYTES + 1)
        return content, _stamp(status)


def _identity(directory: Path) -> tuple[int, int] | None:
    """Device and inode of the directory, which differ if another one took its place; None if there is none."""
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino
