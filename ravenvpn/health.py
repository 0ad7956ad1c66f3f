"""Is this node well? A judgement over facts that the planes report, never a probe of its own.

Healthy (`raven-vpn status`) means nothing is wrong. Ready (/readyz) means the data path works: one unreachable region
among several is not healthy, but taking the node out of service for it would help nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ravenvpn.agent.reports import ProblemReport, StatusReport, Vitals

# A heartbeat this late, in seconds, means packets wait as long.
LOOP_LAG_LIMIT = 1.0
# So long, in seconds, an API server may be away before a person should know.
AWAY_LIMIT = 10.0


def unready_reasons(vitals: Vitals) -> list[str]:
    """Why the data path of this node does not work; empty when it does."""
    reasons = []
    if vitals.world_at is None:
        reasons.append(f"no world has been read yet from {vitals.source}")
    elif vitals.applied_at is None:
        reasons.append("this host is still being brought to its first plan")
    if vitals.source_error:
        reasons.append(f"the source cannot be read: {vitals.source_error}")
    if not vitals.device_up:
        reasons.append("the tunnel device is missing or down")
    if vitals.host_missing:
        reasons.append(f"{vitals.host_missing} of our routes, rules or devices are missing on this host")
    if vitals.loop_lag > LOOP_LAG_LIMIT:
        reasons.append(f"the event loop was blocked for {vitals.loop_lag:.1f} s")
    if vitals.regions and len(vitals.unreachable) == vitals.regions:
        reasons.append(f"no other region can be reached ({_causes(vitals)})")
    return reasons


def unhealthy_reasons(vitals: Vitals, problems: Sequence[ProblemReport]) -> list[str]:
    """Everything that is wrong, what makes the node unready first."""
    reasons = unready_reasons(vitals)
    if 0 < len(vitals.unreachable) < vitals.regions:
        reasons.append(f"{len(vitals.unreachable)} of {vitals.regions} regions cannot be reached ({_causes(vitals)})")
    if (api := vitals.api) is not None and vitals.world_at is not None:
        if api.away is not None and api.away > AWAY_LIMIT:
            world = "the saved world" if api.saved_at is not None else "the last one it told"
            why = f" ({api.error})" if api.error else ""
            reasons.append(f"the API server has been away for {api.away:.0f} s; traffic goes on by {world}{why}")
        if api.is_another:
            reasons.append(
                f"the API server is another cluster's than before ({api.cluster}, not {api.world_of}); "
                f"traffic goes on by the world of the one before until all of this one's is known"
            )
        if api.announce_error:
            reasons.append(f"our Peer cannot be written: {api.announce_error}")
    if problems:
        first = problems[0]
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        reasons.append(f"{first.kind} {first.where}: {first.message}{more}")
    return reasons


def judged(report: StatusReport, vitals: Vitals) -> StatusReport:
    """The report with its verdict filled in."""
    reasons = unhealthy_reasons(vitals, report.problems)
    return msgspec.structs.replace(report, healthy=not reasons, reasons=tuple(reasons))


def _causes(vitals: Vitals) -> str:
    told = "; ".join(f"{name}: {why or 'no path'}" for name, why in vitals.unreachable[:3])
    more = len(vitals.unreachable) - 3
    return f"{told}; {more} more" if more > 0 else told
