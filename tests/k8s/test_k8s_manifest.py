"""Parsing of YAML and JSON manifests, and limits against hostile input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ravenvpn.k8s.directory import Manifests
from ravenvpn.k8s.manifest import load

EXAMPLES = [path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("examples/two-regions/*.yaml"))]


def values(text: str) -> list[object]:
    loaded = load(text.encode(), "f.yaml")
    assert loaded.problems == ()
    return [document.value for document in loaded.documents]


def test_scalars_follow_yaml_1_2() -> None:
    """YAML 1.1, which PyYAML's own constructor implements, reads five of these scalars as other values."""
    assert values("[on, no, 012, 1:30, 2026-01-31, =, ~, true, -7, 0x1F, 1.5e3, .inf, '5']") == [
        ["on", "no", 12, "1:30", "2026-01-31", "=", None, True, -7, 31, 1500.0, ".inf", "5"]
    ]


def test_keys_are_text() -> None:
    assert values("{1: a, true: b, null: c}") == [{"1": "a", "true": "b", "null": "c"}]


def test_empty_documents_are_left_out() -> None:
    assert values("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n") == [{"a": 1}, {"b": 2}]


def test_an_alias_repeats_the_value_of_its_anchor() -> None:
    assert values("a: &x [1, 2]\nb: *x\n") == [{"a": [1, 2], "b": [1, 2]}]


def test_json_is_read() -> None:
    assert values('{"a": [1, 2.5, null, true, "x\\n\\u00e9"], "b": {}}') == [
        {"a": [1, 2.5, None, True, "x\né"], "b": {}}
    ]


def test_the_line_of_a_field_is_that_of_its_key_or_of_the_innermost_part_that_exists() -> None:
    (document,) = load(b"a:\n  b:\n  - x\n  - c: 1\n    d: 2\n", "f.yaml").documents

    assert [document.lines.line_of(path) for path in ("", "a", "a.b", "a.b[1]", "a.b[1].d", "a.b[1].e", "z")] == [
        1,
        1,
        2,
        4,
        5,
        4,
        1,
    ]


def test_an_alias_has_the_lines_of_the_value_it_repeats() -> None:
    (document,) = load(b"a: &x\n  b: 1\nc: *x\n", "f.yaml").documents

    assert document.value == {"a": {"b": 1}, "c": {"b": 1}}
    assert [document.lines.line_of(path) for path in ("a.b", "c", "c.b")] == [2, 3, 2]


@pytest.mark.slow
def test_the_number_of_values_in_a_document_is_bounded() -> None:
    """Without the limit a file of 4 MiB could take gigabytes of memory."""
    loaded = load(b"[" + b"x," * 2_000_001 + b"]", "f.yaml")

    assert loaded.documents == ()
    assert [problem.message for problem in loaded.problems] == ["holds more than 2000000 values"]


def test_documents_before_an_error_are_kept() -> None:
    loaded = load(b"a: 1\n---\nb: [\n", "f.yaml")

    assert [document.value for document in loaded.documents] == [{"a": 1}]
    assert [(p.file, p.line) for p in loaded.problems] == [("f.yaml", 4)]


def test_the_examples_have_no_problems() -> None:
    manifests = Manifests()
    manifests.update({f"{i}.yaml": content for i, content in enumerate(EXAMPLES)})

    assert manifests.problems == ()
    assert set(manifests.world.gateways) == {"cloud", "factory"}


@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!|>'\"?#%@ \n\tab01<=~", max_size=80).map(str.encode))
@example(b"\xef\xbb\xbfa: 1")
@example(b"%YAML 9.9\n---\na")
@example(b"&a &b c")
@example(b"*")
@settings(max_examples=300)
def test_no_bytes_raise(data: bytes) -> None:
    loaded = load(data, "f.yaml")

    assert all(p.file == "f.yaml" and p.remedy and "\n" not in str(p) for p in loaded.problems)


@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=3)), max_size=4))
@settings(max_examples=150)
def test_a_file_with_changed_bytes_never_raises(text: bytes, flips: list[tuple[int, bytes]]) -> None:
    """A file that cannot be parsed keeps the objects it had before."""
    manifests = Manifests()
    manifests.update({"a.yaml": text})
    before = manifests.world
    broken = bytearray(text)
    for at, instead in flips:
        broken[at : at + 1] = instead

    manifests.update({"a.yaml": bytes(broken)})

    if any(p.fatal and not p.subject for p in manifests.problems):
        assert set(manifests.world.gateways) >= set(before.gateways)
    assert all("\n" not in str(p) and len(str(p)) < 1000 for p in manifests.problems)
