"""Handshake work in small portions: queued messages and initiations, within a budget per call and per second.

A handshake costs up to a millisecond on the event loop that also moves packets. So handshakes are queued, and worked
off a few at a time; work that others can cause is limited by a token bucket as well (`admission.load_monitor`).
"""

from __future__ import annotations

from ravenvpn.token_bucket import TokenBucket
from ravenvpn.tunnel.admission.handshake_filter import AdmissionQueue, AdmissionRefused
from ravenvpn.tunnel.admission.load_monitor import REFUSAL
from ravenvpn.tunnel.handshake.exchange import HandshakeExchange
from ravenvpn.tunnel.peer_rules import PeerRules
from ravenvpn.tunnel.peer_schedule import PeerSchedule
from ravenvpn.tunnel.peer_table import PeerTable

# Handshake messages and initiations per call: one or two milliseconds of work (five on a busy machine), so that
# packets, timers and the control API, which needs several turns of the loop for a request, are served in between.
WORK_PER_CALL = 2

DUE_NOW = 0.0  # an instant that has passed on any clock


class HandshakeWorker:
    """Works off the admission queue and the queued initiations."""

    def __init__(
        self,
        admission: AdmissionQueue,
        exchange: HandshakeExchange,
        rules: PeerRules,
        peers: PeerTable,
        schedule: PeerSchedule,
        *,
        budget: TokenBucket,
    ) -> None:
        """`budget` limits the work that others can cause: one token is one handshake."""
        self._admission = admission
        self._exchange = exchange
        self._rules = rules
        self._peers = peers
        self._schedule = schedule
        self._budget = budget
        self._budget_ready_at = DUE_NOW  # when the queue may be worked off again

    def work(self, now: float, unix_ns: int, limit: int = WORK_PER_CALL) -> bool:
        """Do up to `limit` handshakes' worth of messages and initiations; return whether more wait.

        Up to half of it goes to initiations, so that a flood of received messages cannot starve them, nor they the
        messages. Work that others can cause spends the budget too; responses to our own initiations do so only while
        we are under load.
        """
        initiations = min(self._schedule.waiting_initiations, max(1, limit // 2))
        for _ in range(initiations):
            with self._peers.change(self._schedule.pop_initiation()) as peer:
                self._rules.send_initiation(peer, now, unix_ns)
        under_load = self._admission.under_load(now)
        left = float(max(1, limit - initiations))
        while len(self._admission) and left >= REFUSAL:
            budgeted = under_load or not self._admission.validated
            if budgeted and self._budget.tokens(now) < REFUSAL:
                break
            cost = self._process_one(now, unix_ns)
            left -= cost
            if budgeted:
                self._budget.spend(cost)
        budgeted = under_load or not self._admission.validated
        self._budget_ready_at = self._budget.ready_at() if budgeted else DUE_NOW
        return self._schedule.waiting_initiations > 0 or len(self._admission) > 0

    def due_at(self, backlog: int) -> float | None:
        """Return when to call `work` again, None if nothing waits. `backlog`: initiations still in the data plane."""
        if self._schedule.waiting_initiations:
            return DUE_NOW
        if len(self._admission):
            return self._budget_ready_at
        return DUE_NOW if backlog else None

    def _process_one(self, now: float, unix_ns: int) -> float:
        """Process the next message; return its cost in handshakes."""
        try:
            queued = self._admission.pop(now)
        except AdmissionRefused as refused:
            self._admission.count_drop(refused.reason)
            return REFUSAL
        try:
            self._exchange.receive(queued, now, unix_ns)
        except AdmissionRefused as refused:
            self._admission.count_drop(refused.reason)
        return 1.0
