"""Liveness of every ravenvpn peer, measured by probes inside the tunnel: verdicts for planning, round trip and loss.

A peer with traffic, or with an unanswered probe, is probed at the busy interval, any other at the idle one. Traffic
is what the data plane counts beyond our own probes. Only peers with a session, or with one that is kept up (warm),
are probed: a probe would otherwise bring up a session that nothing needs.

Owned by the event loop. Nothing in here reads a clock: every instant comes in as `now`, in seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn.agent.subject_index import subject
from ravenvpn.dataplane.contract import PeerId
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict, PeerFacts, judge, next_judgement
from ravenvpn.mesh.nodeplan import PeerPlan
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.peer import PeerStatus
from ravenvpn.tunnel.probing.frame import MAX_VERDICTS, Forwarding, ForwardingVerdict
from ravenvpn.tunnel.probing.schedule import ProbeSchedule

BUSY_FOR = 15.0  # seconds after its last packet for which a peer counts as one with traffic
OPEN_QUESTION = 0.7  # seconds a probe may stay unanswered before the next ones are sent at the busy interval


@dataclass(frozen=True, slots=True)
class PathQuality:
    """Measurements of the path to one peer, by probes."""

    rtt: float | None = None  # smoothed round trip through the tunnel, in seconds
    loss: float | None = None  # share of the last probes that were lost, 0.0 to 1.0


@dataclass(slots=True)
class _Watched:
    """One probed peer. Instants are seconds of the caller's clock, 0.0 for never."""

    plan: PeerPlan
    peer: PeerId
    probes: int = 0  # inner packets of probing since the last `observe`, sent and received
    packets: int = 0  # data packets at the last `observe`, both directions
    octets: int = 0  # bytes received at the last `observe`
    busy_until: float = 0.0
    received_at: float = 0.0  # anything authenticated
    given_up: float = 0.0  # a handshake ran into rekey-attempt-time
    interval: float | None = None  # seconds between probes in force; None: it is only answered
    verdict: LivenessVerdict = LivenessVerdict.UNKNOWN


class PeerLiveness:
    """Probe the tunnel's peers and keep a `Liveness` of them.

    `busy` and `idle` are seconds between probes of a peer with and without traffic (idle 0: none). `random(n)`
    returns n random bytes. `on_change` is called after `liveness` was replaced. `node_of` maps the 64-bit hash in a
    forwarding verdict to a node of the present world, None where it has none.
    """

    def __init__(
        self,
        busy: float,
        idle: float,
        *,
        random: Callable[[int], bytes],
        on_change: Callable[[], None],
        node_of: Callable[[int], str | None],
    ) -> None:
        self._busy, self._idle = busy, idle or None
        self._random, self._on_change, self._node_of = random, on_change, node_of
        self._tunnel: Tunnel | None = None
        self._schedule: ProbeSchedule | None = None
        self._peers: dict[str, _Watched] = {}
        self._names: dict[PeerId, str] = {}
        self._judgements = Deadlines()  # by peer: when silence alone will change its verdict
        self._changed = False  # since `liveness` was last made
        self._role_and_epoch = (0, 0)
        self._refused_by: dict[str, frozenset[str]] = {}  # hub → nodes it reports as not reachable through it
        self.liveness = Liveness()

    def attach(self, tunnel: Tunnel | None, own_address: IPv6Address | None) -> None:
        """Probe through this tunnel from now on. Another tunnel than before drops everything measured.

        `own_address` is the source of probes; without tunnel or address (a node without region) nothing is probed."""
        if tunnel is self._tunnel:
            return
        self._tunnel = tunnel
        self._schedule = None
        if tunnel is not None and own_address is not None:
            self._schedule = ProbeSchedule(own_address, self._random)
        self._peers.clear()
        self._names.clear()
        self._refused_by.clear()
        self._judgements = Deadlines()
        self._changed = True
        self._publish()

    def set_intervals(self, busy: float, idle: float) -> None:
        """Change the seconds between probes. Each peer takes its new interval at the next `observe`."""
        self._busy, self._idle = busy, idle or None

    def set_role(self, role: int, epoch: int) -> None:
        """Set what our probes carry about this node: its role and how often that role has moved
        (docs/protocol.md)."""
        if (role, epoch) != self._role_and_epoch:
            self._role_and_epoch = (role, epoch)
            self._announce()

    def set_peers(self, plans: Mapping[str, PeerPlan], now: float) -> None:
        """Probe exactly these peers from now on. The tunnel must have them."""
        tunnel, schedule = self._tunnel, self._schedule
        if tunnel is None or schedule is None:
            return
        for name in self._peers.keys() - plans.keys():
            peer = self._peers.pop(name).peer
            del self._names[peer]
            self._refused_by.pop(name, None)
            self._judgements.cancel(peer)
            schedule.remove(peer)
            self._changed = True
        for name, plan in plans.items():
            known = self._peers.get(name)
            if known is not None:
                known.plan = plan
                continue
            peer = tunnel.peers.id_of(name)
            self._peers[name] = _Watched(plan, peer)
            self._names[peer] = name
            schedule.probe(peer, plan.tunnel_address, None, now)
            self._changed = True
        self._publish()

    def handshake_failed(self, name: str, now: float) -> None:
        """Record that the tunnel gave up a handshake with this peer (rekey-attempt-time): it counts as dead."""
        watched = self._peers.get(name)
        if watched is not None and self._schedule is not None:
            watched.given_up = now
            self._judge(self._schedule, watched, now)
            self._publish()

    def receive(self, name: str, packet: bytes, now: float) -> None:
        """Handle an inner packet for the probe port that this peer sent; a request is answered at once.

        The packet came through the peer's session, so it is authentic; one that does not parse is ignored."""
        watched, tunnel, schedule = self._peers.get(name), self._tunnel, self._schedule
        if watched is None or tunnel is None or schedule is None:
            return
        reply = schedule.receive(watched.peer, packet, now)
        watched.probes += 1
        watched.received_at = now
        if reply is not None:
            watched.probes += 1
            tunnel.peers.send_inner(name, reply)
        self._apply_verdicts_of(name, schedule.facts(watched.peer).verdicts)
        self._judge(schedule, watched, now)
        self._publish()

    def tick(self, now: float) -> float | None:
        """Send the probes that are due and renew verdicts that silence changes; return when to call again.

        None: nothing is due without another event."""
        tunnel, schedule = self._tunnel, self._schedule
        if tunnel is None or schedule is None:
            return None
        for peer, packet in schedule.pop_requests(now):
            watched = self._peers[self._names[peer]]
            watched.probes += 1
            tunnel.peers.send_inner(watched.plan.name, packet)
            self._judge(schedule, watched, now)
        for peer in self._judgements.pop_due(now):
            self._judge(schedule, self._peers[self._names[peer]], now)
        self._publish()
        return min((at for at in (self._judgements.next_due(), schedule.next_due()) if at is not None), default=None)

    def observe(self, statuses: Sequence[PeerStatus], now: float) -> None:
        """Read the data plane's counters: which peers have traffic, and from which something was received.

        The counters hold the inner packets of our probes too. A peer has traffic if they grew by more than the probes
        since the last call. Received bytes count as a sign of life only here, so at the pace of the calls."""
        if self._schedule is None:
            return
        for status in statuses:
            watched = self._peers.get(status.settings.name)
            if watched is None:
                continue
            packets = status.rx_packets + status.tx_packets
            if packets - watched.packets > watched.probes:
                watched.busy_until = now + BUSY_FOR
            if status.rx_bytes != watched.octets:
                watched.received_at = now
                self._judge(self._schedule, watched, now)
            watched.packets, watched.octets, watched.probes = packets, status.rx_bytes, 0
            self._set_interval(self._schedule, watched, status, now)
        self._publish()

    def quality(self) -> dict[str, PathQuality]:
        """Return round trip and loss of every peer that answered at least once, by name."""
        if self._schedule is None:
            return {}
        facts = {name: self._schedule.facts(watched.peer) for name, watched in self._peers.items()}
        return {
            name: PathQuality(fact.rtt, fact.loss) for name, fact in facts.items() if fact.answered_at is not None
        }

    # Inside.

    def _set_interval(self, schedule: ProbeSchedule, watched: _Watched, status: PeerStatus, now: float) -> None:
        """Choose how often to probe this peer. A peer without endpoint can only call, and is not probed before."""
        # A warm peer is probed without a session, too: its silence then proves that it is dead.
        asked = schedule.facts(watched.peer).asked_since
        session = status.session_age is not None
        wanted = self._idle if session or (watched.plan.warm and status.endpoint is not None) else None
        busy = watched.plan.carries_our_traffic or now < watched.busy_until
        if wanted is not None and (busy or (asked is not None and now - asked > OPEN_QUESTION)):
            wanted = min(self._busy, wanted)
        if wanted != watched.interval:
            if wanted is None:
                self._stop_probing(schedule, watched)
            watched.interval = wanted
            schedule.probe(watched.peer, watched.plan.tunnel_address, wanted, now)

    def _stop_probing(self, schedule: ProbeSchedule, watched: _Watched) -> None:
        """Reset the verdict of a peer whose session ended and is not wanted.

        Old measurements prove nothing any more, and a verdict of death could not be revoked while no probe is
        sent."""
        schedule.remove(watched.peer)
        self._judgements.cancel(watched.peer)
        watched.received_at = watched.given_up = 0.0
        if watched.verdict is not LivenessVerdict.UNKNOWN:
            watched.verdict = LivenessVerdict.UNKNOWN
            self._changed = True

    def _judge(self, schedule: ProbeSchedule, watched: _Watched, now: float) -> None:
        """Renew the verdict, and set a deadline for when silence alone would change it."""
        path = schedule.facts(watched.peer)
        facts = PeerFacts(
            last_received=watched.received_at,
            asked_since=path.asked_since or 0.0,
            unanswered=path.unanswered,
            answered_in_row=path.answered_in_row,
            handshake_given_up=watched.given_up,
        )
        verdict = judge(watched.verdict, facts, now)
        if verdict is not watched.verdict:
            watched.verdict = verdict
            self._changed = True
        silence = next_judgement(facts)
        if silence is not None and silence > now:
            self._judgements.schedule(watched.peer, silence)

    def _apply_verdicts_of(self, hub: str, verdicts: Sequence[ForwardingVerdict]) -> None:
        """Record the nodes that this hub reports as not reachable through it; hashes of unknown nodes are ignored."""
        refused = frozenset(
            node
            for verdict in verdicts
            if verdict.forwarding is Forwarding.DOES_NOT and (node := self._node_of(verdict.subject)) is not None
        )
        if refused != self._refused_by.get(hub, frozenset()):
            self._refused_by[hub] = refused
            self._changed = True

    def _publish(self) -> None:
        """Replace `liveness` if anything of it changed, then update our own announcements and call `on_change`.

        Every change ends here, so that one call of a public method replaces it at most once."""
        if not self._changed:
            return
        self._changed = False
        verdicts = {name: watched.verdict for name, watched in self._peers.items()}
        refused = {hub: nodes for hub, nodes in self._refused_by.items() if nodes}
        if verdicts == self.liveness.verdicts and refused == self.liveness.unreachable_via:
            return
        self.liveness = Liveness(verdicts, refused)
        self._announce()
        self._on_change()

    def _announce(self) -> None:
        """Set what our probes carry: role, epoch, and the nodes we do not reach, which others then avoid through
        us."""
        if self._schedule is None:
            return
        # The header has room for MAX_VERDICTS; with more dead peers than that the rest is announced when some return.
        dead = [watched.plan for watched in self._peers.values() if watched.verdict is LivenessVerdict.DEAD]
        verdicts = [
            ForwardingVerdict(subject(plan.tunnel_address), Forwarding.DOES_NOT) for plan in dead[:MAX_VERDICTS]
        ]
        self._schedule.announce(*self._role_and_epoch, verdicts)
