"""Is this node well? A judgement over facts that the planes report, never a probe of its own.

Healthy (`raven-vpn status`) means nothing is wrong. Ready (/readyz) means the data path works: one unreachable region
among several is not healthy, but taking the node out of service for it would help nobody.
"""

from __future__ import annotations

import msgspec

from ravenvpn.agent.report import StatusReport

# A heartbeat this late, in seconds, means packets wait as long.
LOOP_LAG_LIMIT = 1.0


def unready_reasons(report: StatusReport) -> list[str]:
    """Why the data path of this node does not work; empty when it does."""
    reasons = []
    if report.world_at is None:
        reasons.append(f"no world has been read yet from {report.source}")
    if report.source_error:
        reasons.append(f"the source cannot be read: {report.source_error}")
    if not report.device_up:
        reasons.append("the tunnel device is missing or down")
    if report.host_missing:
        reasons.append(f"{report.host_missing} of our routes, rules or devices are missing on this host")
    if report.loop_lag > LOOP_LAG_LIMIT:
        reasons.append(f"the event loop was blocked for {report.loop_lag:.1f} s")
    unreachable = [region for region in report.regions if not region.ok]
    if unreachable and len(unreachable) == len(report.regions):
        reasons.append(f"no other region can be reached ({_causes(report)})")
    return reasons


def judged(report: StatusReport) -> StatusReport:
    """The report with its verdict filled in."""
    reasons = unready_reasons(report)
    unreachable = [region for region in report.regions if not region.ok]
    if unreachable and len(unreachable) < len(report.regions):
        reasons.append(f"{len(unreachable)} of {len(report.regions)} regions cannot be reached ({_causes(report)})")
    if report.problems:
        first = report.problems[0]
        more = f", and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
        reasons.append(f"{first.kind} {first.where}: {first.message}{more}")
    return msgspec.structs.replace(report, healthy=not reasons, reasons=tuple(reasons))


def _causes(report: StatusReport) -> str:
    bad = [f"{region.name}: {region.why or 'no path'}" for region in report.regions if not region.ok]
    return "; ".join(bad[:3]) + (f"; {len(bad) - 3} more" if len(bad) > 3 else "")
