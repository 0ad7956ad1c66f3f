"""Timers of one peer: when to send a handshake or a keepalive, and when to stop (whitepaper §6).

One `Timers` per peer. Its methods are named after events; callers pass the instant of the event. `next_deadline`
returns when to come back, `pop_expired` what for. Nothing here reads a clock or sends.

Per-packet events stay in the data plane. It reports `Traffic`: facts with instants ("first unanswered at …"), from
which the deadlines are computed, so that no packet arms a timer. Handshake messages count as authenticated packets
too; the data plane does not count them as such, so their instants are merged in here.

Deviations from the reference implementations, all invisible to a peer:
* A passive keepalive acknowledges all data received before it, so no second one is sent for data that came while the
  first was pending (the reference sends one ten seconds later).
* An initiation is given up when REKEY_ATTEMPT_TIME has passed (§6.4), after 18 attempts; the reference counts
  attempts instead, and with its jitter makes 20 attempts in 103 s.
* A handshake that the limit of one initiation per REKEY_TIMEOUT refuses is deferred until that has passed, not
  dropped.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from ravenvpn.dataplane.contract import Role, Timing, Traffic

NEVER = float("-inf")  # an instant before every other


class Timer(enum.Enum):
    """Purpose of a deadline. The value is the reason in words."""

    RETRANSMIT_HANDSHAKE = "no response arrived (§6.4)"
    SEND_KEEPALIVE = "data arrived and nothing was sent back (§6.5, passive keepalive)"
    NEW_HANDSHAKE = "data was sent and nothing came back (§6.5)"
    ZERO_KEY_MATERIAL = "keys are too old for any use (§6.3)"
    PERSISTENT_KEEPALIVE = "a NAT or firewall on the path drops idle mappings (§6.5)"
    DEFERRED_HANDSHAKE = "a handshake was requested too early (§6.2)"
    RENEW_SESSION = "a session that is kept up without traffic is old (ours)"


class Timers:
    """Deadlines of one peer, in seconds on the caller's clock.

    Invariant: `_deadlines` holds exactly the armed timers. A flat list of events: one method each.
    """

    __slots__ = (
        "_deadlines",
        "_jitter",
        "_keepalive_interval",
        "_last_authenticated",
        "_received_until",
        "_sent_until",
        "_session",
        "_timing",
        "_unanswered_since",
        "_warm",
        "attempting_since",
        "attempts",
        "handshake_sent",
    )

    def __init__(self, timing: Timing, jitter: Callable[[], float]) -> None:
        """`jitter` returns a random number of seconds that spreads the retries of both ends (§6.4)."""
        self._timing = timing
        self._jitter = jitter
        self._deadlines: dict[Timer, float] = {}
        self._keepalive_interval = 0.0  # persistent keepalive, seconds; 0 for none
        self._warm = False  # renew the session without traffic
        self._session: tuple[Role, float] | None = None
        self._received_until = NEVER  # data sent before this instant counts as answered
        self._sent_until = NEVER  # data received before this instant counts as acknowledged
        self._unanswered_since = NEVER  # the unanswered packet that NEW_HANDSHAKE is armed for
        self._last_authenticated = NEVER  # last authenticated packet in either direction, as far as known
        self.handshake_sent = NEVER  # last initiation or response of ours
        self.attempting_since = NEVER  # start of REKEY_ATTEMPT_TIME
        self.attempts = 0  # initiations sent since the last completed handshake

    # Events.

    def traffic_reported(self, facts: Traffic) -> None:
        """The data plane reported authenticated packets. A packet with the instant of a handshake message counts as
        later: packets that waited for the handshake are sent with it."""
        self._authenticated(max(facts.any_sent, facts.any_received))
        if facts.unanswered_since and facts.data_sent >= self._received_until:
            # §6.5: nothing came back for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, so the session may be dead.
            since = max(facts.unanswered_since, self._received_until)
            if Timer.NEW_HANDSHAKE not in self._deadlines or since != self._unanswered_since:
                self._unanswered_since = since
                wait = self._timing.keepalive_timeout + self._timing.rekey_timeout
                self._deadlines[Timer.NEW_HANDSHAKE] = since + wait + self._jitter()
        else:
            self._deadlines.pop(Timer.NEW_HANDSHAKE, None)
        if facts.unacknowledged_since and facts.data_received >= self._sent_until:
            # §6.5: data arrived, and for KEEPALIVE_TIMEOUT there was nothing to send back.
            since = max(facts.unacknowledged_since, self._sent_until)
            self._deadlines[Timer.SEND_KEEPALIVE] = since + self._timing.keepalive_timeout
        else:
            self._deadlines.pop(Timer.SEND_KEEPALIVE, None)

    def handshake_initiated(self, now: float) -> None:
        """An initiation was sent. §6.4: repeat it after REKEY_TIMEOUT and jitter until a response arrives."""
        self._authenticated_sent(now)
        if self.attempts == 0:
            self.attempting_since = now
        self.attempts += 1
        self._deadlines.pop(Timer.DEFERRED_HANDSHAKE, None)
        self._deadlines[Timer.RETRANSMIT_HANDSHAKE] = now + self._timing.rekey_timeout + self._jitter()

    def handshake_answered(self, now: float) -> None:
        """An initiation arrived and our response was sent."""
        self._authenticated_received(now)
        self._authenticated_sent(now)

    def response_received(self, now: float) -> None:
        """A valid response to our initiation arrived."""
        self._authenticated_received(now)

    def handshake_completed(self) -> None:
        """Both ends have the keys: a response arrived, or data under keys that we responded with."""
        self._end_attempts()
        self._deadlines.pop(Timer.DEFERRED_HANDSHAKE, None)

    def session_derived(self, role: Role, now: float) -> None:
        """New keys were installed. §6.3: wipe them after three times REJECT_AFTER_TIME without newer ones."""
        self._session = (role, now)
        self._deadlines[Timer.ZERO_KEY_MATERIAL] = now + 3 * self._timing.reject_after_time
        self._arm_renewal()

    def attempt_prolonged(self, now: float) -> None:
        """There is new data to send while an initiation is out. §6.4: this restarts REKEY_ATTEMPT_TIME."""
        self.attempting_since = now

    def handshake_given_up(self, now: float) -> None:
        """No response arrived within REKEY_ATTEMPT_TIME (§6.4); the keys there are get wiped later."""
        self._end_attempts()
        self._sent_until = now
        self._deadlines.pop(Timer.SEND_KEEPALIVE, None)
        self._deadlines.setdefault(Timer.ZERO_KEY_MATERIAL, now + 3 * self._timing.reject_after_time)

    def handshake_deferred(self) -> None:
        """A handshake was requested before REKEY_TIMEOUT has passed since our last handshake message (§6.2)."""
        self._deadlines.setdefault(Timer.DEFERRED_HANDSHAKE, self.handshake_sent + self._timing.rekey_timeout)

    def keys_wiped(self) -> None:
        """All keypairs and handshakes of the peer were wiped."""
        self._end_attempts()
        self._session = None
        for timer in (Timer.ZERO_KEY_MATERIAL, Timer.RENEW_SESSION, Timer.DEFERRED_HANDSHAKE):
            self._deadlines.pop(timer, None)

    def own_key_changed(self) -> None:
        """Our static key changed: handshake messages of the old key do not limit those of the new one (§6.2)."""
        self.handshake_sent = NEVER

    def configured(self, interval: float, warm: bool, now: float) -> None:
        """Settings changed. `interval`: seconds between persistent keepalives, 0 for none; `warm`: renew the session
        without traffic."""
        if interval != self._keepalive_interval:
            self._keepalive_interval = interval
            self._authenticated(now)
        self._warm = warm
        self._arm_renewal()

    def stopped(self) -> None:
        """The interface went down: nothing is due any more, and the next handshake is not limited."""
        self._end_attempts()
        self._deadlines.clear()
        self._session = None
        self.handshake_sent = NEVER

    def resumed(self, sent: float, session: tuple[Role, float] | None) -> None:
        """State was handed over: when our last handshake message was sent (or NEVER), and the session in force.

        For session hand-over on restart; no caller in the agent yet.
        """
        self.handshake_sent = sent
        if session is not None:
            self.session_derived(*session)

    # State and deadlines.

    @property
    def session(self) -> tuple[Role, float] | None:
        """Our role in the newest session and the instant at which it was derived; None without a session."""
        return self._session

    def may_initiate(self, now: float) -> bool:
        """Return whether an initiation may be sent. §6.2: one per REKEY_TIMEOUT; a response of ours counts too."""
        return now >= self.handshake_sent + self._timing.rekey_timeout

    def attempt_time_is_over(self, now: float) -> bool:
        """Return whether REKEY_ATTEMPT_TIME has passed for the initiation that was not answered (§6.4)."""
        return now >= self.attempting_since + self._timing.rekey_attempt_time

    def deadline(self, timer: Timer) -> float | None:
        """Return when this timer expires, None if it is not armed."""
        return self._deadlines.get(timer)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, None if no timer is armed."""
        return min(self._deadlines.values(), default=None)

    def pop_expired(self, now: float) -> list[Timer]:
        """Disarm and return the timers whose deadline is not after `now`, in the order of their deadlines."""
        fired = sorted((at, timer.name) for timer, at in self._deadlines.items() if at <= now)
        timers = [Timer[name] for _, name in fired]
        for timer in timers:
            del self._deadlines[timer]
            if timer is Timer.NEW_HANDSHAKE:
                self._received_until = now  # only data sent after this arms the timer again
            elif timer is Timer.SEND_KEEPALIVE:
                self._sent_until = now
            elif timer is Timer.PERSISTENT_KEEPALIVE:
                self._authenticated(now)
        return timers

    def _authenticated_sent(self, now: float) -> None:
        self.handshake_sent = now
        self._sent_until = max(self._sent_until, now)
        self._deadlines.pop(Timer.SEND_KEEPALIVE, None)
        self._authenticated(now)

    def _authenticated_received(self, now: float) -> None:
        self._received_until = max(self._received_until, now)
        self._deadlines.pop(Timer.NEW_HANDSHAKE, None)
        self._authenticated(now)

    def _authenticated(self, at: float) -> None:
        """An authenticated packet passed in either direction: §6.5, the persistent keepalive starts again."""
        self._last_authenticated = max(self._last_authenticated, at)
        if self._keepalive_interval:
            self._deadlines[Timer.PERSISTENT_KEEPALIVE] = self._last_authenticated + self._keepalive_interval
        else:
            self._deadlines.pop(Timer.PERSISTENT_KEEPALIVE, None)

    def _arm_renewal(self) -> None:
        if not self._warm or self._session is None:
            self._deadlines.pop(Timer.RENEW_SESSION, None)
            return
        role, birth = self._session
        timing = self._timing
        # The initiator renews. The responder renews only if the initiator did not, as late as §6.2 lets a receiver.
        age = (
            timing.rekey_after_time
            if role is Role.INITIATOR
            else timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout
        )
        self._deadlines[Timer.RENEW_SESSION] = birth + age + self._jitter()

    def _end_attempts(self) -> None:
        self._deadlines.pop(Timer.RETRANSMIT_HANDSHAKE, None)
        self.attempts = 0
        self.attempting_since = NEVER
