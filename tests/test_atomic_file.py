"""Atomic file writes: content, mode, durability, and the folder after a failure."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from ravenvpn import atomic_file

WRITERS = [atomic_file.replace, atomic_file.create]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_exact_whatever_the_umask(tmp_path, write, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "file", b"content", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


def test_replace_overwrites_and_create_does_not(tmp_path):
    path = tmp_path / "file"
    assert atomic_file.create(path, b"first")
    assert not atomic_file.create(path, b"second")
    assert path.read_bytes() == b"first"
    atomic_file.replace(path, b"third")
    assert path.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["file"]


def test_a_symbolic_link_is_replaced_and_its_target_untouched(tmp_path):
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"target")
    path.symlink_to(target)
    assert not atomic_file.create(path, b"new")
    atomic_file.replace(path, b"new")
    assert target.read_bytes() == b"target"
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_symbolic_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.write_bytes(b"target")
    names = iter(["taken", "free"])
    monkeypatch.setattr("tempfile._get_candidate_names", lambda: names)
    (tmp_path / ".file.taken").symlink_to(target)
    atomic_file.replace(tmp_path / "file", b"new")
    assert target.read_bytes() == b"target"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("write", "step"),
    [(write, step) for write in WRITERS for step in ("fchmod", "fsync")]
    + [(atomic_file.replace, "replace"), (atomic_file.create, "link")],
)
def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, write, step):
    if write is atomic_file.replace:
        (tmp_path / "file").write_bytes(b"old")
    before = os.listdir(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == before
    assert write is atomic_file.create or (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("write", WRITERS)
def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch, write):
    steps: list[tuple[str, bool]] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append((kind, (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path / "file", b"content")
    assert steps == [("file", False), ("folder", True)]


def test_without_durable_nothing_is_synced(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    atomic_file.replace(tmp_path / "file", b"content", durable=False)
    assert (tmp_path / "file").read_bytes() == b"content"
