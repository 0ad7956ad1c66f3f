"""Whether another controller elects here: upstream's yurt-manager, which writes the same status.

Two that elect would undo each other's work for ever, so this one steps back while there is reason to think that
yurt-manager is there. managedFields tell who wrote a status and when; its Lease tells whether it runs now, since a
controller that finds nothing to change leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ravenvpn import rfc3339
from ravenvpn.k8s.controller.decode import YURT_MANAGER, HeldGateway

# Seconds. A write is taken as a sign of life for an hour, a renewed Lease (15 s by default) for a minute.
RECENT = 3600.0
ALIVE = 60.0


class Elect(StrEnum):
    """`--elect`: look who writes, elect whatever others do, or leave it to others."""

    AUTO = "auto"
    OWN = "own"
    DEFER = "defer"


@dataclass(frozen=True, slots=True)
class Opinion:
    """Whether we elect, and why, as a sentence for a person; the Gateway it was seen on, if any."""

    elects: bool
    why: str
    gateway: str = ""


def judge(
    elect: Elect, gateways: Iterable[HeldGateway], ours: str, lease_renewed: float | None, now: float
) -> Opinion:
    """`ours` is the field manager we write as, `lease_renewed` when yurt-manager's Lease was (None: there is none).
    Times are seconds since 1970."""
    if elect is Elect.OWN:
        return Opinion(True, "told to elect, whoever else does")
    if elect is Elect.DEFER:
        return Opinion(False, "told to leave the election to others")
    latest: tuple[float, str] | None = None
    unanswered = False  # by a write of ours
    for gateway in gateways:
        theirs = max((w.at for w in gateway.writers if YURT_MANAGER in w.manager), default=None)
        if theirs is None:
            continue
        own = max((w.at for w in gateway.writers if w.manager == ours), default=0.0)
        unanswered |= theirs > own
        if latest is None or theirs > latest[0]:
            latest = (theirs, gateway.name)
    if latest is None:
        return Opinion(True, "nobody else writes the status of Gateways")
    at, name = latest
    wrote = f"yurt-manager wrote the status of Gateway {name} at {rfc3339.format_time(at)}"
    if lease_renewed is not None and now - lease_renewed < ALIVE:
        return Opinion(False, f"{wrote}, and its Lease is alive", name)
    if unanswered and now - at < RECENT:
        return Opinion(False, wrote, name)
    return Opinion(True, f"{wrote}, and has been silent since", name)
