"""Key files: mode 0600, written atomically, and refused if other users can read or write them.

A file holds one key in wg's base64 and a newline, so that `wg genkey > file` and `wg set … private-key file` fit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ravenvpn import atomic_file
from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.errors import ConfigError

_Key = TypeVar("_Key", PrivateKey, PresharedKey)

_LONGEST = 256  # bytes; a key takes 45


def load(path: Path) -> PrivateKey:
    """Return the private key in `path`. ConfigError names the file and the remedy."""
    return _parsed(path, PrivateKey.from_base64)


def load_preshared(path: Path) -> PresharedKey:
    """Return the preshared key in `path`. ConfigError as in `load`."""
    return _parsed(path, PresharedKey.from_base64)


def load_or_create(path: Path, random: Callable[[int], bytes]) -> PrivateKey:
    """Return the private key in `path`; if there is no such file, write a new one from `random` first.

    Several processes that do this at the same time all return the same key.
    """
    if not os.path.lexists(path):
        _write(path, PrivateKey.generate(random).to_base64(), atomic_file.create)
    return load(path)


def save(path: Path, key: PrivateKey | PresharedKey) -> None:
    """Write `key` to `path` atomically: a reader sees the old key or the new one."""
    _write(path, key.to_base64(), atomic_file.replace)


def _parsed(path: Path, parse: Callable[[str], _Key]) -> _Key:
    try:
        return parse(_read(path))
    except ConfigError as error:
        raise ConfigError(error.message, where=str(path), remedy=error.remedy) from None


def _read(path: Path) -> str:
    # O_NONBLOCK: opening a FIFO must not hang. Everything is asked of the descriptor, so nothing can be swapped
    # between the check and the read. Symbolic links are followed: that is how a kubelet mounts a Secret.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(error.strerror or "cannot be opened") from None
    try:
        _check_owner_and_mode(path, os.fstat(descriptor))
        content = os.read(descriptor, _LONGEST + 1)
    except OSError as error:
        raise ConfigError(error.strerror or "cannot be read") from None
    finally:
        os.close(descriptor)
    if len(content) > _LONGEST:
        raise ConfigError("is too long for a key file")
    return content.decode("ascii", "replace").strip()


def _check_owner_and_mode(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError("is not a regular file")
    if facts.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"belongs to user {facts.st_uid}", remedy=f"chown {os.geteuid()} {path}")
    if facts.st_mode & 0o077:
        raise ConfigError(
            f"holds a secret that others may read or write (mode {stat.S_IMODE(facts.st_mode):04o})",
            remedy=f"chmod 600 {path}; for a mounted Secret set defaultMode: 0400",
        )


def _write(path: Path, text: str, put: Callable[[Path, bytes], object]) -> None:
    """Write `text` and a newline to `path` by `put`, one of the functions of `atomic_file`. Both write mode 0600 from
    the first byte on, so at no instant is there a readable or half-written file, not even after a crash."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        put(path, f"{text}\n".encode("ascii"))
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(path), remedy=_REMEDIES.get(error.errno or 0, "")
        ) from None


_REMEDIES = {
    errno.EACCES: "run as root or choose a directory of your own",
    errno.EPERM: "the file system must know owners, modes and hard links",
    errno.EROFS: "choose a directory on a writable file system",
}
