"""The choice of the body: one function decides and logs the reason."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from ravenvpn import dataplane
from ravenvpn.errors import ConfigError, HostError

NATIVE = "ravenvpn.dataplane._native"


@pytest.fixture
def native(monkeypatch):
    """Simulate the native module: pass an object with its attributes, or None for a module that is not built."""

    def install(module) -> None:
        monkeypatch.setitem(sys.modules, NATIVE, module)

    monkeypatch.delenv("RAVENVPN_DATAPLANE", raising=False)
    return install


class Native:
    name = "native"

    def __init__(self, *, tun, offloads, timing, clock, boot_id):
        self.boot_id = boot_id


def module(**attributes) -> ModuleType:
    made = ModuleType(NATIVE)
    vars(made).update(attributes)
    return made


def test_native_is_preferred(native):
    native(module(NativeDataPlane=Native))
    assert dataplane.native_absence() == ""
    assert dataplane.create(tun=None).name == "native"


def test_without_native_pure_runs_and_the_reason_is_known(native):
    native(None)
    assert dataplane.create(tun=None).name == "pure"
    assert "needs Rust" in dataplane.native_absence()


def test_a_native_body_of_another_version_is_not_used(native):
    native(module())
    assert dataplane.create(tun=None).name == "pure"
    assert "another version" in dataplane.native_absence()


def test_the_variable_forces_pure(native, monkeypatch):
    native(module(NativeDataPlane=Native))
    monkeypatch.setenv("RAVENVPN_DATAPLANE", "pure")
    assert dataplane.create(tun=None).name == "pure"


def test_native_that_is_forced_and_absent_is_an_error_with_its_reason(native, monkeypatch):
    native(None)
    monkeypatch.setenv("RAVENVPN_DATAPLANE", "native")
    with pytest.raises(HostError, match="needs Rust"):
        dataplane.create(tun=None)


def test_the_argument_goes_before_the_variable(native, monkeypatch):
    native(module(NativeDataPlane=Native))
    monkeypatch.setenv("RAVENVPN_DATAPLANE", "native")
    assert dataplane.create(tun=None, body="pure").name == "pure"


@pytest.mark.parametrize("word", ["rust", "Pure", "auto"])
def test_another_word_is_refused(native, monkeypatch, word):
    native(None)
    monkeypatch.setenv("RAVENVPN_DATAPLANE", word)
    with pytest.raises(ConfigError, match="pure or native"):
        dataplane.create(tun=None)


def test_blobs_carry_this_boot(native):
    native(module(NativeDataPlane=Native))
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert dataplane.create(tun=None).boot_id == file.read().strip()
