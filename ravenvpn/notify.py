"""Notifications to systemd by sd_notify(3). The only module that imports sdnotify.

Without NOTIFY_SOCKET in the environment every method does nothing.
"""

from __future__ import annotations

import os
import time

from sdnotify import SystemdNotifier


class Notifier:
    """Sender of READY, STATUS, RELOADING, STOPPING and WATCHDOG.

    Errors are ignored, as sd_notify(3) advises: the service has to work without a supervisor."""

    def __init__(self) -> None:
        self._systemd = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._status = ""  # last one sent

    def close(self) -> None:
        """Close the socket; nothing is sent any more."""
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.close()
        self._systemd = None

    @property
    def heard(self) -> bool:
        """Whether the process was started with a notification socket."""
        return self._systemd is not None

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two WATCHDOG=1: half of WatchdogSec=, as sd_watchdog_enabled(3) advises. None: no
        watchdog."""
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
            return None
        return int(usec) / 2e6

    def ready(self) -> None:
        """Send READY=1: the start, or the reload, has finished."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Send RELOADING=1, which `ready` has to follow. Type=notify-reload of systemd ≥ 253 needs the timestamp."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Send STOPPING=1: the process is about to end."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Send WATCHDOG=1."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send the line that `systemctl status` shows, unless it was the last one sent."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if self._systemd is not None:
            self._systemd.notify(text)
