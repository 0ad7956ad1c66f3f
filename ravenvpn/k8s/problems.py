"""Problem: an error in an object or a file, with the place and the remedy, for messages and reports."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. `str` gives `file:line: subject: field: message (remedy)`."""

    message: str  # continues after the field: "is missing"
    remedy: str  # imperative: "add publicKey"
    field: str = ""  # path as in `kubectl explain`: "spec.endpoints[0].port"; "" for the whole object
    subject: str = ""  # kind and name: "Gateway factory"; "" for a whole file
    file: str = ""  # name in the directory; "" for objects of a cluster
    line: int = 0  # counts from 1; 0 if not known
    fatal: bool = True  # the object or file is not used; False: it is used, and this is a warning

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        parts = ": ".join(part for part in (place, self.subject, self.field) if part)
        text = f"{parts}: {self.message}" if parts else self.message
        return f"{text} ({self.remedy})" if self.remedy else text


_STEP = re.compile(r"\[(\d+)\]|\[([^\]]+)\]|([^.\[\]]+)")


def path_steps(field: str) -> list[str | int]:
    """Split a field path into keys and indices: "a.b[2]" is "a", "b", 2; keys with dots are in brackets: "a[x.y]"."""
    return [int(index) if index else bracketed or name for index, bracketed, name in _STEP.findall(field)]
