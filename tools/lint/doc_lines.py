"""Lines of the Markdown documents are at most 120 characters long.

Rows of tables and lines of code blocks are exempt: neither can be wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from _tree import Finding, main

WIDTH = 120
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")


def findings(root: Path) -> Iterator[Finding]:
    """Yield each line of prose that is too long."""
    for file in sorted({file for pattern in DOCUMENTS for file in root.glob(pattern)}):
        path, in_code = str(file.relative_to(root)), False
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.lstrip().startswith(("```", "~~~")):
                in_code = not in_code
            elif len(line) > WIDTH and not in_code and not line.lstrip().startswith("|"):
                yield Finding(path, number, f"line has {len(line)} characters; the limit is {WIDTH}", key=path)


if __name__ == "__main__":
    main("doc-lines", findings)
