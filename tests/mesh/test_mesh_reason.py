"""Reasons as values: each code has a sentence, and the sentence contains all parameters."""

from __future__ import annotations

import re

import pytest

from ravenvpn.mesh.reason import MAX_LISTED, Reason, ReasonCode, code_of, explain


@pytest.mark.parametrize("code", ReasonCode)
def test_every_code_has_a_sentence(code: ReasonCode) -> None:
    sentence = explain(Reason(code, "SUBJECT", ("ONE", "TWO", "THREE", "FOUR", "FIVE")))

    assert sentence
    assert not sentence.endswith(".")
    assert "{" not in sentence


@pytest.mark.parametrize("code", ReasonCode)
def test_codes_are_lower_case_words_joined_by_hyphens(code: ReasonCode) -> None:
    """Programs read the codes in JSON."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code_of(Reason(code)))


def test_a_long_list_is_cut_and_the_rest_counted() -> None:
    nodes = tuple(f"edge-{i}" for i in range(MAX_LISTED + 2))
    reason = Reason(ReasonCode.NODE_ADDRESS_IN_OWN_NETWORK, "factory", (nodes,))
    assert explain(reason).endswith(": edge-0, edge-1, edge-2 and 2 more")


def test_a_cause_is_explained_inside_the_sentence() -> None:
    cause = Reason(ReasonCode.PROBES_UNANSWERED, "edge-1")
    assert explain(Reason(ReasonCode.GATEWAY_SESSION, "edge-1", ("down", cause))) == (
        "edge-1 is down, it answers no probe"
    )


def test_no_reason_has_neither_sentence_nor_code() -> None:
    assert (explain(None), code_of(None)) == ("", "")
