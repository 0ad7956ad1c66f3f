"""PersistentMap and its difference, compared with a dictionary."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.mesh.persistent import PersistentMap

# Spread names, and names that share one of the 1,024 buckets.
CROWDED = [f"n{i}" for i in range(6000) if crc32(f"n{i}".encode()) & 1023 == 0]
names = st.sampled_from([f"n{i}" for i in range(30)] + CROWDED)
steps = st.lists(st.tuples(names, st.none() | st.integers(0, 3)), max_size=60)


def walk(start: PersistentMap[object], model: dict[str, object], edits: list) -> PersistentMap[object]:
    for name, value in edits:
        start = start.remove(name) if value is None else start.put(name, value)
        if value is None:
            model.pop(name, None)
        else:
            model[name] = value
    return start


@given(steps, steps)
def test_the_map_agrees_with_a_dictionary_and_gives_the_difference(first: list, second: list) -> None:
    model: dict[str, object] = {}
    before = walk(PersistentMap(), model, first)
    was = dict(model)
    after = walk(before, model, second)

    assert dict(before) == was
    assert (dict(after), len(after)) == (model, len(model))
    assert after.changed(before) == {n for n in was.keys() | model.keys() if was.get(n) != model.get(n)}
    assert (after == before) == (was == model)


@given(steps)
def test_iteration_order_depends_on_names_alone(edits: list) -> None:
    model: dict[str, object] = {}
    walked = walk(PersistentMap(), model, edits)

    assert list(walked) == list(PersistentMap(reversed(model.items())))
    assert len(CROWDED) > 3


def test_putting_an_equal_value_keeps_the_old_object() -> None:
    value = ["a"]
    before = PersistentMap([("x", value)])

    assert before.put("x", ["a"]) is before
    assert before.remove("y") is before


def test_a_change_is_found_without_comparing_the_rest() -> None:
    """The other values raise an error if they are compared."""

    class Touchy:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    before = PersistentMap([(f"n{i}", Touchy()) for i in range(1000)])
    after = before.remove("n7")

    assert after.changed(before) == {"n7"}
