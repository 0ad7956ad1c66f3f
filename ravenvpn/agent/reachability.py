"""From plan, sessions and probes to reports. Pure: everything it needs comes in as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ravenvpn.agent.reports import PeerCondition, PeerReport, PlanLine, RegionReport
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.mesh.hoststate import (
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    PacketFilter,
    Prefix,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import EndpointType, World
from ravenvpn.mesh.nodeplan import NodePlan, PeerKind, PeerPlan
from ravenvpn.node.format import words
from ravenvpn.tunnel.peer import PeerStatus

HostThing = (
    TunDevice | VxlanDevice | DeviceAddress | Neighbour | ForwardingEntry | Rule | Route | Sysctl | PacketFilter
)

# A rate is the mean over at least this long, in seconds, so that a table looked at twice shows something steady.
RATE_WINDOW = 2.0


@dataclass(frozen=True, slots=True)
class Quality:
    """What the probes know of one peer: seconds, and a share of 0 to 1."""

    rtt: float | None = None
    loss: float | None = None


@dataclass(slots=True)
class _Sample:
    at: float
    rx: int
    tx: int


class Rates:
    """Bytes per second of each peer, from counters that are looked at now and then."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    def update(self, statuses: Iterable[PeerStatus], now: float) -> None:
        """Take a look; peers that are gone are forgotten."""
        seen: set[str] = set()
        for status in statuses:
            name = status.settings.name
            seen.add(name)
            before = self._samples.get(name)
            if before is None or status.rx_bytes < before.rx:
                self._samples[name] = _Sample(now, status.rx_bytes, status.tx_bytes)
            elif now - before.at >= RATE_WINDOW:
                span = now - before.at
                self._rates[name] = ((status.rx_bytes - before.rx) / span, (status.tx_bytes - before.tx) / span)
                self._samples[name] = _Sample(now, status.rx_bytes, status.tx_bytes)
        for name in self._samples.keys() - seen:
            del self._samples[name]
            self._rates.pop(name, None)

    def of(self, name: str) -> tuple[float, float]:
        """(received, sent) of the peer."""
        return self._rates.get(name, (0.0, 0.0))


def peer_state(plan: PeerPlan | None, status: PeerStatus, verdict: LivenessVerdict) -> tuple[PeerCondition, str]:
    """How a session is, and why where it is not up."""
    failure = status.failure.value if status.failure else ""
    if verdict is LivenessVerdict.DEAD:
        return PeerCondition.DOWN, failure or "it answers no probe"
    if status.session_age is not None:
        return PeerCondition.UP, ""
    if status.attempts:
        return (PeerCondition.DOWN if status.attempts > 1 else PeerCondition.CONNECTING), failure
    wanted = plan is not None and plan.warm
    return (PeerCondition.DOWN, failure or "no handshake yet") if wanted else (PeerCondition.COLD, failure)


def peer_reports(
    plan: NodePlan,
    statuses: Sequence[PeerStatus],
    *,
    liveness: Liveness,
    quality: Mapping[str, Quality],
    rates: Rates,
) -> list[PeerReport]:
    """One line per peer, sorted by region, then name."""
    planned = {peer.name: peer for peer in plan.tunnel.peers}
    carried: dict[str, list[Prefix]] = {}
    for prefix, names in plan.tunnel.routes:
        if names:
            carried.setdefault(names[0], []).append(prefix)
    relayed: dict[str, list[str]] = {}
    for region, hub in plan.relays:
        relayed.setdefault(hub, []).append(region)
    reports = []
    for status in statuses:
        name = status.settings.name
        peer = planned.get(name)
        region = peer.region if peer else ""
        state, why = peer_state(peer, status, liveness.of(name))
        measured = quality.get(name, Quality())
        rx_rate, tx_rate = rates.of(name)
        beyond = relayed.get(region, []) if peer and peer.kind is PeerKind.ACTIVE else []
        reports.append(
            PeerReport(
                name=name,
                region=region,
                state=state,
                why=why,
                public_key=str(status.settings.public_keys[0]),
                endpoint=str(status.endpoint) if status.endpoint else "",
                path=_peer_path(plan, peer, beyond),
                suite=status.suite.value if status.suite else "",
                last_handshake=status.last_handshake_ns / 1e9 if status.last_handshake_ns else None,
                rtt=measured.rtt,
                loss=measured.loss,
                rx_bytes=status.rx_bytes,
                tx_bytes=status.tx_bytes,
                rx_rate=rx_rate,
                tx_rate=tx_rate,
                mtu=plan.tunnel.mtu,
                prefixes=tuple(map(str, sorted(carried.get(name, []), key=_prefix_key))),
            )
        )
    return sorted(reports, key=lambda report: (report.region, report.name))


def _peer_path(plan: NodePlan, peer: PeerPlan | None, beyond: Sequence[str]) -> str:
    hubs = dict(plan.relays)
    if peer is not None and peer.region in hubs:
        return f"via {hubs[peer.region]}"
    return f"direct, hub for {', '.join(beyond)}" if beyond else "direct"


@dataclass(frozen=True, slots=True)
class Reach:
    """How another region is reached. A cold session is no fault: it comes up with the first packet. `why` beside
    `ok` says what is not known of it."""

    gateway: str  # active gateway node of the region; empty for none
    path: str  # "direct", "via NAME", or "none"
    ok: bool
    why: str = ""


def reaches(
    plans: Mapping[str, PeerPlan],
    statuses: Mapping[str, PeerStatus],
    world: World,
    *,
    own_region: str,
    relays: Mapping[str, str],
    liveness: Liveness,
) -> dict[str, Reach]:
    """Every region but `own_region`, sorted by name. Costs a step per peer and region, none per prefix."""
    carriers: dict[str, str] = {}
    for plan in plans.values():
        if plan.kind is PeerKind.ACTIVE and plan.region != own_region:
            carriers[plan.region] = min(plan.name, carriers.get(plan.region, plan.name))
    found = {}
    for name in sorted(world.gateways):
        if name == own_region:
            continue
        endpoints = world.gateways[name].status.active
        gateway = next((endpoint.node for endpoint in endpoints if endpoint.type is EndpointType.TUNNEL), "")
        hub = relays.get(name)
        carrier = carriers.get(hub or name, "")
        path = f"via {hub}" if hub else ("direct" if carrier else "none")
        status = statuses.get(carrier)
        if status is None:
            why = (
                "there is no path to its gateway: both are behind NAT and there is no public hub, or it has no Peer"
                if gateway
                else "it has no active gateway"
            )
            found[name] = Reach(gateway, path, ok=False, why=why)
            continue
        state, cause = peer_state(plans.get(carrier), status, liveness.of(carrier))
        ok = state in (PeerCondition.UP, PeerCondition.COLD)
        why = "" if ok else f"{carrier} is {state}" + (f", {cause}" if cause else "")
        found[name] = Reach(gateway, path, ok, why)
    return found


def reaches_through(
    gateway: str,
    plan: PeerPlan | None,
    status: PeerStatus | None,
    world: World,
    *,
    own_region: str,
    verdict: LivenessVerdict,
    speaks: bool = True,
) -> dict[str, Reach]:
    """The same for a plain node, which sends everything to its own `gateway` (empty: there is none): it reaches
    what that one reaches, and can tell only whether that one lives; where it `speaks` to no plain node, as upstream's
    agent does, not even that."""
    ok, why = False, f"region {own_region} has no active gateway that this node can send to"
    if gateway and status is not None:
        state, cause = peer_state(plan, status, verdict)
        ok = state in (PeerCondition.UP, PeerCondition.COLD)
        why = "" if ok else f"our gateway {gateway} is {state}" + (f", {cause}" if cause else "")
    elif gateway and not speaks:
        ok, why = True, f"not known: our gateway {gateway} has no Peer, as where upstream's agent runs"
    elif gateway:
        why = f"there is no session with our gateway {gateway}, so nothing is known of it"
    found = {}
    for name in sorted(world.gateways):
        if name != own_region:
            endpoints = world.gateways[name].status.active
            far = next((endpoint.node for endpoint in endpoints if endpoint.type is EndpointType.TUNNEL), "")
            path = f"via {gateway}" if gateway else "none"
            found[name] = Reach(far, path, ok and bool(far), why if far else "it has no active gateway")
    return found


def region_reports(reached: Mapping[str, Reach], world: World) -> list[RegionReport]:
    """The same for people, with the prefixes of each region."""
    return [
        RegionReport(
            name=name,
            gateway=reach.gateway,
            path=reach.path,
            ok=reach.ok,
            why=reach.why,
            prefixes=tuple(
                map(
                    str,
                    sorted((p for info in world.gateways[name].status.nodes for p in info.subnets), key=_prefix_key),
                )
            ),
        )
        for name, reach in reached.items()
    ]


def _prefix_key(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def plan_lines(plan: NodePlan) -> list[PlanLine]:
    """The wanted tunnel and host, a line for each thing, with its reason."""
    lines = []
    for peer in plan.tunnel.peers:
        candidates = [str(Endpoint(candidate.host, candidate.port)) for candidate in peer.candidates]
        where = ", ".join(candidates) or "wherever it calls from"
        manner = ("warm" if peer.warm else "cold") + (f", keepalive {peer.keepalive} s" if peer.keepalive else "")
        lines.append(PlanLine(what=f"peer {peer.name} at {where}, {manner}", why=peer.reason))
    host = plan.host
    things: list[HostThing] = [
        *([host.tun] if host.tun else []),
        *([host.vxlan] if host.vxlan else []),
        *host.addresses,
        *host.neighbours,
        *host.forwarding,
        *host.rules,
        *host.routes,
        *host.sysctls,
        *([host.packet_filter] if host.packet_filter else []),
    ]
    return [*lines, *(PlanLine(what=words(thing), why=thing.reason) for thing in things)]
