"""Each check in tools/lint passes on a small good tree and fails, with file and line, on one that breaks its rule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parents[2] / "tools/lint"
NAMES = sorted(file.stem for file in CHECKS.glob("[a-z]*.py"))

GOOD = '''"""A module."""


class Planner:
    """Computes routes."""

    def update(self) -> int:
        """Return the number of changed routes."""
        return 1


print(Planner().update())
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project root that passes every check."""
    write(tmp_path, "ravenvpn/plan.py", GOOD)
    write(tmp_path, "README.md", "A short line.\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def run(check: str, root: Path) -> tuple[int, list[str]]:
    """Return the exit status of a check, and the lines it printed."""
    done = subprocess.run(
        [sys.executable, CHECKS / f"{check}.py", root], capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def methods(count: int) -> str:
    return '"""A module."""\n\n\nclass Big:\n' + "\n".join(
        f'    def method{number}(self):\n        """Return a number."""\n' for number in range(count)
    )


def function(lines: int) -> str:
    """Return a module with one function of so many lines without its docstring."""
    return 'def long():\n    """Do much.\n\n    In many lines.\n    """\n' + "    print() #\n" * (lines - 1)


def test_there_are_checks():
    assert NAMES == ["class_names", "comments", "doc_lines", "sizes", "unused"]


@pytest.mark.parametrize("check", NAMES)
def test_a_good_tree_passes(tree: Path, check: str):
    assert run(check, tree) == (0, [])


def test_a_class_name_that_exists_twice_is_found(tree: Path):
    write(tree, "ravenvpn/z.py", "class Planner:\n    pass\n")
    assert run("class_names", tree) == (
        1,
        ["ravenvpn/z.py:1: class Planner exists already in ravenvpn/plan.py:4; rename one"],
    )


def test_a_class_of_21_methods_is_found(tree: Path):
    """Properties and __init__ count, other dunder methods do not."""
    write(tree, "ravenvpn/big.py", methods(20) + "\n    def __repr__(self): ...\n")
    assert run("sizes", tree) == (0, [])

    write(
        tree, "ravenvpn/big.py", methods(19) + "\n    def __init__(self): ...\n    @property\n    def x(self): ...\n"
    )
    assert run("sizes", tree) == (1, ["ravenvpn/big.py:4: Big has 21 methods; the limit is 20"])


def test_a_module_of_401_lines_is_found(tree: Path):
    write(tree, "ravenvpn/long.py", "#\n" * 400)
    assert run("sizes", tree) == (0, [])

    write(tree, "ravenvpn/long.py", "#\n" * 401)
    assert run("sizes", tree) == (1, ["ravenvpn/long.py:1: module has 401 lines; the limit is 400"])


def test_a_function_of_71_lines_is_found(tree: Path):
    """Its docstring does not count."""
    write(tree, "ravenvpn/long.py", function(70))
    assert run("sizes", tree) == (0, [])

    write(tree, "ravenvpn/long.py", function(71))
    assert run("sizes", tree) == (1, ["ravenvpn/long.py:1: long has 71 lines; the limit is 70"])


def test_a_long_line_of_prose_is_found_in_every_document(tree: Path):
    """Rows of tables and lines of code are exempt."""
    for path in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/a/page.md"):
        write(tree, path, f"{'a' * 120}\n| {'a' * 120} |\n```\n{'a' * 121}\n```\n{'a' * 121}\n")
    assert run("doc_lines", tree) == (
        1,
        [
            f"{path}:6: line has 121 characters; the limit is 120"
            for path in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "docs/a/page.md")
        ],
    )


def test_a_definition_that_only_tests_use_is_found(tree: Path):
    write(tree, "bench/run.py", "def measure(): ...\nmeasure()\ndef forgotten(): ...\n")
    write(tree, "tests/test_run.py", "forgotten()\n")
    assert run("unused", tree) == (1, ["bench/run.py:3: unused function forgotten; remove it"])


def test_too_few_comments_are_found(tree: Path):
    write(tree, "ravenvpn/bare.py", "print()\n" * 100)
    assert run("comments", tree) == (
        1,
        ["ravenvpn:1: 3 lines of comments for 104 lines of code; the floor is 0.30"],
    )


@pytest.mark.parametrize("docstring", ["Return the next hops.", "The planner's next hop."])
def test_a_docstring_that_repeats_the_name_is_found(tree: Path, docstring: str):
    write(tree, "ravenvpn/z.py", f'class Planner:\n    def next_hops(self):\n        """{docstring}"""\n')
    assert run("comments", tree) == (1, ["ravenvpn/z.py:2: the docstring of Planner.next_hops only repeats its name"])


def test_an_exception_allows_what_it_names(tree: Path):
    write(tree, "ravenvpn/big.py", methods(21))
    write(tree, "tools/lint/exceptions.toml", '[sizes]\nBig = "a flat list of events"\n')
    assert run("sizes", tree) == (0, [])


@pytest.mark.parametrize("check", ["class_names", "doc_lines", "sizes", "unused"])
def test_an_exception_that_nothing_needs_is_found(tree: Path, check: str):
    table = check.replace("_", "-")
    write(tree, "tools/lint/exceptions.toml", f'[{table}]\nGone = "it was needed once"\n')
    assert run(check, tree) == (
        1,
        [f"tools/lint/exceptions.toml:2: [{table}] Gone: nothing needs this exception; remove it"],
    )
