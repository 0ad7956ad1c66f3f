"""What is wrong with an object or a file, as a value a person can act on."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `fatal`: the object (or file) is not taken; else it is, and this is a warning.

    `field` is a path as kubectl explain would write it ("spec.endpoints[0].port"), empty for the whole object;
    `subject` reads "Gateway factory", empty for a whole file; `line` counts from 1, 0 where nobody knows.
    """

    message: str
    remedy: str
    field: str = ""
    subject: str = ""
    file: str = ""
    line: int = 0
    fatal: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        parts = ": ".join(part for part in (place, self.subject, self.field) if part)
        text = f"{parts}: {self.message}" if parts else self.message
        return f"{text} ({self.remedy})" if self.remedy else text


_STEP = re.compile(r"\[(\d+)\]|\[([^\]]+)\]|([^.\[\]]+)")


def path_steps(field: str) -> list[str | int]:
    """The steps of a field path: "a.b[2]" is "a", "b", 2; a key that holds dots stands in brackets: "a[x.y/z]"."""
    return [int(index) if index else bracketed or name for index, bracketed, name in _STEP.findall(field)]
