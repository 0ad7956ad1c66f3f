"""Handshake state machine of one peer: states, events, and the transition table.

    IDLE ── initiation sent ──► INITIATED ── response accepted ──► ESTABLISHED ◄─ response ─ REKEYING
      └── initiation accepted ─► RESPONDED ── key confirmed ────────► ESTABLISHED ── sent ────────┘
    CROSSED is INITIATED and RESPONDED at once: both ends initiated at the same time.

The table is total: a pair that is not in it is a protocol error, and the message that caused the event is refused.
"""

from __future__ import annotations

import enum
from typing import Final

from ravenvpn.errors import MalformedMessage


class HandshakeState(enum.Enum):
    """State of the handshakes with one peer. The value is the word shown to people."""

    IDLE = "idle"
    INITIATED = "initiated"  # our initiation is out; no session
    RESPONDED = "responded"  # our response is out; its keys are not confirmed; no session
    CROSSED = "crossed"  # both of the above
    ESTABLISHED = "established"  # a session whose keys both ends are known to have
    REKEYING = "rekeying"  # a session, and our initiation for the next one is out

    @property
    def pending(self) -> bool:
        """Whether an initiation of ours waits for its response."""
        return self in (HandshakeState.INITIATED, HandshakeState.CROSSED, HandshakeState.REKEYING)


class HandshakeEvent(enum.Enum):
    """Event of a handshake with a peer. The value completes the sentence of UnexpectedEvent."""

    INITIATION_SENT = "an initiation was sent"
    INITIATION_ACCEPTED = "an initiation was accepted and answered"
    RESPONSE_ACCEPTED = "a response was accepted"
    KEY_CONFIRMED = "the first packet under keys we responded with arrived"
    GIVEN_UP = "the initiation was given up"
    KEYS_RETIRED = "the last keypair left its slot"
    WIPED = "keys and handshakes were wiped"


class UnexpectedEvent(MalformedMessage):
    """The transition table has no entry for this event in this state."""

    def __init__(self, state: HandshakeState, event: HandshakeEvent) -> None:
        super().__init__(f"{event.value} while {state.value}")
        self.state, self.event = state, event


_S, _E = HandshakeState, HandshakeEvent

TRANSITIONS: Final[dict[tuple[HandshakeState, HandshakeEvent], HandshakeState]] = {
    (_S.IDLE, _E.INITIATION_SENT): _S.INITIATED,
    (_S.IDLE, _E.INITIATION_ACCEPTED): _S.RESPONDED,
    (_S.IDLE, _E.KEYS_RETIRED): _S.IDLE,
    (_S.IDLE, _E.WIPED): _S.IDLE,
    (_S.INITIATED, _E.INITIATION_SENT): _S.INITIATED,  # a retry, with a new ephemeral key and index
    (_S.INITIATED, _E.INITIATION_ACCEPTED): _S.CROSSED,
    (_S.INITIATED, _E.RESPONSE_ACCEPTED): _S.ESTABLISHED,
    (_S.INITIATED, _E.GIVEN_UP): _S.IDLE,
    (_S.INITIATED, _E.KEYS_RETIRED): _S.INITIATED,
    (_S.INITIATED, _E.WIPED): _S.IDLE,
    (_S.RESPONDED, _E.INITIATION_SENT): _S.CROSSED,
    (_S.RESPONDED, _E.INITIATION_ACCEPTED): _S.RESPONDED,  # the initiator retried: our response was lost
    (_S.RESPONDED, _E.KEY_CONFIRMED): _S.ESTABLISHED,
    (_S.RESPONDED, _E.KEYS_RETIRED): _S.IDLE,
    (_S.RESPONDED, _E.WIPED): _S.IDLE,
    (_S.CROSSED, _E.INITIATION_SENT): _S.CROSSED,
    (_S.CROSSED, _E.INITIATION_ACCEPTED): _S.CROSSED,
    (_S.CROSSED, _E.RESPONSE_ACCEPTED): _S.ESTABLISHED,
    (_S.CROSSED, _E.KEY_CONFIRMED): _S.ESTABLISHED,
    (_S.CROSSED, _E.GIVEN_UP): _S.RESPONDED,
    (_S.CROSSED, _E.KEYS_RETIRED): _S.INITIATED,
    (_S.CROSSED, _E.WIPED): _S.IDLE,
    (_S.ESTABLISHED, _E.INITIATION_SENT): _S.REKEYING,
    (_S.ESTABLISHED, _E.INITIATION_ACCEPTED): _S.ESTABLISHED,  # new keys wait in `next`, the current ones stay in use
    (_S.ESTABLISHED, _E.KEY_CONFIRMED): _S.ESTABLISHED,
    (_S.ESTABLISHED, _E.KEYS_RETIRED): _S.IDLE,
    (_S.ESTABLISHED, _E.WIPED): _S.IDLE,
    (_S.REKEYING, _E.INITIATION_SENT): _S.REKEYING,
    (_S.REKEYING, _E.INITIATION_ACCEPTED): _S.REKEYING,
    (_S.REKEYING, _E.RESPONSE_ACCEPTED): _S.ESTABLISHED,
    (_S.REKEYING, _E.KEY_CONFIRMED): _S.ESTABLISHED,
    (_S.REKEYING, _E.GIVEN_UP): _S.ESTABLISHED,
    (_S.REKEYING, _E.KEYS_RETIRED): _S.INITIATED,
    (_S.REKEYING, _E.WIPED): _S.IDLE,
}


def next_state(state: HandshakeState, event: HandshakeEvent) -> HandshakeState:
    """Return the state that follows. Raises UnexpectedEvent if the table has no entry for the pair."""
    following = TRANSITIONS.get((state, event))
    if following is None:
        raise UnexpectedEvent(state, event)
    return following
