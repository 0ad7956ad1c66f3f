"""Reports with default values, for tests that set one field."""

from __future__ import annotations

from typing import Any

from ravenvpn.agent.reports import (
    DataPlaneReport,
    PeerCondition,
    PeerReport,
    PlanLine,
    RegionReport,
    ReloadReport,
    StatusReport,
    Vitals,
)


def vitals(**changes: Any) -> Vitals:
    """Return the vitals of a healthy node that reaches two regions."""
    well: dict[str, Any] = {
        "role": "active gateway",
        "source": "file:/w",
        "world_at": 1.0,
        "applied_at": 2.0,
        "source_error": "",
        "device_up": True,
        "host_missing": 0,
        "loop_lag": 0.0,
        "regions": 2,
        "unreachable": (),
        "sessions_wanted": 2,
        "sessions_up": 2,
    }
    return Vitals(**{**well, **changes})


def status(**changes: Any) -> StatusReport:
    well: dict[str, Any] = {
        "version": "1",
        "node": "edge-1",
        "region": "factory",
        "role": "active gateway",
        "started": 1.0,
        "public_key": "k",
        "listen_port": 4500,
        "source": "file:/w",
        "world_at": 1.0,
        "applied_at": 2.0,
        "source_error": "",
        "device_up": True,
        "host_missing": 0,
        "loop_lag": 0.0,
        "regions": (RegionReport(name="cloud", gateway="cloud-1", path="direct", ok=True),),
        "sessions_wanted": 1,
        "sessions_up": 1,
        "problems": (),
        "data_plane": DataPlaneReport(
            body="pure", offloads=("udp_gso",), fallbacks={"tun_tso": 2}, drops={"no_route": 3}
        ),
    }
    return StatusReport(**{**well, **changes})


def peer(name: str = "cloud-1", **changes: Any) -> PeerReport:
    return PeerReport(**{"name": name, "region": "cloud", "state": PeerCondition.UP, **changes})


class FakeAgent:
    """An agent for the control socket and the health server, with fixed reports; it counts reloads."""

    def __init__(self, report: StatusReport | None = None, peers: tuple[PeerReport, ...] = (), **vital: Any) -> None:
        self._report, self._peers, self._vital = report or status(), list(peers), vital
        self.reloads = 0

    def vitals(self) -> Vitals:
        return vitals(**self._vital)

    def status(self) -> StatusReport:
        return self._report

    def peers(self) -> list[PeerReport]:
        return self._peers

    def plan(self) -> list[PlanLine]:
        return [PlanLine(what="route 10.0.0.0/8", why="because", code="remote-prefix")]

    async def plan_diff(self) -> list[PlanLine]:
        return [PlanLine(what="route 10.0.0.0/8", why="because", code="remote-prefix", change="+")]

    async def reload(self) -> ReloadReport:
        self.reloads += 1
        return ReloadReport(changed=("log_level",), restart=("node",), remedy="restart")
