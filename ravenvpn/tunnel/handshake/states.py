"""Where a peer's handshakes stand, as a table: what may happen in which phase, and what it leads to.

    IDLE ── initiation sent ──► INITIATED ── response accepted ──► ESTABLISHED ◄─ response ─ REKEYING
      └── initiation accepted ─► RESPONDED ── key confirmed ────────► ESTABLISHED ── sent ────────┘
    CROSSED is INITIATED and RESPONDED at once: both ends called at the same time.

A pair that is not in the table is a protocol error: the message that caused it came out of turn.
"""

from __future__ import annotations

import enum
from typing import Final

from ravenvpn.errors import MalformedMessage


class HandshakeState(enum.Enum):
    IDLE = "idle"
    INITIATED = "initiated"  # our initiation is out; no session
    RESPONDED = "responded"  # we answered; the keys are not confirmed; no session
    CROSSED = "crossed"  # both of the above
    ESTABLISHED = "established"  # a session whose keys both ends are known to have
    REKEYING = "rekeying"  # a session, and our initiation for the next one is out

    @property
    def pending(self) -> bool:
        """Whether an initiation of ours waits for its response."""
        return self in (HandshakeState.INITIATED, HandshakeState.CROSSED, HandshakeState.REKEYING)


class HandshakeEvent(enum.Enum):
    INITIATION_SENT = "an initiation was sent"
    INITIATION_ACCEPTED = "an initiation was accepted and answered"
    RESPONSE_ACCEPTED = "a response was accepted"
    KEY_CONFIRMED = "the first packet under keys we answered with arrived"
    GIVEN_UP = "the initiation was given up"
    KEYS_RETIRED = "the last keypair left its slot"
    WIPED = "keys and handshakes were wiped"


class UnexpectedEvent(MalformedMessage):
    """Something happened that cannot happen in this phase."""

    def __init__(self, phase: HandshakeState, happening: HandshakeEvent) -> None:
        super().__init__(f"{happening.value} while {phase.value}")
        self.phase, self.happening = phase, happening


_P, _H = HandshakeState, HandshakeEvent

TRANSITIONS: Final[dict[tuple[HandshakeState, HandshakeEvent], HandshakeState]] = {
    (_P.IDLE, _H.INITIATION_SENT): _P.INITIATED,
    (_P.IDLE, _H.INITIATION_ACCEPTED): _P.RESPONDED,
    (_P.IDLE, _H.KEYS_RETIRED): _P.IDLE,
    (_P.IDLE, _H.WIPED): _P.IDLE,
    (_P.INITIATED, _H.INITIATION_SENT): _P.INITIATED,  # a retry, with a new ephemeral key and index
    (_P.INITIATED, _H.INITIATION_ACCEPTED): _P.CROSSED,
    (_P.INITIATED, _H.RESPONSE_ACCEPTED): _P.ESTABLISHED,
    (_P.INITIATED, _H.GIVEN_UP): _P.IDLE,
    (_P.INITIATED, _H.KEYS_RETIRED): _P.INITIATED,
    (_P.INITIATED, _H.WIPED): _P.IDLE,
    (_P.RESPONDED, _H.INITIATION_SENT): _P.CROSSED,
    (_P.RESPONDED, _H.INITIATION_ACCEPTED): _P.RESPONDED,  # the initiator retried: our response was lost
    (_P.RESPONDED, _H.KEY_CONFIRMED): _P.ESTABLISHED,
    (_P.RESPONDED, _H.KEYS_RETIRED): _P.IDLE,
    (_P.RESPONDED, _H.WIPED): _P.IDLE,
    (_P.CROSSED, _H.INITIATION_SENT): _P.CROSSED,
    (_P.CROSSED, _H.INITIATION_ACCEPTED): _P.CROSSED,
    (_P.CROSSED, _H.RESPONSE_ACCEPTED): _P.ESTABLISHED,
    (_P.CROSSED, _H.KEY_CONFIRMED): _P.ESTABLISHED,
    (_P.CROSSED, _H.GIVEN_UP): _P.RESPONDED,
    (_P.CROSSED, _H.KEYS_RETIRED): _P.INITIATED,
    (_P.CROSSED, _H.WIPED): _P.IDLE,
    (_P.ESTABLISHED, _H.INITIATION_SENT): _P.REKEYING,
    (_P.ESTABLISHED, _H.INITIATION_ACCEPTED): _P.ESTABLISHED,  # new keys wait in `next`, the old carry on
    (_P.ESTABLISHED, _H.KEY_CONFIRMED): _P.ESTABLISHED,
    (_P.ESTABLISHED, _H.KEYS_RETIRED): _P.IDLE,
    (_P.ESTABLISHED, _H.WIPED): _P.IDLE,
    (_P.REKEYING, _H.INITIATION_SENT): _P.REKEYING,
    (_P.REKEYING, _H.INITIATION_ACCEPTED): _P.REKEYING,
    (_P.REKEYING, _H.RESPONSE_ACCEPTED): _P.ESTABLISHED,
    (_P.REKEYING, _H.KEY_CONFIRMED): _P.ESTABLISHED,
    (_P.REKEYING, _H.GIVEN_UP): _P.ESTABLISHED,
    (_P.REKEYING, _H.KEYS_RETIRED): _P.INITIATED,
    (_P.REKEYING, _H.WIPED): _P.IDLE,
}


def after(phase: HandshakeState, happening: HandshakeEvent) -> HandshakeState:
    """The phase that follows; OutOfTurn if the table has no answer."""
    following = TRANSITIONS.get((phase, happening))
    if following is None:
        raise UnexpectedEvent(phase, happening)
    return following
