"""What systemd is told (sd_notify(3)): the only door to sdnotify. Says nothing where nobody listens."""

from __future__ import annotations

import os
import time

from sdnotify import SystemdNotifier


class Notifier:
    """READY, STATUS, RELOADING, STOPPING and WATCHDOG. Errors are ignored, as sd_notify's callers are advised."""

    def __init__(self) -> None:
        self._systemd = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._status = ""

    def close(self) -> None:
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.close()
        self._systemd = None

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._systemd is not None

    @property
    def watchdog_interval(self) -> float | None:
        """How often to say WATCHDOG=1, in seconds: half of what systemd waits. None where it does not wait."""
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
            return None
        return int(usec) / 2e6

    def ready(self) -> None:
        self._tell("READY=1")

    def reloading(self) -> None:
        """To be followed by `ready`. The timestamp is what Type=notify-reload of systemd ≥ 253 asks for."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def watchdog(self) -> None:
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; repeated text is not sent again."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def _tell(self, text: str) -> None:
        if self._systemd is not None:
            self._systemd.notify(text)
