"""What the agent says about itself: the values behind `raven-vpn status` and `peers`, /readyz and /metrics.

These are the version 1 of the control socket's JSON: fields may be added, never renamed or removed.
Times are Unix seconds, durations seconds, sizes bytes; None is "not known".
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PeerCondition(StrEnum):
    UP = "up"  # a session is there and something authenticated arrived within reject-after-time
    COLD = "cold"  # configured; no session, and none wanted until there is traffic
    CONNECTING = "connecting"  # a session is wanted, a handshake runs
    DOWN = "down"  # a session is wanted, and the peer did not answer


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of the tunnel."""

    name: str
    region: str
    state: PeerCondition
    why: str = ""  # where the state is not `up`: what is known of the cause
    public_key: str = ""
    endpoint: str = ""
    path: str = "direct"  # of the region's traffic: "direct", or "via NAME" through a hub
    suite: str = ""
    last_handshake: float | None = None
    rtt: float | None = None
    loss: float | None = None  # 0.0 to 1.0, of the last probes
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_rate: float = 0.0  # bytes per second, over the last seconds
    tx_rate: float = 0.0
    mtu: int = 0
    prefixes: tuple[str, ...] = ()  # what is routed to it


class RegionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One other region, and how this node reaches it."""

    name: str
    gateway: str  # active gateway node
    path: str  # "direct", "via NAME", or "none"
    ok: bool  # nothing is known to be wrong with it
    why: str = ""  # where it is not ok, or where that is not known
    prefixes: tuple[str, ...] = ()


class ApiReport(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with the cluster's API server."""

    server: str
    connected_since: float | None  # None: it is away
    away: float | None  # seconds for which it has been; None: it is there
    heard_at: float | None  # when it last said anything, bookmarks included
    error: str  # why it is away, or why it lets us read nothing
    saved_at: float | None  # the world in force is the one saved then; None: it is the server's
    cluster: str = ""  # UID of namespace kube-system; empty: not known yet
    world_of: str = ""  # the same of the cluster that the world in force comes from
    announced: bool  # our Peer stands there as we want it
    announce_error: str  # why it cannot be written right now
    lists: int  # since this agent started
    watches: int
    events: int
    writes: int

    @property
    def is_another(self) -> bool:
        """Whether behind the server's address stands another cluster than the world in force comes from."""
        return bool(self.cluster) and self.world_of not in ("", self.cluster)


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What `ravenvpn.health` judges: cheap enough to be asked for every second, however large the world."""

    role: str
    source: str
    world_at: float | None  # when the last good world was read
    applied_at: float | None  # when the host was last brought to the plan
    source_error: str  # why the source cannot be read right now; empty when it can
    device_up: bool  # the tunnel device is there and up, or none is wanted here
    host_missing: int  # things of ours the host should have and does not
    loop_lag: float  # how late the event loop ran a heartbeat, the worst of the last seconds
    regions: int  # other regions that this node should reach
    unreachable: tuple[tuple[str, str], ...]  # of those, the ones that cannot be: name and why
    sessions_wanted: int
    sessions_up: int
    api: ApiReport | None = None  # None: the world does not come from a cluster


class ProblemReport(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should mend: a broken manifest, a conflict, a route the kernel refused."""

    kind: str  # "manifest", "conflict", "host", "source", "tunnel"
    where: str
    message: str
    remedy: str = ""


class DataPlaneReport(msgspec.Struct, frozen=True, kw_only=True):
    body: str  # "pure" or "native"
    offloads: tuple[str, ...]  # in force
    fallbacks: dict[str, int]
    drops: dict[str, int]  # only what is not zero
    why_pure: str = ""  # why the native body is not the one that runs


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """One screen: `raven-vpn status`."""

    version: str
    node: str
    region: str
    role: str
    started: float
    public_key: str
    listen_port: int
    source: str
    world_at: float | None  # when the last good world was read
    applied_at: float | None  # when the host was last brought to the plan
    source_error: str  # why the source cannot be read right now; empty when it can
    device_up: bool  # the tunnel device is there and up, or none is wanted here
    host_missing: int  # things of ours the host should have and does not
    loop_lag: float  # how late the event loop ran a heartbeat, the worst of the last seconds
    regions: tuple[RegionReport, ...]
    sessions_wanted: int
    sessions_up: int
    problems: tuple[ProblemReport, ...]
    data_plane: DataPlaneReport
    api: ApiReport | None = None  # None: the world does not come from a cluster
    notes: tuple[str, ...] = ()  # what is as it should be and yet worth knowing: who is not reached, and why
    # Judged by ravenvpn.health from the facts above.
    healthy: bool = True
    reasons: tuple[str, ...] = ()  # why not, most important first


class PlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the agent wants on the host, and why. `change` is "+", "-" or "" (already so) in a diff."""

    what: str
    why: str
    change: str = ""
