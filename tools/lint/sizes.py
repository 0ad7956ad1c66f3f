"""No class over 20 methods, no module over 400 lines, no function over 70 lines in the package `ravenvpn`.

Past these sizes there is a second concept that needs a name. How it is counted:

* Methods of a class are the distinct names it defines, `__init__` included, other dunder methods not. A property
  counts once. Inherited methods do not count.
* Lines of a module are all its lines.
* Lines of a function go from its `def` to its end, without its docstring.

Exceptions are classes that are a flat list of events or operations: one short method for each, no state shared
between a few of them only. Splitting such a class would hide the list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from _tree import Definition, Finding, definitions, main, modules

METHODS = 20
MODULE_LINES = 400
FUNCTION_LINES = 70


def findings(root: Path) -> Iterator[Finding]:
    """Yield each class, module and function that is too large."""
    for module in modules(root):
        lines = len(module.text.splitlines())
        if lines > MODULE_LINES:
            yield Finding(module.path, 1, f"module has {lines} lines; the limit is {MODULE_LINES}", module.path)
        for name, node in definitions(module.tree):
            if isinstance(node, ast.ClassDef):
                count, what, limit = _methods(node), "methods", METHODS
            else:
                count, what, limit = _lines(node), "lines", FUNCTION_LINES
            if count > limit:
                message = f"{name} has {count} {what}; the limit is {limit}"
                yield Finding(module.path, node.lineno, message, key=name)


def _methods(node: ast.ClassDef) -> int:
    names = {child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)}
    return sum(name == "__init__" or not (name.startswith("__") and name.endswith("__")) for name in names)


def _lines(node: Definition) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


if __name__ == "__main__":
    main("sizes", findings)
