"""What stood there before us is remembered before it is changed, and only as long as it means something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ravenvpn.errors import HostError
from ravenvpn.node.sysctl import Originals, Remembered

KEY = "net/ipv4/conf/cni0/forwarding"


def test_the_first_value_is_the_one_that_is_put_back(state_file: Path) -> None:
    originals = Originals(state_file)

    originals.remember(KEY, "0", "1")
    originals.remember(KEY, "1", "2")

    assert Originals(state_file).load() == {KEY: Remembered("0", "2")}


def test_nothing_remembered_no_file(state_file: Path) -> None:
    originals = Originals(state_file)
    originals.remember(KEY, "0", "1")

    originals.forget(KEY)
    originals.forget(KEY)

    assert not state_file.exists()
    assert originals.load() == {}


def test_what_was_before_the_last_boot_means_nothing(state_file: Path) -> None:
    Originals(state_file).remember(KEY, "0", "1")
    content = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({**content, "boot": "another"}))

    assert Originals(state_file).load() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"sysctls": {"a": [1]}}'])
def test_a_broken_file_is_said_with_its_name(state_file: Path, text: str) -> None:
    state_file.write_text(text)

    with pytest.raises(HostError, match=str(state_file)):
        Originals(state_file).load()
