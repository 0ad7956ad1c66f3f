"""A directory on disk that is watched while editors and ConfigMap volumes change it, and while it is missing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ravenvpn.k8s.files import FileSource, Snapshot
from ravenvpn.k8s.problems import Problem

SOON = 5.0  # seconds; on an idle machine a change is seen within 0.05 s


def peer(name: str, first: int = 1) -> str:
    key = (
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        if first == 1
        else "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    )
    return f"apiVersion: ravenvpn.io/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{publicKey: {key}}}\n"


def names(snapshot: Snapshot) -> set[str]:
    return set(snapshot.world.peers)


class Watched:
    """A source with its snapshots. `until` reads snapshots until one matches."""

    def __init__(self, directory: Path) -> None:
        self.source = FileSource(directory)
        self.seen: list[Snapshot] = []
        self._snapshots: AsyncIterator[Snapshot] = self.source.snapshots()

    async def until(self, suits: Callable[[Snapshot], bool]) -> Snapshot:
        async with asyncio.timeout(SOON):
            while True:
                snapshot = await anext(self._snapshots)
                self.seen.append(snapshot)
                if suits(snapshot):
                    return snapshot

    async def close(self) -> None:
        await self._snapshots.aclose()  # type: ignore[attr-defined]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(peer("a"))
    made = Watched(directory)
    await made.until(lambda s: names(s) == {"a"})
    await asyncio.sleep(0.3)  # until inotify watches exist: the tests are about notifications
    yield made
    await made.close()


async def test_a_change_is_seen_quickly(watched: Watched) -> None:
    spent = []
    for turn in range(5):
        began = time.monotonic()
        (watched.source.directory / "a.yaml").write_text(peer("a") + peer(f"b{turn}").join(("---\n", "")))
        await watched.until(lambda s, n=f"b{turn}": n in names(s))
        spent.append(time.monotonic() - began)
    assert sorted(spent)[2] < 0.5


async def test_a_file_that_an_editor_replaces_by_rename_is_read_again(watched: Watched) -> None:
    draft = watched.source.directory / ".a.yaml.swp"
    draft.write_text(peer("z"))
    draft.rename(watched.source.directory / "a.yaml")

    await watched.until(lambda s: names(s) == {"z"})
    assert all(s.problems == () for s in watched.seen)


async def test_a_config_map_volume_changes_all_files_at_once(tmp_path: Path) -> None:
    """The kubelet replaces one link: files are links into ..data, which is a link itself."""
    directory = tmp_path / "volume"
    directory.mkdir()
    for version in ("..1", "..2"):
        (directory / version).mkdir()
        for name in ("a", "b"):
            (directory / version / f"{name}.yaml").write_text(peer(f"{name}{version[2:]}"))
    (directory / "..data").symlink_to("..1")
    for name in ("a", "b"):
        (directory / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
    watched = Watched(directory)
    await watched.until(lambda s: names(s) == {"a1", "b1"})
    await asyncio.sleep(0.3)

    (directory / "..data_tmp").symlink_to("..2")
    (directory / "..data_tmp").rename(directory / "..data")

    await watched.until(lambda s: names(s) == {"a2", "b2"})
    assert [names(s) for s in watched.seen] == [{"a1", "b1"}, {"a2", "b2"}]
    await watched.close()


async def test_a_removed_directory_keeps_its_world_and_is_read_when_it_is_back(watched: Watched) -> None:
    directory = watched.source.directory
    away = directory.with_name("away")
    directory.rename(away)

    gone = await watched.until(lambda s: not s.readable)
    assert names(gone) == {"a"}
    assert str(gone.problems[0]) == (
        f"{directory}: cannot be read: No such file or directory; the last good world stays in force "
        "(make the directory readable to the agent)"
    )

    (away / "b.yaml").write_text(peer("b"))
    away.rename(directory)
    await watched.until(lambda s: s.readable and names(s) == {"a", "b"})

    await asyncio.sleep(0.3)
    (directory / "c.yaml").write_text(peer("c"))
    await watched.until(lambda s: names(s) == {"a", "b", "c"})


async def test_a_directory_that_replaces_another_is_read(watched: Watched, tmp_path: Path) -> None:
    directory = watched.source.directory
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.yaml").write_text(peer("x"))
    directory.rename(tmp_path / "old")
    other.rename(directory)

    await watched.until(lambda s: s.readable and names(s) == {"x"})


async def test_a_directory_that_is_created_later_is_read(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "later")
    first = await watched.until(lambda _: True)
    assert (first.readable, names(first)) == (False, set())

    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "a.yml").write_text(peer("a"))
    await watched.until(lambda s: s.readable and names(s) == {"a"})
    await watched.close()


async def test_reload_scans_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(peer("a"))
    watched = Watched(tmp_path)
    await watched.until(lambda s: names(s) == {"a"})
    (tmp_path / "b.yaml").write_text(peer("b"))
    watched.source.reload()

    began = time.monotonic()
    await watched.until(lambda s: names(s) == {"a", "b"})
    assert time.monotonic() - began < 1.5
    await watched.close()


def test_a_file_that_cannot_be_read_is_a_problem_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(peer("a"))
    (tmp_path / "b.yaml").write_text(peer("b"))
    source = FileSource(tmp_path)
    source.load()
    os.remove(tmp_path / "b.yaml")
    os.mkfifo(tmp_path / "b.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")

    snapshot = source.load()

    assert snapshot.readable
    assert names(snapshot) == {"a", "b"}  # b.yaml keeps its last good objects
    assert snapshot.problems == (
        Problem("cannot be read: is not a regular file", "make it a file the agent may read", file="b.yaml"),
        Problem(
            "cannot be read: Too many levels of symbolic links", "make it a file the agent may read", file="loop.yaml"
        ),
    )


def test_a_dangling_link_is_a_removed_file(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(peer("a"))
    (tmp_path / "a.yaml").symlink_to("real")
    source = FileSource(tmp_path)
    assert names(source.load()) == {"a"}

    (tmp_path / "real").unlink()
    assert names(source.load()) == set()


def test_files_with_other_names_are_ignored(tmp_path: Path) -> None:
    for name in ("README.md", ".hidden.yaml", "a.yaml~", "notes.txt"):
        (tmp_path / name).write_text("{")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.yaml").write_text("{")

    assert FileSource(tmp_path).load().problems == ()


def test_a_scan_without_changes_returns_the_same_world(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(peer("a"))
    source = FileSource(tmp_path)
    first = source.load()

    assert source.load().world is first.world
    source.reload()
    assert source.load().world is first.world


def test_writes_within_one_clock_tick_are_all_seen(tmp_path: Path) -> None:
    """A file that changed within the resolution of its timestamp is read again.

    Size and inode stay the same, and often the timestamps too: before Linux 6.13 they have the resolution of the
    tick.
    """
    path = tmp_path / "a.yaml"
    source = FileSource(tmp_path)
    for turn in range(60):
        path.write_text(peer("a", 1 + turn % 2))
        assert source.load().world.peers["a"].public_key[0] == 1 + turn % 2
