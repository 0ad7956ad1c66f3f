"""YAML and JSON that people write, read without trusting it.

PyYAML's C parser gives events; the values are built here from those, with a stack of our own, because the library's
composer recurses, takes duplicate keys silently, and expands aliases without a bound. Scalars follow YAML 1.2's core
schema: `on` is text and `012` is twelve, so a name never becomes a truth value, and a time stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ravenvpn.k8s.problems import Problem, path_steps

MAX_BYTES = 16 << 20
MAX_DEPTH = 64  # Kubernetes objects stay below twenty
TOO_DEEP = (f"is nested more than {MAX_DEPTH} deep", "write it as a plain object")
# What aliases may add to a file beyond what is written in it. A few anchors are a convenience; a bomb is a million.
MAX_ALIASED = 50_000

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE, _FALSE = frozenset(("true", "True", "TRUE")), frozenset(("false", "False", "FALSE"))
_INT = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")


@dataclass(slots=True)
class Marked:
    """Where a value and its parts begin. Lines count from 1."""

    line: int
    parts: dict[str | int, Marked] = field(default_factory=dict)

    def find(self, path: str) -> int:
        """The line of a field, or of the innermost part of its path that is there."""
        here = self
        for step in path_steps(path):
            if step not in here.parts:
                break
            here = here.parts[step]
        return here.line


@dataclass(frozen=True, slots=True)
class Document:
    value: Any
    marks: Marked


@dataclass(frozen=True, slots=True)
class Loaded:
    """`documents` are those before the first mistake; `problems` is empty or says what that was."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...] = ()


def load(data: bytes, file: str) -> Loaded:
    """Everything in one file. Never raises for what `data` holds."""
    if len(data) > MAX_BYTES:
        message = f"is {len(data) >> 20} MiB large, {MAX_BYTES >> 20} are read at most"
        return Loaded((), (Problem(message, "split it into several files", file=file),))
    documents: list[Document] = []
    try:
        documents.extend(_documents(data))
    except _Refused as refused:
        problem = Problem(refused.message, refused.remedy, file=file, line=refused.line)
        return Loaded(tuple(documents), (problem,))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        if "nesting depth" in (error.problem or error.context or ""):  # a parser that counts before we do
            return Loaded(tuple(documents), (Problem(*TOO_DEEP, file=file, line=line),))
        problem = Problem(f"is not YAML: {error.problem or error.context}", "mend the syntax", file=file, line=line)
        return Loaded(tuple(documents), (problem,))
    except yaml.reader.ReaderError as error:
        line = data[: error.position].count(b"\n") + 1 if isinstance(error.position, int) else 0
        remedy = "save it as UTF-8 without control characters"
        return Loaded(tuple(documents), (Problem(f"is not text: {error.reason}", remedy, file=file, line=line),))
    except (yaml.YAMLError, UnicodeError) as error:
        problem = Problem(f"is not YAML: {str(error).splitlines()[0]}", "mend the syntax", file=file)
        return Loaded(tuple(documents), (problem,))
    return Loaded(tuple(documents))


class _Refused(Exception):
    def __init__(self, message: str, remedy: str, line: int) -> None:
        super().__init__(message)
        self.message, self.remedy, self.line = message, remedy, line


@dataclass(slots=True)
class _Frame:
    """A container that is being filled. `size` counts its values with all they hold, aliases expanded."""

    value: dict[str, Any] | list[Any]
    marks: Marked
    anchor: str | None
    size: int = 1
    key: str | None = None  # of a mapping: the key that waits for its value


class _Builder:
    """One document, from events to a value."""

    def __init__(self) -> None:
        self.done: Document | None = None
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, Marked, int] | None] = {}  # None: not finished
        self._aliased = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 0
        match event:
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.AliasEvent():
                self._alias(event.anchor or "", line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                frame = self._stack.pop()
                self._put(frame.value, frame.marks, frame.size, frame.anchor, line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, event.value, line)
            if event.anchor:
                self._anchors[event.anchor] = (event.value, Marked(line), 1)
            return
        _refuse_tag(event.tag, ("str", "int", "bool", "null", "float"), line)
        plain = event.implicit[0] and event.tag is None
        self._put(_resolve(event.value) if plain else event.value, Marked(line), 1, event.anchor, line)

    def _key(self, top: _Frame, key: str, line: int) -> None:
        if key == "<<":
            raise _Refused("merge keys (<<) are not read", "write the fields out", line)
        if key in top.value:
            first = top.marks.parts[key].line
            raise _Refused(f"{key!r} is there twice, first on line {first}", "keep one of the two", line)
        top.key = key
        top.marks.parts[key] = Marked(line)

    def _open(self, event: yaml.CollectionStartEvent, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise _Refused("a key is not plain text", "keys of Kubernetes objects are text", line)
        if len(self._stack) >= MAX_DEPTH:
            raise _Refused(*TOO_DEEP, line)
        mapping = isinstance(event, yaml.MappingStartEvent)
        _refuse_tag(event.tag, ("map",) if mapping else ("seq",), line)
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append(_Frame({} if mapping else [], Marked(line), event.anchor))

    def _alias(self, name: str, line: int) -> None:
        if name not in self._anchors:
            raise _Refused(f"*{name} names an anchor that is not there", f"define &{name} before it", line)
        known = self._anchors[name]
        if known is None:
            raise _Refused(f"*{name} refers to itself", "write the value out", line)
        value, marks, size = known
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise _Refused("an alias stands for a key", "write the key out", line)
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise _Refused(f"aliases repeat more than {MAX_ALIASED} values", "write the values out", line)
        self._put(value, Marked(line, marks.parts), size, None, line)

    def _put(self, value: Any, marks: Marked, size: int, anchor: str | None, line: int) -> None:
        if anchor:
            self._anchors[anchor] = (value, marks, size)
        if not self._stack:
            self.done = Document(value, marks)
            return
        top = self._stack[-1]
        top.size += size
        if isinstance(top.value, list):
            top.marks.parts[len(top.value)] = marks
            top.value.append(value)
        else:
            assert top.key is not None
            top.value[top.key] = value
            # A mapping or list begins on the line after its key; a person looks for the key.
            top.marks.parts[top.key].parts = marks.parts
            top.key = None


def _documents(data: bytes) -> Iterator[Document]:
    loader = yaml.CSafeLoader(data)
    try:
        builder = _Builder()
        while loader.check_event():
            event = loader.get_event()
            assert event is not None
            if isinstance(event, yaml.DocumentStartEvent):
                builder = _Builder()
            elif isinstance(event, yaml.DocumentEndEvent):
                # `---` with nothing under it is a separator too many, not an object.
                if builder.done is not None and builder.done.value is not None:
                    yield builder.done
            else:
                builder.take(event)
    finally:
        loader.dispose()


def _refuse_tag(tag: str | None, known: tuple[str, ...], line: int) -> None:
    if tag is not None and tag not in ("!", *(f"tag:yaml.org,2002:{name}" for name in known)):
        raise _Refused(f"tag {tag[:60]!r} is not read", "write the value without a tag", line)


def _resolve(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2 (§10.3), without infinities."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
