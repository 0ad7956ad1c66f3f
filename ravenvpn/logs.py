"""Logging set-up: human-readable lines on a terminal, one JSON object a line elsewhere (journal, container log)."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec

# Attributes of every LogRecord. Those that `extra=` adds become fields of the JSON object.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …}` and the record's extra fields.

    `time` is RFC 3339 in UTC with milliseconds; a traceback is in `exception`, so that a record is always one
    line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON; values that JSON does not have become strings."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


class HumanFormatter(logging.Formatter):
    """`12:04:31 warning  message`, in local time; a traceback follows on further lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = f"{clock} {record.levelname.lower():<8} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Set the root logger's level, format and stream (stderr); a later call replaces all of them.

    `form`: "human", "json", or "auto": human if the stream is a terminal."""
    out = stream or sys.stderr
    human = form == "human" or (form == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These libraries log every request or wake-up at INFO.
    for name in ("asyncio", "watchfiles", "aiohttp", "pyroute2"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
