"""The transition table is total: each pair of state and event has a next state or is a protocol error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.handshake.states import TRANSITIONS, HandshakeEvent, HandshakeState, UnexpectedEvent, next_state

# A response without an initiation, giving up without an initiation, confirming a key without a response.
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


@pytest.mark.parametrize(("state", "event"), list(itertools.product(HandshakeState, HandshakeEvent)))
def test_every_pair_has_a_next_state_or_raises(state: HandshakeState, event: HandshakeEvent) -> None:
    if (state, event) in IMPOSSIBLE:
        with pytest.raises(UnexpectedEvent) as caught:
            next_state(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)
        assert isinstance(caught.value, MalformedMessage)
    else:
        assert next_state(state, event) is TRANSITIONS[state, event]


@given(st.lists(st.sampled_from(HandshakeEvent)))
def test_the_state_agrees_with_flags_kept_by_hand(history: list[HandshakeEvent]) -> None:
    """Flags `pending`, `confirmed` and `answered`, updated by hand, match the state after any sequence of events."""
    state, pending, confirmed, answered = HandshakeState.IDLE, False, False, False
    for event in history:
        try:
            state = next_state(state, event)
        except UnexpectedEvent:
            continue
        match event:
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
        assert state.pending is pending
        assert (state in (HandshakeState.ESTABLISHED, HandshakeState.REKEYING)) is confirmed
        assert (state is HandshakeState.IDLE) is (not pending and not confirmed and not answered)
