"""Whether every crate in the shipped extension may be shipped under ours: prints them, exits 1 if one may not.

Reads `cargo metadata` for the locked dependencies of the Python binding; what only builds or tests it is not shipped.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

# Permissive ones alone. SPDX expressions of our crates use OR, AND, "/" (an old OR) and parentheses.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "ISC", "MIT",
    "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
ROOT = "raven-dataplane-python"


def may_ship(expression: str) -> bool:
    """Whether some choice that the SPDX expression leaves consists of allowed licences only."""
    words = expression.replace("(", " ( ").replace(")", " ) ").replace("/", " OR ").split()

    def alternatives() -> bool:
        result = parts()
        while words and words[0] == "OR":
            words.pop(0)
            other = parts()
            result = result or other
        return result

    def parts() -> bool:
        result = one()
        while words and words[0] == "AND":
            words.pop(0)
            other = one()
            result = result and other
        return result

    def one() -> bool:
        word = words.pop(0)
        if word == "(":
            result = alternatives()
            words.pop(0)
            return result
        if words[:1] == ["WITH"]:
            word = f"{word} WITH {words[1]}"
            del words[:2]
        return word in ALLOWED

    return alternatives()


def shipped(metadata: dict) -> list[tuple[str, str]]:
    """(crate and version, licence) of everything linked into the extension."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting = [each for each, package in packages.items() if package["name"] == ROOT]
    seen = set(waiting)
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            linked = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            is_macro = any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
            if linked and not is_macro and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return sorted(
        (f"{packages[each]['name']} {packages[each]['version']}", packages[each]["license"] or "none")
        for each in seen
    )


def main() -> int:
    linux = f"--filter-platform={platform.machine()}-unknown-linux-gnu"
    command = ["cargo", "metadata", "--format-version=1", "--locked", linux, "--manifest-path"]
    manifest = Path(__file__).parent / "Cargo.toml"
    output = subprocess.run([*command, str(manifest)], check=True, capture_output=True, text=True).stdout
    refused = 0
    for crate, licence in shipped(json.loads(output)):
        fine = may_ship(licence)
        refused += not fine
        print(f"{'  ' if fine else 'NO'} {crate:32} {licence}")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main())
