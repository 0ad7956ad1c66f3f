"""Values of the control API, version 1: the JSON behind `raven-vpn status`, `peers` and `plan`, /readyz and /metrics.

Compatibility rule of version 1: fields may be added, never renamed or removed, and keep their meaning. Unless a field
says otherwise, instants are Unix seconds, durations seconds, sizes bytes, and None means "not known".
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PeerCondition(StrEnum):
    """State of a peer's session."""

    UP = "up"  # a session exists and something authenticated arrived within reject-after-time
    COLD = "cold"  # configured; no session, and none is needed until there is traffic
    CONNECTING = "connecting"  # a session is needed, a handshake runs
    DOWN = "down"  # a session is needed, and the peer did not answer


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of the tunnel."""

    name: str  # node name
    region: str  # empty: the peer is not planned any more
    state: PeerCondition
    why: str = ""  # cause, where the state is not `up` and a cause is known
    code: str = ""  # of `why`: a value of mesh.reason.ReasonCode
    public_key: str = ""  # base64, the one we initiate with
    endpoint: str = ""  # HOST:PORT of its last authenticated packet, or the one tried next
    path: str = "direct"  # of its region's traffic: "direct", or "via NAME" through a hub
    relays: tuple[str, ...] = ()  # regions that we reach through this peer as their hub
    suite: str = ""  # of the newest session; empty: none
    last_handshake: float | None = None
    rtt: float | None = None  # seconds, through the tunnel
    loss: float | None = None  # 0.0 to 1.0, of the last probes
    rx_bytes: int = 0  # as wg(8) counts, handshakes included
    tx_bytes: int = 0
    rx_rate: float = 0.0  # bytes per second, over the last seconds
    tx_rate: float = 0.0
    mtu: int = 0  # of the tunnel device
    prefixes: tuple[str, ...] = ()  # prefixes routed to this peer


class RegionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One other region, and how this node reaches it."""

    name: str
    gateway: str  # active gateway node; empty: none
    path: str  # "direct", "via NAME", or "none"
    ok: bool  # no fault is known
    why: str = ""  # the fault where it is not ok; else what is not known
    code: str = ""  # of `why`: a value of mesh.reason.ReasonCode
    prefixes: tuple[str, ...] = ()  # pod prefixes of the region


class ApiReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of the connection to the cluster's API server."""

    server: str  # URL
    connected_since: float | None  # None: not connected
    away: float | None  # seconds without connection; None: connected
    heard_at: float | None  # last answer or event, bookmarks included
    error: str  # cause of the lost connection, or of a refused request
    saved_at: float | None  # the world in force is the one saved on disk at that time; None: it is the server's
    cluster: str = ""  # UID of namespace kube-system, which identifies a cluster; empty: not known yet
    world_of: str = ""  # the same of the cluster that the world in force comes from
    announced: bool  # our Peer object has the content we want
    announce_error: str  # why our Peer object cannot be written; empty: it can
    lists: int  # requests since this agent started
    watches: int
    events: int
    writes: int

    @property
    def is_another(self) -> bool:
        """Whether the server's address leads to another cluster than the world in force comes from."""
        return bool(self.cluster) and self.world_of not in ("", self.cluster)


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that `ravenvpn.health` judges. Cheap enough for every second: no step a prefix, however large the
    world."""

    role: str  # mesh.nodeplan.NodeRole
    source: str  # where the world comes from, for people
    world_at: float | None  # when the last good world was read
    applied_at: float | None  # when the host was last brought to the plan
    source_error: str  # why the source cannot be read right now; empty: it can
    device_up: bool  # the tunnel device exists and is up, or this role needs none
    host_missing: int  # routes, rules and devices of the plan that the host does not have
    loop_lag: float  # largest delay of the event loop within the last seconds
    regions: int  # other regions that this node should reach
    unreachable: tuple[tuple[str, str], ...]  # of those, the ones without a working path: (name, cause)
    sessions_wanted: int  # peers with which a session is kept up
    sessions_up: int  # of those
    api: ApiReport | None = None  # None: the world does not come from a cluster


class ProblemReport(msgspec.Struct, frozen=True, kw_only=True):
    """Something an operator should fix: a broken manifest, a conflict, a route the kernel refused."""

    kind: str  # "manifest", "conflict", "host", "tunnel" or "config"
    where: str  # file and line, object and field, or thing
    message: str
    remedy: str = ""


class DataPlaneReport(msgspec.Struct, frozen=True, kw_only=True):
    """The data plane that runs."""

    body: str  # "pure", "native", or "none"
    offloads: tuple[str, ...]  # in force
    fallbacks: dict[str, int]  # offload → how often it was given up for a packet or for good
    drops: dict[str, int]  # cause → packets; only causes that occurred
    why_pure: str = ""  # why the native data plane is not in use, where the pure one is


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `raven-vpn status`. Fields that `Vitals` has too mean the same."""

    version: str
    node: str
    region: str  # empty: none
    role: str
    started: float
    public_key: str  # base64; empty: no tunnel is open
    listen_port: int  # UDP; 0: no tunnel is open
    source: str
    world_at: float | None
    applied_at: float | None
    source_error: str
    device_up: bool
    host_missing: int
    loop_lag: float
    regions: tuple[RegionReport, ...]
    sessions_wanted: int
    sessions_up: int
    problems: tuple[ProblemReport, ...]
    data_plane: DataPlaneReport
    api: ApiReport | None = None
    notes: tuple[str, ...] = ()  # facts that are no fault: an unreachable node that has no Peer, a pending restart
    note_codes: tuple[str, ...] = ()  # of `notes`, in the same order: ReasonCode, or "restart-pending"
    # Filled in by `ravenvpn.health.judged` from the facts above.
    healthy: bool = True
    reasons: tuple[str, ...] = ()  # why it is not healthy, most important first


class PlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the agent puts on this host or into the tunnel, with the reason."""

    what: str  # as ip(8) and nft(8) print it
    why: str
    code: str = ""  # of `why`: a value of mesh.reason.ReasonCode
    change: str = ""  # in a diff "+" (missing), "~" (different) or "-" (not ours any more); else empty


class ReloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a reload. Both lists name settings of the configuration (`raven-vpn config show`)."""

    reloaded: bool = True  # source, host facts and configuration were read again, and the result is in force
    changed: tuple[str, ...] = ()  # settings that have another value now
    restart: tuple[str, ...] = ()  # settings whose configured value takes effect only after a restart
    remedy: str = ""  # how to apply `restart`; empty if that is
