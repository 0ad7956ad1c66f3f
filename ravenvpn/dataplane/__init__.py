"""The data plane: everything that happens once per packet. `create` is the only place that chooses a body.

No handshake, no timer, no decision about who is where belongs here; that is the tunnel, one floor up.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ravenvpn.dataplane._pure import PureDataPlane
from ravenvpn.dataplane.contract import DataPlane, Timing
from ravenvpn.errors import ConfigError, HostError
from ravenvpn.offloads import Offloads

VARIABLE: Final = "RAVENVPN_DATAPLANE"
BODIES: Final = ("pure", "native")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

__all__ = ["BODIES", "VARIABLE", "boottime", "create", "native_absence"]


def boottime() -> float:
    """Seconds since boot, sleep included: the clock of everything in the tunnel."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def create(
    *,
    tun: int | None,
    offloads: Offloads | None = None,
    timing: Timing | None = None,
    clock: Callable[[], float] = boottime,
    boot_id: str | None = None,
    body: str | None = None,
) -> DataPlane:
    """Make a data plane over the TUN descriptor (see `contract.DataPlane`), not started, without sockets and peers.

    `body` forces "pure" or "native", as RAVENVPN_DATAPLANE does when it is None; otherwise native if it can be had.
    `boot_id` marks hand-over blobs (default: this boot's). Raises ConfigError for another word, HostError when the
    native body is forced and can't be had.
    """
    wanted = body if body is not None else os.environ.get(VARIABLE, "")
    if wanted not in (*BODIES, ""):
        raise ConfigError(f"there is no data plane called {wanted!r}", field=VARIABLE, remedy="pure or native")
    absence = native_absence() if wanted != "pure" else ""
    if absence and wanted == "native":
        raise HostError(f"the native data plane was asked for and can't be had: {absence}")
    make: Callable[..., DataPlane] = PureDataPlane if wanted == "pure" or absence else _native_body()
    return make(
        tun=tun,
        offloads=offloads or Offloads(),
        timing=timing or Timing(),
        clock=clock,
        boot_id=BOOT_ID.read_text().strip() if boot_id is None else boot_id,
    )


def native_absence() -> str:
    """Why the native body can't be had; empty if it can."""
    try:
        _native_body()
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return "it was not built when ravenvpn was installed (that needs Rust 1.88 or newer)"
        return f"it does not load: {error}"
    except AttributeError:
        return "it was built from another version of ravenvpn"
    return ""


def _native_body() -> Callable[..., DataPlane]:
    body: Callable[..., DataPlane] = importlib.import_module("ravenvpn.dataplane._native").NativeDataPlane
    return body
