"""Shared by the checks in this folder: source files, exceptions, and how findings are printed.

Each check is a script: `python tools/lint/NAME.py [ROOT]`, run from the project root or with another root as its
argument. It prints `file:line: message` for each finding and exits with 1 if there is one, otherwise with 0.
Exceptions with their reasons stand in `tools/lint/exceptions.toml`; an exception that nothing needs is a finding too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

EXCEPTIONS = Path("tools/lint/exceptions.toml")
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Finding:
    """One violation. `key` is the name by which exceptions.toml may allow it; empty if no exception is possible."""

    path: str  # relative to the root
    line: int
    message: str
    key: str = ""


@dataclass(frozen=True)
class Module:
    """One parsed source file."""

    path: str  # relative to the root
    text: str
    tree: ast.Module


def modules(root: Path, package: str = "ravenvpn") -> Iterator[Module]:
    """Yield the Python files of a package, parsed, in order of their paths."""
    for file in sorted((root / package).rglob("*.py")):
        text = file.read_text()
        yield Module(str(file.relative_to(root)), text, ast.parse(text))


def definitions(node: ast.AST, scope: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield every class and function below `node` with its dotted name, as in `Planner.update`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{scope}.{child.name}".lstrip(".")
            yield name, child
            yield from definitions(child, name)
        else:
            yield from definitions(child, scope)


def main(check: str, findings: Callable[[Path], Iterable[Finding]]) -> None:
    """Run one check on the root named by the command line; does not return.

    `check` is the check's table in exceptions.toml: keys are `Finding.key`, values the reasons.
    """
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    file = root / EXCEPTIONS
    text = file.read_text() if file.exists() else ""
    allowed = tomllib.loads(text).get(check, {})
    found = sorted(findings(root))
    left = [one for one in found if one.key not in allowed]
    for unused in sorted(allowed.keys() - {one.key for one in found}):
        line = next(
            n for n, line in enumerate(text.splitlines(), 1) if line.replace('"', "").startswith(f"{unused} =")
        )
        left.append(Finding(str(EXCEPTIONS), line, f"[{check}] {unused}: nothing needs this exception; remove it"))
    for one in left:
        print(f"{one.path}:{one.line}: {one.message}")
    sys.exit(1 if left else 0)
