"""What systemd is told (sd_notify(3)): the only door to sdnotify. Says nothing where nobody listens."""

from __future__ import annotations

import os
import time

from sdnotify import SystemdNotifier


class Notifier:
    """READY, STATUS, RELOADING, STOPPING and WATCHDOG. Errors are ignored, as sd_notify's callers are advised."""

    def __init__(self) -> None:
        self._systemd = SystemdNotifier()
        self._status = ""

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(os.environ.get("NOTIFY_SOCKET"))

    @property
    def watchdog_interval(self) -> float | None:
        """How often to say WATCHDOG=1, in seconds: half of what systemd waits. None where it does not wait."""
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
            return None
        return int(usec) / 2e6

    def ready(self) -> None:
        self._systemd.notify("READY=1")

    def reloading(self) -> None:
        """To be followed by `ready`. The timestamp is what Type=notify-reload of systemd ≥ 253 asks for."""
        self._systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._systemd.notify("STOPPING=1")

    def watchdog(self) -> None:
        self._systemd.notify("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; repeated text is not sent again."""
        if text != self._status:
            self._status = text
            self._systemd.notify(f"STATUS={text}")
