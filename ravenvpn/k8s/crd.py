"""Conversion of Kubernetes objects: JSON dictionaries become values of `ravenvpn.mesh.model`, or a list of problems.

The only place that does so; other modules see no dictionaries. No input raises: a malformed object is reported with
the path of the field and a remedy, and the caller decides which version stays in force.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import msgspec

from ravenvpn.k8s import gateways, nodes, peers, wire
from ravenvpn.k8s.fields import ProblemCollector, check_name, shown
from ravenvpn.k8s.problems import Problem, path_steps
from ravenvpn.mesh.model import Gateway, Node, PeerObject

write_status = gateways.write_status
write_peer = peers.write

# apiVersion and kind → the struct of the wire format.
_WIRE: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("raven.openyurt.io/v1beta1", "Gateway"): wire.GatewayV1Beta1,
    ("raven.openyurt.io/v1alpha1", "Gateway"): wire.GatewayV1Alpha1,
    ("ravenvpn.io/v1alpha1", "Peer"): wire.PeerWire,
    ("v1", "Node"): wire.NodeWire,
}
# Kind → the versions of it that are read.
_KINDS = {kind: sorted(v for v, k in _WIRE if k == kind) for _, kind in _WIRE}


@dataclass(frozen=True, slots=True)
class Parsed:
    """Result for one object."""

    kind: str = ""  # also of a malformed object, "" if it cannot be read; the same for `name`
    name: str = ""
    value: Gateway | Node | PeerObject | None = None  # None: a problem is fatal, or the kind is not one of ours
    problems: tuple[Problem, ...] = ()


def parse(document: object, *, handwritten: bool = False) -> Parsed:
    """Convert one object. Never raises because of `document`.

    `handwritten` is for manifests in files: unknown fields are warnings, and a Node without conditions is ready. An
    API server has dropped unknown fields and always has the conditions."""
    if not isinstance(document, Mapping):
        message = f"is {_type_of(document)} instead of an object"
        return Parsed(problems=(Problem(message, "begin with apiVersion, kind and metadata"),))
    # Kind, version and name come first: every later problem has them as its subject.
    kind, version = document.get("kind"), document.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str) or not kind or not version:
        missing = "kind" if isinstance(version, str) and version else "apiVersion"
        found = document.get(missing)
        message = "is missing" if found in (None, "") else f"is {_type_of(found)} instead of text"
        return Parsed(
            problems=(
                Problem(message, "write for example kind: Gateway, apiVersion: raven.openyurt.io/v1beta1", missing),
            )
        )
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    name = name if isinstance(name, str) else ""
    collector = ProblemCollector(f"{_short(kind)} {_short(name)}" if name else _short(kind))
    struct = _WIRE.get((version, kind))
    if struct is None:
        _report_unknown_kind(version, kind, collector)
        return Parsed(kind, name, problems=tuple(collector.problems))
    raw = _convert(document, struct, collector)
    value: Gateway | Node | PeerObject | None = None
    if raw is not None:
        # Unknown fields before the values: a mistyped field often is the cause of a later problem.
        if handwritten:
            _report_unknown(document, struct, "", collector)
        check_name(collector, "metadata.name", raw.metadata.name)  # type: ignore[attr-defined]
        value = _read(raw, collector, handwritten)
    # Readers return a value even after an error, so that all problems of an object are found at once.
    return Parsed(kind, name, None if collector.fatal else value, tuple(collector.problems))


def _short(text: str) -> str:
    """A kind, name or key for a message: unquoted if it can be one, else quoted and shortened."""
    return text if len(text) <= 63 and text.isprintable() else shown(text)


def _read(raw: msgspec.Struct, collector: ProblemCollector, handwritten: bool) -> Gateway | Node | PeerObject:
    """Convert a struct of `wire` to its value in the model."""
    match raw:
        case wire.GatewayV1Beta1():
            return gateways.read_v1beta1(raw, collector)
        case wire.GatewayV1Alpha1():
            return gateways.read_v1alpha1(raw, collector)
        case wire.PeerWire():
            return peers.read(raw, collector)
        case wire.NodeWire():
            return nodes.read(raw, collector, handwritten=handwritten)
    raise AssertionError(raw)


def _report_unknown_kind(version: str, kind: str, collector: ProblemCollector) -> None:
    """An unknown version of our kinds is an error; an object of another kind a warning, since files may hold them."""
    if kind in _KINDS and (kind != "Node" or version.partition("/")[0] == "v1"):
        collector.error(
            "apiVersion", f"{shown(version)} is not known for a {kind}", f"write {' or '.join(_KINDS[kind])}"
        )
        return
    # 0.75 finds one wrong or missing letter in "Gateway", and does not match Pod or NodePool with Node.
    near = difflib.get_close_matches(kind, _KINDS, 1, 0.75)
    remedy = f"did you mean {near[0]}?" if near else "Gateways, Nodes and Peers are read, other kinds are ignored"
    collector.warn("kind", f"{shown(kind)} of {_short(version)} is not read", remedy)


# The message of a msgspec.ValidationError, whose only structure is its text:
# "Expected `int`, got `str` - at `$.spec.endpoints[0].port`"
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>(?:key in )?\$?.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`")
# msgspec's names of JSON types, in the words of the messages; articles included.
_WORDS = {"int": "a whole number", "str": "text", "bool": "true or false", "object": "an object", "array": "a list"}


def _convert(
    document: Mapping[Any, Any], struct: type[msgspec.Struct], collector: ProblemCollector
) -> msgspec.Struct | None:
    """Convert to a struct of `wire`; None, and one problem, if a field has the wrong type or is missing."""
    try:
        return msgspec.convert(document, struct)
    except msgspec.ValidationError as error:
        matched = _MESSAGE.fullmatch(str(error))
        what, path = (matched["what"], matched["path"] or "") if matched else (str(error), "")
    except (RecursionError, OverflowError):  # JSON of an API server may be nested deeper than a manifest file
        collector.error("", "is nested too deeply or holds numbers too large", "write it as a plain object")
        return None
    # msgspec writes "$.a.b[0]", and "[...]" for the values of a dict, whose keys it does not name.
    field = path.removeprefix("$").removeprefix(".").removesuffix("[...]").removesuffix(".")
    missing = _MISSING.fullmatch(what)
    if missing:
        name = missing["field"]
        where = f"{field}.{name}" if field else name
        near = _near(document, field, name)
        remedy = f"rename {near!r} to {name!r}" if near else f"add {name}"
        collector.error(where, "is missing", remedy)
        return None
    expected = _EXPECTED.fullmatch(what)
    if expected:
        wanted = _type_names(expected["wanted"])
        collector.error(field, f"is {_type_names(expected['got'])} instead of {wanted}", f"write {wanted}")
    else:
        collector.error(field, what[:1].lower() + what[1:], "see `kubectl explain` for the type of this field")
    return None


def _type_names(names: str) -> str:
    """msgspec's "int | null" in words: "a whole number"."""
    parts = [_WORDS.get(part.strip(), part.strip()) for part in names.split("|") if part.strip() != "null"]
    return " or ".join(parts) or "nothing"


def _type_of(value: object) -> str:
    """Type of a JSON value in words, for a message."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}.get(
        type(value), "of an unknown type"
    )


def _near(document: Any, field: str, name: str) -> str:
    """A key beside the missing one that differs only in case, "" if none; common with upstream's `Replicas`."""
    here = document
    for step in path_steps(field):
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            return ""
    keys = [key for key in here if isinstance(key, str)] if isinstance(here, Mapping) else []
    return next((key for key in keys if key.lower() == name.lower() and key != name), "")


# Fields below which unknown keys are not reported: free-form maps, or parts that are not read.
# The status of a handwritten Gateway may be pasted from a cluster, with fields of other versions.
_OPAQUE = {"metadata", "status", "nodeSelector", "config"}


def _report_unknown(
    document: Mapping[Any, Any], struct: type[msgspec.Struct], at: str, collector: ProblemCollector
) -> None:
    """Warn about fields that are not in `struct`: in a manifest written by hand they are usually mistyped."""
    fields = _fields(struct)
    strict = struct is not wire.NodeSpec and bool(at)  # a Node's spec has many fields that are not read
    for key, value in document.items():
        if not isinstance(key, str) or (key not in fields and strict):
            name = _short(str(key))  # on one line and bounded, as part of a message
            where = f"{at}.{name}" if at else name
            # 0.6 is difflib's default: field names differ much from each other, unlike kinds.
            near = difflib.get_close_matches(str(key), fields, 1, 0.6)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(fields))}"
            collector.warn(where, "is not a field of this object and is ignored", remedy)
        elif key in fields and key not in _OPAQUE:
            inner = fields[key]
            if inner is not None:
                _descend(value, inner, f"{at}.{key}" if at else key, collector)


def _descend(value: object, struct: type[msgspec.Struct], at: str, collector: ProblemCollector) -> None:
    """Check the fields of an object, or of each object in a list, at the field path `at`."""
    if isinstance(value, Mapping):
        _report_unknown(value, struct, at, collector)
    elif isinstance(value, list):
        for i, one in enumerate(value):
            if isinstance(one, Mapping):
                _report_unknown(one, struct, f"{at}[{i}]", collector)


@cache  # by struct, of which there are about twenty
def _fields(struct: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Field names on the wire; each with the struct of its value, or of the items of a list, if it has one."""
    return {field.encode_name: _structure(field.type) for field in msgspec.structs.fields(struct)}


def _structure(hint: Any) -> type[msgspec.Struct] | None:
    """The struct within a type hint of `wire`: X in `X`, `X | None` and `list[X] | None`."""
    hints = [hint, *get_args(hint), *(inner for outer in get_args(hint) for inner in get_args(outer))]
    return next((h for h in hints if isinstance(h, type) and issubclass(h, msgspec.Struct)), None)
