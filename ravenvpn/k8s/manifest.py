"""YAML and JSON manifests with line numbers, read as untrusted input.

PyYAML's C parser composes the nodes of a document; this module converts nodes to plain values and records the line
of each. The library's constructor is not used: it silently takes the last of two equal keys, knows YAML 1.1 only
(`on` is a truth value, `012` is octal), and expands merge keys. Scalars follow the core schema of YAML 1.2 (section
10.3): `on` is text, `012` is twelve, and a time stays text.

Limits, all enforced before the memory is used: bytes and nodes of a file, nesting depth, and values that aliases
repeat (the "billion laughs" attack). Tags and merge keys are rejected. A Gateway, Node or Peer takes about
0.2 ms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ravenvpn.k8s.problems import Problem, path_steps

MAX_BYTES = 16 << 20
# Nodes of one file, about 500 bytes of memory each. Real manifests hold one node per 10 bytes or more.
MAX_NODES = 2_000_000
MAX_DEPTH = 64  # Kubernetes objects stay below twenty; also bounds the recursion here and in PyYAML's composer
# Values that aliases may add to a document beyond those written in it. A few anchors are a convenience.
MAX_ALIASED = 50_000

_TOO_DEEP = (f"is nested more than {MAX_DEPTH} deep", "write it as a plain object")
_PLAIN = "plain"  # in place of a tag: an untagged scalar without quotes, whose type follows from its text
_TAGS = "tag:yaml.org,2002:"
_ACCEPTED_TAGS = {
    yaml.ScalarNode: {_PLAIN, *(_TAGS + name for name in ("str", "int", "bool", "null", "float"))},
    yaml.SequenceNode: {_TAGS + "seq"},
    yaml.MappingNode: {_TAGS + "map"},
}

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE, _FALSE = frozenset(("true", "True", "TRUE")), frozenset(("false", "False", "FALSE"))
# Digits are bounded, so that no number takes more than 64 bits and int() stays linear.
_INT = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")


@dataclass(slots=True)
class LineMap:
    """Line of a value, counted from 1, and the LineMap of each part: by key of a mapping, by index of a list."""

    line: int
    parts: dict[str | int, LineMap] = field(default_factory=dict)

    def line_of(self, path: str) -> int:
        """Return the line of a field path, or of the innermost part of the path that exists."""
        here = self
        for step in path_steps(path):
            if step not in here.parts:
                break
            here = here.parts[step]
        return here.line


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its value (dict, list, str, int, float, bool) and where each part is written."""

    value: Any
    lines: LineMap


@dataclass(frozen=True, slots=True)
class Loaded:
    """Content of one file. `documents` are those before the first error; `problems` is empty or names that error."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...] = ()


def load(data: bytes, file: str) -> Loaded:
    """Parse all documents of one file. Never raises because of `data`; `file` is the name for messages.

    Empty documents (a `---` too many) are left out.
    """
    if len(data) > MAX_BYTES:
        message = f"is {len(data) >> 20} MiB large, the limit is {MAX_BYTES >> 20} MiB"
        return Loaded((), (Problem(message, "split it into several files", file=file),))
    documents: list[Document] = []
    try:
        documents.extend(_documents(data))
    except _RejectedError as error:
        message, remedy, line = error.message, error.remedy, error.line
    except yaml.MarkedYAMLError as error:
        message, remedy, line = _syntax_error(error)
    except yaml.reader.ReaderError as error:
        line = data[: error.position].count(b"\n") + 1 if isinstance(error.position, int) else 0
        message, remedy = f"is not text: {error.reason}", "save it as UTF-8 without control characters"
    except (yaml.YAMLError, UnicodeError) as error:
        message, remedy, line = f"is not YAML: {str(error).splitlines()[0]}", "correct the syntax", 0
    else:
        return Loaded(tuple(documents))
    return Loaded(tuple(documents), (Problem(message, remedy, file=file, line=line),))


class _RejectedError(Exception):
    """Valid YAML that is not accepted here."""

    def __init__(self, message: str, remedy: str, line: int) -> None:
        """Message and remedy are those of the Problem; `line` counts from 1, 0 if not known."""
        super().__init__(message)
        self.message, self.remedy, self.line = message, remedy, line


def _syntax_error(error: yaml.MarkedYAMLError) -> tuple[str, str, int]:
    """Message, remedy and line of an error of PyYAML's scanner, parser or composer."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    text = ", ".join(part for part in (error.context, error.problem) if part)
    if "nesting" in text:  # libyaml's own limit, reached while it reads ahead
        return (*_TOO_DEEP, line)
    if "undefined alias" in text:
        return "an alias (*) names an anchor that is not defined", "define the anchor (&) before the alias", line
    return f"is not YAML: {text}", "correct the syntax", line


class _Composer(yaml.CSafeLoader):
    """PyYAML's C composer with limits. The three methods are hooks that the composer calls for each node."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._depth = 0  # nodes from the root to the one that is composed
        self._nodes = 0  # composed so far, in all documents of the file

    def descend_resolver(self, parent: yaml.Node | None, _: object) -> None:
        """Count the depth before the composer recurses into a child of `parent`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _RejectedError(*_TOO_DEEP, _line(parent))

    def ascend_resolver(self) -> None:
        """Leave the node that the last `descend_resolver` entered."""
        self._depth -= 1

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        """Return the tag of an untagged node, which is `_PLAIN` for a scalar without quotes; count the node."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _RejectedError(f"holds more than {MAX_NODES} values", "split it into several files", 0)
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TAGS + "str"
        return _TAGS + ("map" if kind is yaml.MappingNode else "seq")


def _documents(data: bytes) -> Iterator[Document]:
    """Documents one after the other, so that those before an error are known when it is raised."""
    for node in yaml.compose_all(data, Loader=_Composer):
        value, lines, _ = _Converter().convert(node, _line(node))
        if value is not None:
            yield Document(value, lines)


class _Converter:
    """Converts the nodes of one document. An alias is the same node object as the value it repeats."""

    def __init__(self) -> None:
        # By id() of the node, which lives as long as its document: containers that are complete, with the number of
        # values in them (aliases expanded); None for one that is being converted.
        self._containers: dict[int, tuple[Any, LineMap, int] | None] = {}
        self._aliased = 0  # values that aliases added so far, at most MAX_ALIASED

    def convert(self, node: yaml.Node, line: int) -> tuple[Any, LineMap, int]:
        """Return value, lines and number of values of `node`. `line` is where it is used, for errors of aliases."""
        if id(node) in self._containers:
            return self._repeated(node, line)
        _check_tag(node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node), LineMap(_line(node)), 1
        self._containers[id(node)] = None
        result: tuple[Any, LineMap, int]
        result = self._mapping(node) if isinstance(node, yaml.MappingNode) else self._sequence(node)
        self._containers[id(node)] = result
        return result

    def _repeated(self, node: yaml.Node, line: int) -> tuple[Any, LineMap, int]:
        """Result of an alias on `line`: the same value object, not a copy; values are never modified."""
        known = self._containers[id(node)]
        if known is None:
            raise _RejectedError("an alias (*) refers to the value that contains it", "write the value out", line)
        value, lines, size = known
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise _RejectedError(f"aliases repeat more than {MAX_ALIASED} values", "write the values out", line)
        return value, LineMap(line, lines.parts), size

    def _sequence(self, node: yaml.Node) -> tuple[list[Any], LineMap, int]:
        """Convert a sequence to a list."""
        values: list[Any] = []
        lines, size = LineMap(_line(node)), 1
        for child in node.value:
            value, lines.parts[len(values)], count = self.convert(child, lines.line)
            values.append(value)
            size += count
        return values, lines, size

    def _mapping(self, node: yaml.Node) -> tuple[dict[str, Any], LineMap, int]:
        """Convert a mapping to a dict. Keys are text as written: `1` and `true` are the texts "1" and "true"."""
        values: dict[str, Any] = {}
        lines, size = LineMap(_line(node)), 1
        for key_node, child in node.value:
            key, line = key_node.value, _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _RejectedError("a key is not plain text", "keys of Kubernetes objects are text", line)
            if key == "<<":
                raise _RejectedError("merge keys (<<) are not supported", "write the fields out", line)
            if key in values:
                first = lines.parts[key].line
                raise _RejectedError(f"{key!r} appears twice, first on line {first}", "keep one of the two", line)
            values[key], inner, count = self.convert(child, line)
            # A mapping or list begins on the line after its key; a person looks for the key.
            lines.parts[key] = LineMap(line, inner.parts)
            size += count
        return values, lines, size


def _line(node: yaml.Node | None) -> int:
    """Line of a node, counted from 1; PyYAML counts from 0."""
    return node.start_mark.line + 1 if node is not None and node.start_mark else 0


def _check_tag(node: yaml.Node) -> None:
    """Reject tags that could construct anything but plain data."""
    if node.tag not in _ACCEPTED_TAGS[type(node)]:
        raise _RejectedError(f"tag {node.tag[:60]!r} is not supported", "write the value without a tag", _line(node))


def _scalar(node: yaml.ScalarNode) -> Any:
    """Value of a scalar: a plain one by the core schema of YAML 1.2 without infinities, others as text."""
    text = node.value
    if node.tag != _PLAIN:
        return text
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
