"""The world from a directory of manifests (`--source file:DIR`), read and watched.

Whatever happens to the directory is a state, never an exception: while it cannot be read the last good world stays in
force and the snapshot says why. Files are looked at by size, times and inode, so a wake-up reads only what changed.
The watch is a hint to look; looking is what counts, and it happens every few seconds even where no hint comes (a
directory replaced by another one, a file system without notification).
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

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILES = 20_000
DEBOUNCE_MS = 40  # changes this close together are one
# The library's thread wakes up this often, changes or not: at 10 ms that alone costs 0.5 % of a core.
STEP_MS = 40
LOOK_ANYWAY_MS = 2_000
# A file written again within one tick of the clock it is stamped with looks unchanged; not trusted that young.
_HOT_NS = 50_000_000

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The directory at one instant. `readable` False: it cannot be read now, and `world` is the last good one."""

    world: World
    problems: tuple[Problem, ...] = ()
    readable: bool = True


class FileSource:
    """`load` looks once; `snapshots` goes on looking. One consumer at a time."""

    def __init__(
        self,
        directory: Path,
        mesh: str = DEFAULT_MESH,
        gates: Gates | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.directory = Path(directory)
        self._manifests = Manifests(mesh, gates)
        self._stamps: dict[str, _Stamp | None] = {}  # None: looked at while hot, or not read
        self._trust_stamps = True
        self._now_ns = now_ns
        self._last: Snapshot | None = None
        self._wake = asyncio.Event()
        self.api: None = None  # there is no server, and so no
        self.endpoints: tuple[()] = ()

    def __str__(self) -> str:
        return f"file:{self.directory}"

    def load(self) -> Snapshot:
        """Look at the directory now. Blocking; reads only files that changed since the last look."""
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
        """Look again now and trust no stamp (SIGHUP); a snapshot follows even if nothing differs. To be called on the
        loop that runs `snapshots`."""
        self._trust_stamps = False  # a flag, since a look may be under way in its thread
        self._last = None
        self._wake.set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The directory now, and again whenever something in it has changed."""
        hints = asyncio.create_task(self._watch(), name="watch manifests")
        try:
            while True:
                self._wake.clear()
                snapshot = await asyncio.to_thread(self.load)
                if snapshot != self._last:
                    self._last = snapshot
                    yield snapshot
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_ANYWAY_MS / 1000):
                        await self._wake.wait()
        finally:
            hints.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hints

    # Looking.

    def _changed(self) -> dict[str, bytes | Problem | None]:
        """What differs from the last look, by file name."""
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
            except FileNotFoundError:
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
            hot = self._now_ns() - read_stamp[1] < _HOT_NS
            stamps[name] = None if hot else read_stamp
        self._stamps = stamps
        return changed

    # Watching.

    async def _watch(self) -> None:
        """Turns file system events into wake-ups. Starts over whenever the directory becomes another one."""
        while True:
            identity = _identity(self.directory)
            parent = self.directory.absolute().parent
            paths = [path for path in (self.directory, parent) if path.is_dir()]
            if not paths:
                await asyncio.sleep(LOOK_ANYWAY_MS / 1000)
                continue
            try:
                async for changes in watchfiles.awatch(
                    *paths,
                    watch_filter=None,
                    debounce=DEBOUNCE_MS,
                    step=STEP_MS,
                    rust_timeout=LOOK_ANYWAY_MS,
                    yield_on_timeout=True,
                    recursive=False,
                ):
                    if changes:
                        self._wake.set()
                    if _identity(self.directory) != identity:
                        break
            except (OSError, RuntimeError):  # the library's own error is a RuntimeError
                await asyncio.sleep(LOOK_ANYWAY_MS / 1000)
            self._wake.set()


def _names(directory: Path) -> set[str]:
    """Manifests in the directory. What begins with a dot is an editor's or a ConfigMap volume's own."""
    names: set[str] = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                names.add(entry.name)
                if len(names) > MAX_FILES:
                    raise OSError(f"more than {MAX_FILES} files")
    return names


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_size,
        max(status.st_mtime_ns, status.st_ctime_ns),
        status.st_mtime_ns,
        status.st_ino,
        status.st_dev,
    )


def _read(path: Path) -> tuple[bytes, _Stamp]:
    """The bytes of a regular file and its stamp; nothing else is opened for long (a FIFO would wait for a writer)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "is not a regular file")
        content = file.read(MAX_BYTES + 1)
        return content, _stamp(status)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino
