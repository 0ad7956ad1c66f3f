"""Decide whether this controller elects, or OpenYurt's yurt-manager, which writes the same status.

Two controllers that elect would revert each other without end, so this one steps back while yurt-manager may be
running. There are two signs of it: managedFields of a Gateway hold the time of its last write of a status, and its
Lease in kube-system is renewed while it runs, also when it finds nothing to write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravenvpn import rfc3339
from ravenvpn.k8s.controller.decode import YURT_MANAGER, CachedGateway
from ravenvpn.k8s.controller.options import ElectMode

# Seconds for which a write of yurt-manager that this controller has not overwritten counts as a sign of life, where
# its Lease cannot be read.
WRITE_IS_RECENT = 3600.0
# Seconds after its renewal for which the Lease counts as held; yurt-manager's lease duration is 15 s by default.
LEASE_IS_ALIVE = 60.0


@dataclass(frozen=True, slots=True)
class ElectionOwner:
    """Whether this controller elects."""

    elects: bool
    why: str  # for logs, the event and /readyz
    gateway: str = ""  # the Gateway that yurt-manager wrote last; empty: none


def election_owner(
    mode: ElectMode,
    gateways: Iterable[CachedGateway],
    field_manager: str,
    lease_renewed: float | None,
    now: float,
) -> ElectionOwner:
    """Return whether this controller elects, with the reason.

    `field_manager` is the name under which it writes itself; `lease_renewed` the time of the last renewal of
    yurt-manager's Lease, None if there is none. Times are seconds since 1970.
    """
    if mode is ElectMode.OWN:
        return ElectionOwner(True, "--elect=own: this controller elects whether or not yurt-manager does")
    if mode is ElectMode.DEFER:
        return ElectionOwner(False, "--elect=defer: the election is left to another controller")
    latest: tuple[float, str] | None = None
    newer_than_ours = False  # yurt-manager's write is the last one on some Gateway
    for gateway in gateways:
        theirs = max((w.at for w in gateway.writers if YURT_MANAGER in w.manager), default=None)
        if theirs is None:
            continue
        own = max((w.at for w in gateway.writers if w.manager == field_manager), default=0.0)
        newer_than_ours |= theirs > own
        if latest is None or theirs > latest[0]:
            latest = (theirs, gateway.name)
    if latest is None:
        return ElectionOwner(True, "no other controller writes the status of Gateways")
    at, name = latest
    wrote = f"yurt-manager wrote the status of Gateway {name} at {rfc3339.format_time(at)}"
    if lease_renewed is not None and now - lease_renewed < LEASE_IS_ALIVE:
        return ElectionOwner(False, f"{wrote}, and its Lease is being renewed", name)
    if newer_than_ours and now - at < WRITE_IS_RECENT:
        return ElectionOwner(False, wrote, name)
    return ElectionOwner(True, f"{wrote}, has not written since, and does not renew its Lease", name)
