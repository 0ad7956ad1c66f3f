"""When a peer must speak, and when it must stop (whitepaper §6).

One `Timers` per peer. Its methods are named by what happened; callers say at which instant, and ask `due()` when to
come back and `expired()` what for. Nothing here reads a clock or sends.

What happens per packet is the data plane's to know: it reports `Traffic`, facts rather than calls, so timers are
worked out from instants ("first unanswered at …") instead of being armed by each packet. Handshake messages count
as authenticated packets too; since the data plane does not see them as such, their instants are merged in here.

Deviations from the reference implementations, all invisible to a peer:
* A passive keepalive acknowledges all that was received before it, so none is owed for data that came while it was
  pending (the reference sends a second one, ten seconds later).
* An initiation is given up when REKEY_ATTEMPT_TIME has passed (§6.4), which is 18 attempts; the reference counts
  instead, and with its jitter gets to 20 attempts in 103 s.
* A wish for a handshake that the limit of one per REKEY_TIMEOUT refuses is kept and granted when that has passed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from ravenvpn.dataplane.contract import Role, Timing, Traffic

NEVER = float("-inf")


class Timer(enum.Enum):
    """What a deadline is for."""

    RETRANSMIT_HANDSHAKE = "no response came (§6.4)"
    SEND_KEEPALIVE = "data came and nothing went back (§6.5, passive keepalive)"
    NEW_HANDSHAKE = "data went and nothing came back (§6.5)"
    ZERO_KEY_MATERIAL = "keys too old for any use (§6.3)"
    PERSISTENT_KEEPALIVE = "a NAT or firewall on the way forgets (§6.5)"
    DEFERRED_HANDSHAKE = "a handshake was wanted too early (§6.2)"
    RENEW_SESSION = "a session that is kept up without traffic grows old (ours)"


class Timers:
    """Deadlines of one peer. `jitter` draws the seconds that spread retries of both ends (§6.4)."""

    __slots__ = (
        "_answered",
        "_at",
        "_interval",
        "_jitter",
        "_session",
        "_silent_from",
        "_spoke",
        "_timing",
        "_traversed",
        "_warm",
        "attempting_since",
        "attempts",
        "handshake_sent",
    )

    def __init__(self, timing: Timing, jitter: Callable[[], float]) -> None:
        self._timing = timing
        self._jitter = jitter
        self._at: dict[Timer, float] = {}
        self._interval = 0.0
        self._warm = False
        self._session: tuple[Role, float] | None = None
        self._answered = NEVER  # until here, whatever we sent counts as answered
        self._spoke = NEVER  # until here, whatever came counts as acknowledged
        self._silent_from = NEVER  # the unanswered instant NEW_HANDSHAKE is armed for
        self._traversed = NEVER  # last authenticated packet in either direction, as far as known
        self.handshake_sent = NEVER  # last initiation or response
        self.attempting_since = NEVER
        self.attempts = 0  # initiations sent since the last handshake

    # What happened.

    def traffic(self, facts: Traffic) -> None:
        """The data plane's facts about authenticated packets. What shares an instant with a handshake message, as the
        packets that waited for it do, counts as later."""
        self._traverse(max(facts.any_sent, facts.any_received))
        if facts.unanswered_since and facts.data_sent >= self._answered:
            # §6.5: nothing came back for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, so the session may be dead.
            since = max(facts.unanswered_since, self._answered)
            if Timer.NEW_HANDSHAKE not in self._at or since != self._silent_from:
                self._silent_from = since
                wait = self._timing.keepalive_timeout + self._timing.rekey_timeout
                self._at[Timer.NEW_HANDSHAKE] = since + wait + self._jitter()
        else:
            self._at.pop(Timer.NEW_HANDSHAKE, None)
        if facts.unacknowledged_since and facts.data_received >= self._spoke:
            # §6.5: data came, and for KEEPALIVE_TIMEOUT there was nothing to send back.
            since = max(facts.unacknowledged_since, self._spoke)
            self._at[Timer.SEND_KEEPALIVE] = since + self._timing.keepalive_timeout
        else:
            self._at.pop(Timer.SEND_KEEPALIVE, None)

    def handshake_initiated(self, now: float) -> None:
        """An initiation left. §6.4: repeat it after REKEY_TIMEOUT and jitter until a response comes."""
        self._authenticated_sent(now)
        if self.attempts == 0:
            self.attempting_since = now
        self.attempts += 1
        self._at.pop(Timer.DEFERRED_HANDSHAKE, None)
        self._at[Timer.RETRANSMIT_HANDSHAKE] = now + self._timing.rekey_timeout + self._jitter()

    def handshake_answered(self, now: float) -> None:
        """An initiation came and our response left."""
        self._authenticated_received(now)
        self._authenticated_sent(now)

    def response_received(self, now: float) -> None:
        self._authenticated_received(now)

    def handshake_completed(self) -> None:
        """Both ends are known to have the keys: a response came, or data under keys we answered with."""
        self._end_attempts()
        self._at.pop(Timer.DEFERRED_HANDSHAKE, None)

    def session_derived(self, role: Role, now: float) -> None:
        """New keys were installed. §6.3: wipe them after three times REJECT_AFTER_TIME without newer ones."""
        self._session = (role, now)
        self._at[Timer.ZERO_KEY_MATERIAL] = now + 3 * self._timing.reject_after_time
        self._arm_renewal()

    def attempt_prolonged(self, now: float) -> None:
        """§6.4: new data to send starts REKEY_ATTEMPT_TIME afresh."""
        self.attempting_since = now

    def handshake_given_up(self, now: float) -> None:
        self._end_attempts()
        self._spoke = now
        self._at.pop(Timer.SEND_KEEPALIVE, None)
        self._at.setdefault(Timer.ZERO_KEY_MATERIAL, now + 3 * self._timing.reject_after_time)

    def handshake_wanted_early(self) -> None:
        """Wanted before REKEY_TIMEOUT has passed since our last handshake message (§6.2)."""
        self._at.setdefault(Timer.DEFERRED_HANDSHAKE, self.handshake_sent + self._timing.rekey_timeout)

    def keys_wiped(self) -> None:
        self._end_attempts()
        self._session = None
        for timer in (Timer.ZERO_KEY_MATERIAL, Timer.RENEW_SESSION, Timer.DEFERRED_HANDSHAKE):
            self._at.pop(timer, None)

    def own_key_changed(self) -> None:
        """Our last handshake message was another identity's: it limits nothing any more."""
        self.handshake_sent = NEVER

    def configured(self, interval: float, warm: bool, now: float) -> None:
        """`interval`: seconds between persistent keepalives, 0 for none; `warm`: renew without traffic."""
        if interval != self._interval:
            self._interval = interval
            self._traverse(now)
        self._warm = warm
        self._arm_renewal()

    def stopped(self) -> None:
        """The interface went down: nothing is due any more, and all starts afresh."""
        self._end_attempts()
        self._at.clear()
        self._session = None
        self.handshake_sent = NEVER

    def resumed(self, sent: float, session: tuple[Role, float] | None) -> None:
        """After a hand-over: when the last handshake message left, and the session in force."""
        self.handshake_sent = sent
        if session is not None:
            self.session_derived(*session)

    # What to do.

    @property
    def session(self) -> tuple[Role, float] | None:
        """Our role in the newest session and its birth."""
        return self._session

    def may_initiate(self, now: float) -> bool:
        """§6.2: at most one initiation per REKEY_TIMEOUT; a response we sent counts too."""
        return now >= self.handshake_sent + self._timing.rekey_timeout

    def given_up(self, now: float) -> bool:
        """Whether REKEY_ATTEMPT_TIME is over for the initiation that was not answered."""
        return now >= self.attempting_since + self._timing.rekey_attempt_time

    def at(self, timer: Timer) -> float | None:
        return self._at.get(timer)

    def due(self) -> float | None:
        """The earliest deadline, None if there is none."""
        return min(self._at.values(), default=None)

    def expired(self, now: float) -> list[Timer]:
        """The timers whose time has come, each disarmed; in the order of their deadlines."""
        fired = sorted((at, timer.name) for timer, at in self._at.items() if at <= now)
        timers = [Timer[name] for _, name in fired]
        for timer in timers:
            del self._at[timer]
            if timer is Timer.NEW_HANDSHAKE:
                self._answered = now  # only data sent from here on asks again
            elif timer is Timer.SEND_KEEPALIVE:
                self._spoke = now
            elif timer is Timer.PERSISTENT_KEEPALIVE:
                self._traverse(now)
        return timers

    def _authenticated_sent(self, now: float) -> None:
        self.handshake_sent = now
        self._spoke = max(self._spoke, now)
        self._at.pop(Timer.SEND_KEEPALIVE, None)
        self._traverse(now)

    def _authenticated_received(self, now: float) -> None:
        self._answered = max(self._answered, now)
        self._at.pop(Timer.NEW_HANDSHAKE, None)
        self._traverse(now)

    def _traverse(self, at: float) -> None:
        self._traversed = max(self._traversed, at)
        if self._interval:
            self._at[Timer.PERSISTENT_KEEPALIVE] = self._traversed + self._interval
        else:
            self._at.pop(Timer.PERSISTENT_KEEPALIVE, None)

    def _arm_renewal(self) -> None:
        if not self._warm or self._session is None:
            self._at.pop(Timer.RENEW_SESSION, None)
            return
        role, birth = self._session
        timing = self._timing
        # The initiator renews; the responder only if the initiator has not, as late as §6.2 lets a receiver be.
        age = (
            timing.rekey_after_time
            if role is Role.INITIATOR
            else timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout
        )
        self._at[Timer.RENEW_SESSION] = birth + age + self._jitter()

    def _end_attempts(self) -> None:
        self._at.pop(Timer.RETRANSMIT_HANDSHAKE, None)
        self.attempts = 0
        self.attempting_since = NEVER
