"""Atomic file writes: a reader sees the old content or the new one, never a part of either.

The content goes to a temporary file in the same folder, which then takes the final name in one system call (rename(2)
or link(2)). Both need the same file system, hence the same folder. `tempfile.mkstemp` makes the temporary file with
O_CREAT, O_EXCL and O_NOFOLLOW, a random name and mode 0600: a file or symbolic link that another program put there is
neither followed nor overwritten, and two writers do not disturb each other.

Durability needs two fsync(2): of the file before the rename, or a power loss can leave an empty file under the final
name; and of the folder after it, or the rename itself can be lost (fsync(2), "NOTES").

All functions block on the disk. They raise OSError; the caller maps it to the error of its floor.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Write `content` to `path`, in place of the file that is there, if any.

    `mode` is exact: the umask does not apply. A symbolic link at `path` is replaced, not followed. `durable=False`
    leaves out fsync(2), for files that are of no use after a reboot. On failure the old file stays, except when only
    the fsync of the folder failed: then the new file is in place, but a power loss may bring the old one back.
    """
    temporary = _write_temporary(path, content, mode, durable)
    try:
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    if durable:
        _sync_folder(path.parent)


def create(path: Path, content: bytes, *, mode: int = 0o600) -> bool:
    """Write `content` to `path` if nothing has that name yet; return whether this call made the file.

    Of several processes that do this at the same time exactly one makes the file. The file system must support hard
    links (EPERM otherwise).
    """
    temporary = _write_temporary(path, content, mode, durable=True)
    try:
        os.link(temporary, path)  # fails if the name exists, unlike rename(2)
    except FileExistsError:
        return False
    finally:
        _remove(temporary)
    _sync_folder(path.parent)
    return True


def _write_temporary(path: Path, content: bytes, mode: int, durable: bool) -> str:
    """Return the name of a new file beside `path` with all of `content`; nothing is left on failure."""
    # The leading dot hides the file from watchers of the folder; they ignore such names.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def _remove(temporary: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
