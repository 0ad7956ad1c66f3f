"""Secrets in files: permissions of files that are read, and the creation of new ones."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ravenvpn.crypto import keyfile
from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.errors import ConfigError

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="  # from the manual page of wg(8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private.key"


def put(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_made_once_and_read_from_then_on(path):
    made = keyfile.load_or_create(path, os.urandom)
    assert keyfile.load_or_create(path, os.urandom) == made
    assert keyfile.load(path) == made
    assert path.read_text() == made.to_base64() + "\n"
    assert os.listdir(path.parent) == ["private.key"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_only_the_owner_may_read_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        keyfile.load_or_create(path, os.urandom)
    finally:
        os.umask(before)
    assert mode(path) == 0o600


def test_the_directory_is_made_for_the_owner_only(path):
    keyfile.load_or_create(path.parent / "state" / "private.key", os.urandom)
    assert mode(path.parent / "state") == 0o700


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o644, 0o620, 0o602, 0o660, 0o610, 0o777])
def test_a_key_that_others_can_read_or_write_is_refused_with_the_remedy(path, permissions):
    put(path, KEY + "\n", permissions)
    with pytest.raises(ConfigError) as caught:
        keyfile.load(path)
    assert f"chmod 600 {path}" in str(caught.value)
    assert f"{permissions:04o}" in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    path.chmod(0o600)
    assert keyfile.load(path).to_base64() == KEY


@pytest.mark.parametrize("permissions", [0o600, 0o400])
def test_a_key_of_the_owner_is_read(path, permissions):
    put(path, KEY + "\n", permissions)
    assert keyfile.load(path).to_base64() == KEY


@pytest.mark.parametrize(
    "text", ["", "\n", "key\n", KEY[:-1], KEY + KEY, "\x00" * 44, "é" * 44, "A" * 5000, KEY[:-1] + "é"]
)
def test_what_is_no_key_is_refused_by_name_and_without_showing_it(path, text):
    put(path, text)
    with pytest.raises(ConfigError) as caught:
        keyfile.load(path)
    assert str(path) in str(caught.value)
    assert KEY[:20] not in str(caught.value)


def test_a_private_key_of_zeros_is_refused(path):
    put(path, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
    with pytest.raises(ConfigError, match="no key"):
        keyfile.load(path)


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(ConfigError, match=r"private\.key: No such file"):
        keyfile.load(path)


def test_a_directory_is_refused(path):
    path.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="not a regular file"):
        keyfile.load(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        keyfile.load_or_create(path, os.urandom)


def test_a_fifo_is_refused_and_does_not_hang(path):
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        keyfile.load(path)


@pytest.mark.root
def test_a_key_of_another_user_is_refused(path):
    put(path, KEY + "\n")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        keyfile.load(path)


def test_a_link_is_followed_and_its_target_judged(path):
    """A kubelet mounts Secrets as links."""
    target = path.parent / "target"
    put(target, KEY + "\n")
    path.symlink_to(target)
    assert keyfile.load(path).to_base64() == KEY
    target.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        keyfile.load(path)


def test_a_dangling_link_is_not_written_through(path):
    path.symlink_to(path.parent / "nowhere")
    with pytest.raises(ConfigError):
        keyfile.load_or_create(path, os.urandom)
    assert os.listdir(path.parent) == ["private.key"]


def test_an_unreadable_file_is_not_replaced(path):
    put(path, "nonsense\n")
    with pytest.raises(ConfigError):
        keyfile.load_or_create(path, os.urandom)
    assert path.read_text() == "nonsense\n"


def test_a_failing_source_of_randomness_leaves_no_file(path):
    def dry(_: int) -> bytes:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        keyfile.load_or_create(path, dry)
    assert os.listdir(path.parent) == []


def test_a_place_that_cannot_be_written_is_named(path):
    path.parent.joinpath("file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        keyfile.load_or_create(path.parent / "file" / "private.key", os.urandom)


def test_of_many_that_make_a_key_at_once_all_get_the_same(path):
    made: list[PrivateKey] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        made.append(keyfile.load_or_create(path, os.urandom))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert os.listdir(path.parent) == ["private.key"]


def test_saving_replaces_a_key_in_one_step(path):
    keyfile.load_or_create(path, os.urandom)
    keyfile.save(path, PrivateKey.from_base64(KEY))
    assert keyfile.load(path).to_base64() == KEY
    assert mode(path) == 0o600
    assert os.listdir(path.parent) == ["private.key"]


def test_preshared_keys_follow_the_same_rules(path):
    made = PresharedKey.generate(os.urandom)
    keyfile.save(path, made)
    assert keyfile.load_preshared(path) == made
    assert mode(path) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keyfile.load_preshared(path)


WATCH_CREATION = """
import os, sys, pathlib, stat

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_CREAT:
        print("opened", bool(arguments[2] & os.O_EXCL), flush=True)
    if event == "os.link":
        facts = os.stat(arguments[0])
        print("linked", f"{stat.S_IMODE(facts.st_mode):o}", facts.st_size, os.path.exists(arguments[1]), flush=True)

from ravenvpn.crypto import keyfile
os.umask(0)
sys.addaudithook(hook)
keyfile.load_or_create(pathlib.Path(sys.argv[1]), os.urandom)
"""


def test_the_file_appears_whole_and_closed_to_others(path):
    """An audit hook sees a new file of another name.

    The file is complete and has mode 0600 before it is linked to its own name.
    """
    watched = subprocess.run(
        [sys.executable, "-c", WATCH_CREATION, str(path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert watched.stdout.splitlines() == ["opened True", "linked 600 45 False"]
