"""The table of phases is total: each pair either leads somewhere or is a protocol error, and nothing in between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.handshake.states import TRANSITIONS, HandshakeEvent, HandshakeState, UnexpectedEvent, after

# What can not happen: a response nobody waits for, giving up what was not begun, confirming keys not given.
IMPOSSIBLE = {
    (HandshakeState.IDLE, HandshakeEvent.RESPONSE_ACCEPTED),
    (HandshakeState.IDLE, HandshakeEvent.KEY_CONFIRMED),
    (HandshakeState.IDLE, HandshakeEvent.GIVEN_UP),
    (HandshakeState.INITIATED, HandshakeEvent.KEY_CONFIRMED),
    (HandshakeState.RESPONDED, HandshakeEvent.RESPONSE_ACCEPTED),
    (HandshakeState.RESPONDED, HandshakeEvent.GIVEN_UP),
    (HandshakeState.ESTABLISHED, HandshakeEvent.RESPONSE_ACCEPTED),
    (HandshakeState.ESTABLISHED, HandshakeEvent.GIVEN_UP),
}


@pytest.mark.parametrize(("phase", "happening"), list(itertools.product(HandshakeState, HandshakeEvent)))
def test_every_pair_leads_somewhere_or_is_out_of_turn(phase: HandshakeState, happening: HandshakeEvent) -> None:
    if (phase, happening) in IMPOSSIBLE:
        with pytest.raises(UnexpectedEvent) as caught:
            after(phase, happening)
        assert (caught.value.phase, caught.value.happening) == (phase, happening)
        assert isinstance(caught.value, MalformedMessage)
    else:
        assert after(phase, happening) is TRANSITIONS[phase, happening]


@given(st.lists(st.sampled_from(HandshakeEvent)))
def test_any_history_agrees_with_the_facts_it_is_about(history: list[HandshakeEvent]) -> None:
    """`pending` and having keys, kept by hand, are what the phase says after any sequence of events."""
    phase, pending, confirmed, answered = HandshakeState.IDLE, False, False, False
    for happening in history:
        try:
            phase = after(phase, happening)
        except UnexpectedEvent:
            continue
        match happening:
            case HandshakeEvent.INITIATION_SENT:
                pending = True
            case HandshakeEvent.INITIATION_ACCEPTED:
                answered = True
            case HandshakeEvent.RESPONSE_ACCEPTED | HandshakeEvent.KEY_CONFIRMED:
                pending, confirmed = False, True
            case HandshakeEvent.GIVEN_UP:
                pending = False
            case HandshakeEvent.KEYS_RETIRED:
                confirmed = answered = False
            case HandshakeEvent.WIPED:
                pending = confirmed = answered = False
        assert phase.pending is pending
        assert (phase in (HandshakeState.ESTABLISHED, HandshakeState.REKEYING)) is confirmed
        assert (phase is HandshakeState.IDLE) is (not pending and not confirmed and not answered)
