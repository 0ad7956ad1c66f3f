"""Rows of `raven-vpn peers`: state of each peer's session, and transfer rates. Pure: inputs are values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ravenvpn.agent.peer_liveness import PathQuality
from ravenvpn.agent.reports import PeerCondition, PeerReport
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.nodeplan import NodePlan, PeerKind, PeerPlan
from ravenvpn.mesh.reason import Reason, ReasonCode, code_of, explain
from ravenvpn.prefixes import Prefix, sort_key
from ravenvpn.tunnel.peer import PeerStatus

# Seconds. A rate is the mean over at least this long: the counters are read about once a second, and a shorter window
# would make the figures jump with every batch.
RATE_WINDOW = 2.0


@dataclass(slots=True)
class _Sample:
    """Counters of one peer at one instant."""

    at: float  # seconds of the loop's clock
    rx: int  # bytes
    tx: int


class TransferRates:
    """Bytes per second of each peer, computed from counters that are read now and then."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}  # start of each peer's present window
        self._rates: dict[str, tuple[float, float]] = {}  # of its last complete window

    def update(self, statuses: Iterable[PeerStatus], now: float) -> None:
        """Add the counters of all peers at `now`; peers that are not among them are dropped.

        A counter that went back (the peer was removed and added again) starts a new window."""
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
        """Return (received, sent) of the peer in bytes per second, zeros before its first complete window."""
        return self._rates.get(name, (0.0, 0.0))


def peer_state(
    plan: PeerPlan | None, status: PeerStatus, verdict: LivenessVerdict
) -> tuple[PeerCondition, Reason | None]:
    """Return the state of a session and, where it is not up, the cause; None also for a cold one without a failure.

    The probes' verdict comes first: a session that a peer does not answer through is down. A peer that is not planned
    (`plan` None) needs no session."""
    name = status.settings.name
    failure = Reason(ReasonCode.HANDSHAKE_FAILED, name, (status.failure.value,)) if status.failure else None
    if verdict is LivenessVerdict.DEAD:
        return PeerCondition.DOWN, failure or Reason(ReasonCode.PROBES_UNANSWERED, name)
    if status.session_age is not None:
        return PeerCondition.UP, None
    if status.attempts:
        # The first initiation is no sign of a fault; from the second on the peer did not answer one.
        state = PeerCondition.DOWN if status.attempts > 1 else PeerCondition.CONNECTING
        return state, failure or Reason(ReasonCode.HANDSHAKE_RUNNING, name)
    wanted = plan is not None and plan.warm
    if wanted:
        return PeerCondition.DOWN, failure or Reason(ReasonCode.NO_HANDSHAKE, name)
    return PeerCondition.COLD, failure


def peer_reports(
    plan: NodePlan,
    statuses: Sequence[PeerStatus],
    *,
    liveness: Liveness,
    quality: Mapping[str, PathQuality],
    rates: TransferRates,
) -> list[PeerReport]:
    """Return one report a peer of the tunnel, sorted by region, then name.

    `statuses` are the tunnel's, so a peer that is planned but was refused is missing, and one that is no longer
    planned but not removed yet is listed with an empty region. Prefixes are listed with the peer that carries them
    now, which is the first one of a route; the peers behind it are for a take-over and carry nothing."""
    planned = {peer.name: peer for peer in plan.tunnel.peers}
    # Indexed once: a look-up in the plan for each peer would cost peers × prefixes.
    carried: dict[str, list[Prefix]] = {}
    for prefix, names in plan.tunnel.routes:
        if names:
            carried.setdefault(names[0], []).append(prefix)
    hubs = dict(plan.relays)
    relayed: dict[str, list[str]] = {}
    for region, hub in plan.relays:
        relayed.setdefault(hub, []).append(region)
    reports = []
    for status in statuses:
        name = status.settings.name
        peer = planned.get(name)
        region = peer.region if peer else ""
        state, why = peer_state(peer, status, liveness.of(name))
        measured = quality.get(name, PathQuality())
        rx_rate, tx_rate = rates.of(name)
        # Only the active gateway of a hub's region relays; its standbys have the same region and relay nothing.
        is_hub = peer is not None and peer.kind is PeerKind.ACTIVE
        reports.append(
            PeerReport(
                name=name,
                region=region,
                state=state,
                why=explain(why),
                code=code_of(why),
                public_key=str(status.settings.public_keys[0]),
                endpoint=str(status.endpoint) if status.endpoint else "",
                path=f"via {hubs[region]}" if region in hubs else "direct",
                relays=tuple(relayed.get(region, ())) if is_hub else (),
                suite=status.suite.value if status.suite else "",
                last_handshake=status.last_handshake_ns / 1e9 if status.last_handshake_ns else None,
                rtt=measured.rtt,
                loss=measured.loss,
                rx_bytes=status.rx_bytes,
                tx_bytes=status.tx_bytes,
                rx_rate=rx_rate,
                tx_rate=tx_rate,
                mtu=plan.tunnel.mtu,
                prefixes=tuple(map(str, sorted(carried.get(name, []), key=sort_key))),
            )
        )
    return sorted(reports, key=lambda report: (report.region, report.name))
