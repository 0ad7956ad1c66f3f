"""The package `ravenvpn` has at least 0.30 lines of comments and docstrings for each line of code, and no docstring
that only repeats a name.

Comment lines are lines with a comment, trailing comments included, and lines of docstrings. Code lines are
the others. Blank lines do not count. That public names have docstrings at all is checked by ruff (D100 to D104).
`python tools/lint/comments.py . -v` prints the ratio of each folder.

A docstring repeats the name if all its words are words of the name of the class or function, or of the class or
module around it, or carry no meaning by themselves (`_EMPTY_WORD`).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from _tree import Definition, Finding, Module, definitions, main, modules

FLOOR = 0.30
_EMPTY_WORD = re.compile(
    "a|all|an|and|as|by|for|from|in|is|it|its|of|on|one|or|returns?|s|that|the|this|to|what|whether|with"
)


def findings(root: Path) -> Iterator[Finding]:
    """Yield one finding if the package is below the floor, and one for each docstring that repeats a name."""
    folders: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for module in modules(root):
        yield from _repetitions(module)
        for folder in (str(Path(module.path).parent), "all"):
            for index, lines in enumerate(_count(module)):
                folders[folder][index] += lines
    if "-v" in sys.argv:
        for folder, (comments, code) in sorted(folders.items()):
            print(f"{comments / max(1, code):.2f} {folder}")
    comments, code = folders["all"]
    if comments < FLOOR * code:
        message = f"{comments} lines of comments for {code} lines of code; the floor is {FLOOR:.2f}"
        yield Finding("ravenvpn", 1, message)


def _repetitions(module: Module) -> Iterator[Finding]:
    for name, node in definitions(module.tree):
        around, _, own = f"{Path(module.path).stem}.{name}".rpartition(".")
        docstring = ast.get_docstring(node)
        if docstring and _words(docstring) <= _words(own) | _words(around.rpartition(".")[2]):
            yield Finding(module.path, node.lineno, f"the docstring of {name} only repeats its name", key=name)


def _words(text: str) -> set[str]:
    """Return the words of a sentence or a name, without plural and without words that carry no meaning."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text).lower()
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]+", separated) if not _EMPTY_WORD.fullmatch(word)}


def _count(module: Module) -> tuple[int, int]:
    """Return the number of comment lines and of code lines."""
    docstrings = {line for node in _documented(module) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    filled = {number: line.strip() for number, line in enumerate(module.text.splitlines(), 1) if line.strip()}
    code = [number for number, line in filled.items() if number not in docstrings and not line.startswith("#")]
    return len((docstrings | comments) & filled.keys()), len(code)


def _documented(module: Module) -> Iterator[ast.stmt]:
    """Yield the docstrings of the module, its classes and functions."""
    nodes: list[ast.Module | Definition] = [module.tree, *(node for _, node in definitions(module.tree))]
    return (node.body[0] for node in nodes if ast.get_docstring(node, clean=False) is not None)


if __name__ == "__main__":
    main("comments", findings)
