"""Kernel settings under /proc/sys, and the memory of those that were not ours to begin with.

A key that lives on our own devices vanishes with them. Any other one is remembered, with what stood there and what we
wrote, before it is changed; so `cleanup` can put it back, even after a kill at any instant.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

from ravenvpn import atomic_file
from ravenvpn.errors import HostError
from ravenvpn.node.errors import host_error

_ROOT = Path("/proc/sys")
# The /proc/sys of a container that is not privileged is read-only, and no runtime lets anything be mounted over it.
# So the DaemonSet mounts the host's /proc/sys/net here.
_CONTAINER_ROOT = Path("/host/proc/sys")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read(key: str) -> str | None:
    """The value of "net/ipv4/…", None where the kernel has no such key (no device, no IPv6)."""
    try:
        return (_ROOT / key).read_text().strip()
    except OSError:
        return None


def write(key: str, value: str) -> None:
    try:
        try:
            (_ROOT / key).write_text(value + "\n")
        except OSError as error:
            if error.errno != errno.EROFS or not _CONTAINER_ROOT.is_dir():
                raise
            (_CONTAINER_ROOT / key).write_text(value + "\n")
    except OSError as error:
        raise host_error(f"sysctl {key}={value}", error.errno or 0) from error


@dataclass(frozen=True, slots=True)
class Remembered:
    """`original` is what stood there before us, `written` what we put."""

    original: str
    written: str


class Originals:
    """The file that remembers. Entries of another boot mean nothing: a reboot has put everything back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Remembered]:
        try:
            content = json.loads(self._path.read_text())
            if content["boot"] != _boot_id():
                return {}
            return {key: Remembered(*pair) for key, pair in content["sysctls"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise host_error(str(self._path), error.errno or 0) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(
                "what this host's sysctls were before us can't be read",
                subject=str(self._path),
                remedy="put back by hand what `sysctl -a` shows changed, then delete the file",
            ) from error

    def store(self, entries: dict[str, Remembered]) -> None:
        """Whole or not at all, and on the disk before a sysctl is touched."""
        try:
            if not entries:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "boot": _boot_id(),
                "sysctls": {key: [entry.original, entry.written] for key, entry in sorted(entries.items())},
            }
            atomic_file.replace(self._path, json.dumps(content, indent=1).encode(), mode=0o644)
        except OSError as error:
            raise host_error(str(self._path), error.errno or 0) from error

    def remember(self, key: str, current: str, value: str) -> None:
        """Before `key`, now `current`, becomes `value`. What was remembered first stays."""
        entries = self.load()
        original = entries[key].original if key in entries else current
        entries[key] = Remembered(original, value)
        self.store(entries)

    def forget(self, key: str) -> None:
        entries = self.load()
        if entries.pop(key, None) is not None:
            self.store(entries)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
