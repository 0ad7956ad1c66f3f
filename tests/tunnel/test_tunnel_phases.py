"""The table of phases is total: each pair either leads somewhere or is a protocol error, and nothing in between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.phases import TRANSITIONS, Happening, OutOfTurn, Phase, after

# What can not happen: a response nobody waits for, giving up what was not begun, confirming keys not given.
IMPOSSIBLE = {
    (Phase.IDLE, Happening.RESPONSE_ACCEPTED),
    (Phase.IDLE, Happening.KEY_CONFIRMED),
    (Phase.IDLE, Happening.GIVEN_UP),
    (Phase.INITIATED, Happening.KEY_CONFIRMED),
    (Phase.RESPONDED, Happening.RESPONSE_ACCEPTED),
    (Phase.RESPONDED, Happening.GIVEN_UP),
    (Phase.ESTABLISHED, Happening.RESPONSE_ACCEPTED),
    (Phase.ESTABLISHED, Happening.GIVEN_UP),
}


@pytest.mark.parametrize(("phase", "happening"), list(itertools.product(Phase, Happening)))
def test_every_pair_leads_somewhere_or_is_out_of_turn(phase: Phase, happening: Happening) -> None:
    if (phase, happening) in IMPOSSIBLE:
        with pytest.raises(OutOfTurn) as caught:
            after(phase, happening)
        assert (caught.value.phase, caught.value.happening) == (phase, happening)
        assert isinstance(caught.value, MalformedMessage)
    else:
        assert after(phase, happening) is TRANSITIONS[phase, happening]


@given(st.lists(st.sampled_from(Happening)))
def test_any_history_agrees_with_the_facts_it_is_about(history: list[Happening]) -> None:
    """`pending` and having keys, kept by hand, are what the phase says after any sequence of events."""
    phase, pending, confirmed, answered = Phase.IDLE, False, False, False
    for happening in history:
        try:
            phase = after(phase, happening)
        except OutOfTurn:
            continue
        match happening:
            case Happening.INITIATION_SENT:
                pending = True
            case Happening.INITIATION_ACCEPTED:
                answered = True
            case Happening.RESPONSE_ACCEPTED | Happening.KEY_CONFIRMED:
                pending, confirmed = False, True
            case Happening.GIVEN_UP:
                pending = False
            case Happening.KEYS_RETIRED:
                confirmed = answered = False
            case Happening.WIPED:
                pending = confirmed = answered = False
        assert phase.pending is pending
        assert (phase in (Phase.ESTABLISHED, Phase.REKEYING)) is confirmed
        assert (phase is Phase.IDLE) is (not pending and not confirmed and not answered)
