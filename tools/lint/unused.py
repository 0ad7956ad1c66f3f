"""Every definition in `ravenvpn` and `bench` is used there, by a framework, or by a feature that is under way.

vulture searches both packages without the tests: a definition that only tests use counts as unused. It goes by names
alone, so one that shares its name with something used is not found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from _tree import Finding, main
from vulture import Vulture

PACKAGES = ("ravenvpn", "bench")
# A decorator that registers a function makes it used.
REGISTERED = ["@click.command", "@click.group", "@*.command", "@*.group", "@*.result_callback"]


def findings(root: Path) -> Iterator[Finding]:
    """Yield each unused definition."""
    vulture = Vulture(ignore_decorators=REGISTERED)
    vulture.scavenge([str(root / package) for package in PACKAGES if (root / package).exists()])
    for item in vulture.get_unused_code(min_confidence=60):
        path = os.path.relpath(item.filename, root)
        yield Finding(path, item.first_lineno, f"unused {item.typ} {item.name}; remove it", key=item.name)


if __name__ == "__main__":
    main("unused", findings)
