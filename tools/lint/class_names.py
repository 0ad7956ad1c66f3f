"""A class name exists once in the package `ravenvpn`.

Two classes with the same name make every search ambiguous. Where two layers share a word, the name says which layer
(`PeerObject` of Kubernetes, `Peer` of WireGuard).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from _tree import Finding, definitions, main, modules


def findings(root: Path) -> Iterator[Finding]:
    """Yield each class after the first of its name."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for module in modules(root):
        for _, node in definitions(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append((module.path, node.lineno))
    for name, (first, *others) in places.items():
        for path, line in others:
            yield Finding(path, line, f"class {name} exists already in {first[0]}:{first[1]}; rename one", key=name)


if __name__ == "__main__":
    main("class-names", findings)
