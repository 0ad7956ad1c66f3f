"""Asks every ravenvpn peer, through the tunnel, how it is, and turns the answers into verdicts that planning heeds.

A peer with traffic, or with a question open, is asked often; one without, seldom. Traffic is what the data plane
counts beyond our own probes. Only sessions that exist, or that are to be kept, are probed: a cold one stays cold.
Nothing in here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn.agent.reachability import Quality
from ravenvpn.dataplane.contract import PeerId
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict, PeerFacts, judge, next_judgement
from ravenvpn.mesh.nodeplan import PeerPlan
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.peer import PeerStatus
from ravenvpn.tunnel.probing.frame import MAX_VERDICTS, Forwarding, ForwardingVerdict
from ravenvpn.tunnel.probing.schedule import ProbeSchedule

BUSY_FOR = 15.0  # seconds after its last packet that a peer counts as one with traffic
OPEN_QUESTION = 0.7  # seconds a probe may go unanswered before the next ones come as often as with traffic


@dataclass(slots=True)
class _Watched:
    plan: PeerPlan
    peer: PeerId
    probes: int = 0  # inner packets of ours: sent, and received
    packets: int = 0  # data packets counted at the last look, both directions
    octets: int = 0  # received, at the last look
    busy_until: float = 0.0
    heard_at: float = 0.0
    given_up: float = 0.0
    interval: float | None = None
    verdict: LivenessVerdict = LivenessVerdict.UNKNOWN


class PeerLiveness:
    """`busy` and `idle` are seconds between probes of a peer with and without traffic (idle 0: none).

    `on_change` is called when a verdict changed, or what a hub says of others; `node_of` names the node that the
    64-bit hash in a forwarding verdict stands for, if this world has it.
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
        self._probers: ProbeSchedule | None = None
        self._peers: dict[str, _Watched] = {}
        self._names: dict[PeerId, str] = {}
        self._judgements = Deadlines()  # when silence alone will change a verdict
        self._changed = False  # since `liveness` was last made
        self._introduction = (0, 0)  # our role and epoch
        self._refused_by: dict[str, frozenset[str]] = {}  # hub → nodes it says it does not carry to
        self.liveness = Liveness()

    def adopt(self, tunnel: Tunnel | None, ours: IPv6Address | None) -> None:
        """The tunnel that runs now; with another one, all that was measured on the last is forgotten."""
        if tunnel is self._tunnel:
            return
        self._tunnel = tunnel
        self._probers = ProbeSchedule(ours, self._random) if tunnel is not None and ours is not None else None
        self._peers.clear()
        self._names.clear()
        self._refused_by.clear()
        self._judgements = Deadlines()
        self._changed = True
        self._publish()

    def introduce(self, role: int, epoch: int) -> None:
        """What our probes say of this node: its role (docs/protocol.md), and how often that role has moved."""
        if (role, epoch) != self._introduction:
            self._introduction = (role, epoch)
            self._announce()

    def watch(self, plans: Mapping[str, PeerPlan], now: float) -> None:
        """Probe exactly these peers from now on."""
        tunnel, probers = self._tunnel, self._probers
        if tunnel is None or probers is None:
            return
        for name in self._peers.keys() - plans.keys():
            peer = self._peers.pop(name).peer
            del self._names[peer]
            self._refused_by.pop(name, None)
            self._judgements.forget(peer)
            probers.forget(peer)
            self._changed = True
        for name, plan in plans.items():
            known = self._peers.get(name)
            if known is not None:
                known.plan = plan
                continue
            peer = tunnel.id_of(name)
            self._peers[name] = _Watched(plan, peer)
            self._names[peer] = name
            probers.watch(peer, plan.tunnel_address, None, now)
            self._changed = True
        self._publish()

    def given_up(self, name: str, now: float) -> None:
        """The tunnel gave a handshake with this peer up."""
        watched = self._peers.get(name)
        if watched is not None and self._probers is not None:
            watched.given_up = now
            self._judge(self._probers, watched, now)
            self._publish()

    def receive(self, name: str, packet: bytes, now: float) -> None:
        """An inner packet for the probe port came from this peer."""
        watched, tunnel, probers = self._peers.get(name), self._tunnel, self._probers
        if watched is None or tunnel is None or probers is None:
            return
        reply = probers.receive(watched.peer, packet, now)
        watched.probes += 1
        watched.heard_at = now
        if reply is not None:
            watched.probes += 1
            tunnel.send_inner(name, reply)
        self._hear(name, probers.facts(watched.peer).verdicts)
        self._judge(probers, watched, now)
        self._publish()

    def tick(self, now: float) -> float | None:
        """Send what is due, judge; returns when to come back."""
        tunnel, probers = self._tunnel, self._probers
        if tunnel is None or probers is None:
            return None
        for peer, packet in probers.tick(now):
            watched = self._peers[self._names[peer]]
            watched.probes += 1
            tunnel.send_inner(watched.plan.name, packet)
            self._judge(probers, watched, now)
        for peer in self._judgements.take_due(now):
            self._judge(probers, self._peers[self._names[peer]], now)
        self._publish()
        return min((at for at in (self._judgements.next(), probers.due()) if at is not None), default=None)

    def look(self, statuses: Sequence[PeerStatus], now: float) -> None:
        """Take in what the data plane has counted: who has traffic, who was heard from."""
        if self._probers is None:
            return
        for status in statuses:
            watched = self._peers.get(status.settings.name)
            if watched is None:
                continue
            packets = status.rx_packets + status.tx_packets
            if packets - watched.packets > watched.probes:
                watched.busy_until = now + BUSY_FOR
            if status.rx_bytes != watched.octets:
                watched.heard_at = now
                self._judge(self._probers, watched, now)
            watched.packets, watched.octets, watched.probes = packets, status.rx_bytes, 0
            self._pace(self._probers, watched, status, now)
        self._publish()

    def quality(self) -> dict[str, Quality]:
        """Round trip and loss of every peer that ever answered."""
        if self._probers is None:
            return {}
        facts = {name: self._probers.facts(watched.peer) for name, watched in self._peers.items()}
        return {name: Quality(fact.rtt, fact.loss) for name, fact in facts.items() if fact.answered_at is not None}

    # Inside.

    def _pace(self, probers: ProbeSchedule, watched: _Watched, status: PeerStatus, now: float) -> None:
        """How often to ask this peer, as things are. One that only can call us is not asked before it did."""
        asked = probers.facts(watched.peer).asked_since
        session = status.session_age is not None
        wanted = self._idle if session or (watched.plan.warm and status.endpoint is not None) else None
        busy = watched.plan.prompt or now < watched.busy_until
        if wanted is not None and (busy or (asked is not None and now - asked > OPEN_QUESTION)):
            wanted = min(self._busy, wanted)
        if wanted != watched.interval:
            if wanted is None:
                self._rest(probers, watched)
            watched.interval = wanted
            probers.watch(watched.peer, watched.plan.tunnel_address, wanted, now)

    def _rest(self, probers: ProbeSchedule, watched: _Watched) -> None:
        """The session is gone and nobody wants it: what was known of the peer proves nothing any more, and while
        nobody asks, nothing could prove the opposite."""
        probers.forget(watched.peer)
        self._judgements.forget(watched.peer)
        watched.heard_at = watched.given_up = 0.0
        if watched.verdict is not LivenessVerdict.UNKNOWN:
            watched.verdict = LivenessVerdict.UNKNOWN
            self._changed = True

    def _judge(self, probers: ProbeSchedule, watched: _Watched, now: float) -> None:
        """Renew the verdict, and come back when silence alone would change it."""
        path = probers.facts(watched.peer)
        facts = PeerFacts(
            last_received=watched.heard_at,
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
            self._judgements.expect(watched.peer, silence)

    def _hear(self, hub: str, verdicts: Sequence[ForwardingVerdict]) -> None:
        refused = frozenset(
            node
            for verdict in verdicts
            if verdict.forwarding is Forwarding.DOES_NOT and (node := self._node_of(verdict.subject)) is not None
        )
        if refused != self._refused_by.get(hub, frozenset()):
            self._refused_by[hub] = refused
            self._changed = True

    def _publish(self) -> None:
        """Make a new Liveness if anything of it changed, tell the peers, and tell whoever plans."""
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
        """Tell every peer who we are and whom we do not reach, so that nobody goes through us to them."""
        if self._probers is None:
            return
        dead = [watched.plan for watched in self._peers.values() if watched.verdict is LivenessVerdict.DEAD][
            :MAX_VERDICTS
        ]
        verdicts = [ForwardingVerdict(subject(plan.tunnel_address), Forwarding.DOES_NOT) for plan in dead]
        self._probers.announce(*self._introduction, verdicts)


def subject(tunnel_address: IPv6Address) -> int:
    """What stands for a node in a probe: the hash of its name, which is the lower half of its tunnel address."""
    return int(tunnel_address) & 0xFFFFFFFFFFFFFFFF
