"""Check that the licence of every crate in the shipped extension is allowed: print all, exit 1 if one is not.

Reads `cargo metadata` for the locked dependencies of the Python binding. Build and test dependencies and procedural
macros are not shipped, so they are not checked.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

# SPDX identifiers of permissive licences. Expressions of our crates use OR, AND, "/" (formerly OR) and parentheses.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "ISC", "MIT",
    "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
ROOT = "raven-dataplane-python"  # the crate that becomes the extension


def may_ship(expression: str) -> bool:
    """Return True if the SPDX expression allows a choice that consists of allowed licences only.

    A parser by recursive descent, of OR over AND over single licences. Every operand is parsed, also when the result
    is known, because parsing consumes its words.
    """
    words = expression.replace("(", " ( ").replace(")", " ) ").replace("/", " OR ").split()

    def parse_or() -> bool:
        result = parse_and()
        while words and words[0] == "OR":
            words.pop(0)
            other = parse_and()
            result = result or other
        return result

    def parse_and() -> bool:
        result = parse_licence()
        while words and words[0] == "AND":
            words.pop(0)
            other = parse_licence()
            result = result and other
        return result

    def parse_licence() -> bool:
        word = words.pop(0)
        if word == "(":
            result = parse_or()
            words.pop(0)
            return result
        if words[:1] == ["WITH"]:
            word = f"{word} WITH {words[1]}"
            del words[:2]
        return word in ALLOWED

    return parse_or()


def shipped_crates(metadata: dict) -> list[tuple[str, str]]:
    """Return (crate and version, licence) of every crate linked into the extension, sorted."""
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
    """Print each crate with its licence; return the exit status."""
    linux = f"--filter-platform={platform.machine()}-unknown-linux-gnu"
    command = ["cargo", "metadata", "--format-version=1", "--locked", linux, "--manifest-path"]
    manifest = Path(__file__).parent / "Cargo.toml"
    output = subprocess.run([*command, str(manifest)], check=True, capture_output=True, text=True).stdout
    refused = 0
    for crate, licence in shipped_crates(json.loads(output)):
        fine = may_ship(licence)
        refused += not fine
        print(f"{'  ' if fine else 'NO'} {crate:32} {licence}")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main())
