"""RFC 3339 times: the forms the Kubernetes API writes, and text that is no time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn import rfc3339

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31 12:00:00Z", NOON),
        ("2026-01-31T13:30:00+01:30", NOON),
        ("2026-01-31T12:00:00.250000Z", NOON + 0.25),
        ("2026-01-31T12:00:00.250000999Z", NOON + 0.25),
        ("2026-01-31T12:00:00", NOON),
        ("2026-01-31", NOON - 12 * 3600),
    ],
)
def test_a_time_is_read_as_seconds_since_1970(text: str, seconds: float) -> None:
    """A missing offset is UTC, a missing time of day midnight."""
    assert rfc3339.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "20260131T120000Z",
        "2026-W05-6",
        "2026-02-30T00:00:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T12:00:00+99:00",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-01-31T12:00:00.Z",
        "٢٠٢٦-01-31",
        "2026-01-31T12:00:00." + "0" * 64 + "Z",
    ],
)
def test_text_that_is_no_time_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        rfc3339.parse(text)


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused_with_value_error(text: str) -> None:
    try:
        seconds = rfc3339.parse(text)
    except ValueError:
        return
    assert rfc3339.parse(rfc3339.format_micro_time(seconds)) == pytest.approx(seconds, abs=1e-4)


def test_time_has_whole_seconds_and_micro_time_six_digits() -> None:
    assert rfc3339.format_time(NOON + 0.999) == "2026-01-31T12:00:00Z"
    assert rfc3339.format_micro_time(NOON) == "2026-01-31T12:00:00.000000Z"
    assert rfc3339.format_micro_time(NOON + 0.25) == "2026-01-31T12:00:00.250000Z"
    assert rfc3339.format_time(-62135596800.0) == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize("seconds", [1e20, -1e12, float("nan"), float("inf")])
def test_seconds_outside_the_years_1_to_9999_raise_value_error(seconds: float) -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        rfc3339.format_time(seconds)


@given(st.floats(-62_135_596_800.0, 253_402_300_798.0))
def test_micro_time_survives_a_round_trip(seconds: float) -> None:
    assert rfc3339.parse(rfc3339.format_micro_time(seconds)) == pytest.approx(seconds, abs=1e-4)
