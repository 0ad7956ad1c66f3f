"""Kernel settings under /proc/sys, and a journal of the original values of those on devices of others.

A setting of our own device disappears with the device. Any other setting is written to the journal, with its value
before us and our value, before it is changed. So `cleanup` can restore it, even after a kill at any instant.
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
# In an unprivileged container /proc/sys is read-only, and runtimes allow no mount over it. The DaemonSet mounts the
# host's /proc/sys/net here instead.
_CONTAINER_ROOT = Path("/host/proc/sys")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read(key: str) -> str | None:
    """Return the value of a key such as "net/ipv4/ip_forward", None if the kernel has no such key.

    A key is absent without its device, and all of net/ipv6 without IPv6.
    """
    try:
        return (_ROOT / key).read_text().strip()
    except OSError:
        return None


def write(key: str, value: str) -> None:
    """Set a key. Raises HostError, with EROFS where neither /proc/sys nor the container's mount is writable."""
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
class SavedSysctl:
    """One entry of the journal."""

    original: str  # value before us
    written: str  # value we wrote; if the key has another one now, another program set it since


class SysctlJournal:
    """The journal file: JSON with the boot id and, for each key, original and written value.

    Entries of another boot are void, since a reboot resets every setting. Methods block and raise HostError; one
    thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, SavedSysctl]:
        """Return the entries of this boot, by key; empty without a file."""
        try:
            content = json.loads(self._path.read_text())
            if content["boot"] != _boot_id():
                return {}
            return {key: SavedSysctl(*pair) for key, pair in content["sysctls"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise host_error(str(self._path), error.errno or 0) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(
                "the original values of this host's sysctls cannot be read",
                subject=str(self._path),
                remedy="compare `sysctl -a` with the values you want, restore them by hand, then delete the file",
            ) from error

    def store(self, entries: dict[str, SavedSysctl]) -> None:
        """Replace the file atomically and durably; without entries, delete it."""
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

    def record(self, key: str, current: str, value: str) -> None:
        """Add an entry; to be called before `key`, which is `current` now, is set to `value`.

        The original value of an earlier entry stays.
        """
        entries = self.load()
        original = entries[key].original if key in entries else current
        entries[key] = SavedSysctl(original, value)
        self.store(entries)

    def drop(self, key: str) -> None:
        """Remove the entry of a key; no effect without one."""
        entries = self.load()
        if entries.pop(key, None) is not None:
            self.store(entries)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
