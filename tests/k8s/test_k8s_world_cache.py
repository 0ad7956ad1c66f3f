"""The file of the saved world."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from ravenvpn.k8s.assembly import Feed, SavedObject
from ravenvpn.k8s.world_cache import SavedWorld, WorldCache

WORLD = SavedWorld(
    "uid",
    "mesh",
    "https://192.0.2.10:6443",
    (("192.0.2.10", 6443),),
    1000.0,
    {Feed.GATEWAYS: "10", Feed.PEERS: "11"},
    (
        SavedObject(b'{"kind":"Gateway","metadata":{"name":"a"}}', "7", frozenset({Feed.GATEWAYS})),
        SavedObject(b'{"kind":"Peer","metadata":{"name":"b"}}', "8", frozenset({Feed.PEERS, Feed.REGION})),
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> WorldCache:
    file = WorldCache(tmp_path / "world")
    file.store(WORLD)
    return file


def test_a_stored_world_is_loaded(file: WorldCache) -> None:
    assert WorldCache(file.path).load() == WORLD
    assert file.complaint == ""


def test_the_file_has_mode_0600_and_no_temporary_file_is_left(file: WorldCache) -> None:
    old = os.umask(0)
    try:
        file.store(WORLD)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert os.listdir(file.path.parent) == ["world"]


def test_a_missing_file_is_no_complaint(tmp_path: Path) -> None:
    file = WorldCache(tmp_path / "world")
    assert file.load() is None
    assert file.complaint == ""


@pytest.mark.parametrize("length", [0, 1, 50, 200, -1, -20])
def test_a_truncated_file_is_renamed(file: WorldCache, length: int) -> None:
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:length])

    assert file.load() is None
    assert "is not used" in file.complaint
    assert str(file.path) + ".corrupt" in file.complaint
    assert not file.path.exists()
    assert Path(f"{file.path}.corrupt").read_bytes() == whole[:length]


def test_a_flipped_bit_is_detected(file: WorldCache) -> None:
    content = bytearray(file.path.read_bytes())
    content[-10] ^= 1
    file.path.write_bytes(content)
    assert file.load() is None
    assert "truncated or changed: the checksum does not match" in file.complaint


@pytest.mark.parametrize("content", [b"\x00" * 4096, b"[]\n", b"{}\n", b'{"ravenvpn_world":"1"}\n', b"[" * 100_000])
def test_a_file_of_another_format_is_renamed(file: WorldCache, content: bytes) -> None:
    file.path.write_bytes(content)
    assert file.load() is None
    assert file.complaint
    assert Path(f"{file.path}.corrupt").exists()


def test_a_file_of_a_newer_version_is_kept_under_another_name(file: WorldCache) -> None:
    head, _, body = file.path.read_bytes().partition(b"\n")
    newer = msgspec.json.encode({**msgspec.json.decode(head), "ravenvpn_world": 2, "more": [1, 2]})
    file.path.write_bytes(newer + b"\n" + body)
    assert file.load() is None
    assert "format 2" in file.complaint
    assert Path(f"{file.path}.newer").exists()


def test_a_directory_in_place_of_the_file_is_reported_and_kept(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    file = WorldCache(tmp_path / "world")
    assert file.load() is None
    assert "cannot be read" in file.complaint


def test_a_failed_write_keeps_the_old_file(file: WorldCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.store(SavedWorld("other", "other"))
    assert file.path.read_bytes() == before
    assert os.listdir(file.path.parent) == ["world"]
