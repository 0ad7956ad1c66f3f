"""Parse and format RFC 3339 times as the Kubernetes API writes them; seconds since 1970-01-01T00:00:00Z elsewhere.

meta/v1 has two kinds: `Time` (whole seconds: creationTimestamp, conditions, core/v1 Events, managedFields) and
`MicroTime` (six digits of fraction: acquireTime and renewTime of a Lease). An API server refuses a `Time` in place
of a `MicroTime`, hence two formatters; `parse` reads both. This module reads no clock.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

# The longest form that occurs is 35 characters (nanoseconds and a numeric offset). The bound keeps hostile text away
# from the parser and out of messages.
MAX_LENGTH = 64
# RFC 3339 section 5.6. The time and the offset are optional because people leave them out of hand-written manifests:
# a date alone is midnight, and a missing offset is UTC.
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)


def parse(text: str) -> float:
    """Return the time as seconds since 1970, to the microsecond; further digits of the fraction are cut off.

    Raises ValueError, with a message to append to the name of the field, if `text` is not a time, is longer than
    `MAX_LENGTH`, or lies outside the years 1 to 9999 in UTC (`format_time` could not write it back).
    """
    if len(text) > MAX_LENGTH or _DATE_TIME.fullmatch(text) is None:
        raise ValueError("is not an RFC 3339 time like 2026-01-31T12:00:00Z")
    try:
        when = datetime.fromisoformat(text.upper())
        # A leap second (23:59:60) is refused too: neither datetime nor Go's time package can hold one.
        utc = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("is not a date and time that exists") from error
    return utc.timestamp()


def format_time(seconds: float) -> str:
    """Return meta/v1 `Time`: `2026-01-31T12:00:00Z`, without fraction. Raises ValueError outside years 1 to 9999."""
    return _utc(seconds).isoformat(timespec="seconds").replace("+00:00", "Z")


def format_micro_time(seconds: float) -> str:
    """Return meta/v1 `MicroTime`: `2026-01-31T12:00:00.123456Z`. Raises ValueError outside years 1 to 9999."""
    return _utc(seconds).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _utc(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (
        ValueError,
        OverflowError,
        OSError,
    ) as error:  # which one depends on the size of the number; NaN: ValueError
        raise ValueError(f"{seconds:g} s since 1970 is outside the years 1 to 9999") from error
