"""Judge whether a node is healthy and ready, from facts that its parts report. Pure; sends no probe of its own.

Healthy (`raven-vpn status`) means no fault is known. Ready (/readyz) means the data path works. One unreachable
region of several makes a node unhealthy but not unready: taking it out of service would cut the other regions off as
well.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ravenvpn.agent.reports import ProblemReport, StatusReport, Vitals

# Seconds. A heartbeat this late means that handshakes, probes and timers wait as long.
LOOP_LAG_LIMIT = 1.0
# Seconds. A lost connection to the API server is reported after this; a restart of the server takes less.
AWAY_LIMIT = 10.0
_SHOWN = 3  # unreachable regions that are named; more would not fit a line of /readyz or `systemctl status`


def unready_reasons(vitals: Vitals) -> list[str]:
    """Return why the data path of this node does not work, most fundamental first; empty if it works."""
    # In the order of the chain: a world, a plan on the host, a device, routes into it, sessions behind them.
    reasons = []
    if vitals.world_at is None:
        reasons.append(f"no world has been read yet from {vitals.source}")
    elif vitals.applied_at is None:
        reasons.append("the first plan is not applied to this host yet")
    if vitals.source_error:
        reasons.append(f"the source cannot be read: {vitals.source_error}")
    if not vitals.device_up:
        reasons.append("the tunnel device is missing or down")
    if vitals.host_missing:
        reasons.append(f"{vitals.host_missing} of our routes, rules or devices are missing on this host")
    if vitals.loop_lag > LOOP_LAG_LIMIT:
        reasons.append(f"the event loop was blocked for {vitals.loop_lag:.1f} s")
    # A node alone in its mesh has no region to reach, and is ready.
    if vitals.regions and len(vitals.unreachable) == vitals.regions:
        reasons.append(f"no other region can be reached ({_causes(vitals)})")
    return reasons


def unhealthy_reasons(vitals: Vitals, problems: Sequence[ProblemReport]) -> list[str]:
    """Return every known fault, those that make the node unready first; empty if it is healthy."""
    reasons = unready_reasons(vitals)
    if 0 < len(vitals.unreachable) < vitals.regions:
        reasons.append(f"{len(vitals.unreachable)} of {vitals.regions} regions cannot be reached ({_causes(vitals)})")
    # Before the first world the API's error is among the reasons above.
    if (api := vitals.api) is not None and vitals.world_at is not None:
        if api.away is not None and api.away > AWAY_LIMIT:
            world = "the saved world" if api.saved_at is not None else "the last world it sent"
            why = f" ({api.error})" if api.error else ""
            reasons.append(f"the API server has been away for {api.away:.0f} s{why}; traffic goes on by {world}")
        if api.is_another:
            reasons.append(
                f"the API server belongs to another cluster than before ({api.cluster}, not {api.world_of}); "
                f"traffic goes on by the world of the cluster before until this one's is completely read"
            )
        if api.announce_error:
            reasons.append(f"our Peer object cannot be written: {api.announce_error}; others keep what it had before")
    if problems:
        first = problems[0]
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        reasons.append(f"{first.kind} {first.where}: {first.message}{more}")
    return reasons


def judged(report: StatusReport, vitals: Vitals) -> StatusReport:
    """Return the report with `healthy` and `reasons` filled in."""
    reasons = unhealthy_reasons(vitals, report.problems)
    return msgspec.structs.replace(report, healthy=not reasons, reasons=tuple(reasons))


def _causes(vitals: Vitals) -> str:
    """Return the unreachable regions with their causes, at most `_SHOWN` of them."""
    named = "; ".join(f"{name}: {why or 'no path'}" for name, why in vitals.unreachable[:_SHOWN])
    more = len(vitals.unreachable) - _SHOWN
    return f"{named}; {more} more" if more > 0 else named
