from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from node.box import Box


@pytest.fixture
def box(netns: Callable[[], str]) -> Iterator[Callable[[], Box]]:
    """Call it for a host in a namespace of its own."""
    boxes: list[Box] = []

    def add() -> Box:
        boxes.append(Box(netns()))
        return boxes[-1]

    yield add
    for one in boxes:
        one.close()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes what enters it when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "sysctls"
