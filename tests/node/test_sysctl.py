"""The journal of original sysctl values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ravenvpn.errors import HostError
from ravenvpn.node.sysctl import SavedSysctl, SysctlJournal

KEY = "net/ipv4/conf/cni0/forwarding"


def test_the_first_original_value_is_kept(state_file: Path) -> None:
    journal = SysctlJournal(state_file)

    journal.record(KEY, "0", "1")
    journal.record(KEY, "1", "2")

    assert SysctlJournal(state_file).load() == {KEY: SavedSysctl("0", "2")}


def test_an_empty_journal_is_deleted(state_file: Path) -> None:
    journal = SysctlJournal(state_file)
    journal.record(KEY, "0", "1")

    journal.drop(KEY)
    journal.drop(KEY)

    assert not state_file.exists()
    assert journal.load() == {}


def test_entries_of_another_boot_are_ignored(state_file: Path) -> None:
    SysctlJournal(state_file).record(KEY, "0", "1")
    content = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({**content, "boot": "another"}))

    assert SysctlJournal(state_file).load() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"sysctls": {"a": [1]}}'])
def test_a_broken_journal_is_reported_with_its_path(state_file: Path, text: str) -> None:
    state_file.write_text(text)

    with pytest.raises(HostError, match=str(state_file)):
        SysctlJournal(state_file).load()
