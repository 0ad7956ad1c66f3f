"""The names of offloads."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from ravenvpn.offloads import OFFLOAD_NAMES, Offloads


def test_without_switches_off_the_named_offloads_only():
    off = Offloads.without(["udp_gso", "tun_gro"])
    assert [name for name in OFFLOAD_NAMES if not getattr(off, name)] == ["tun_gro", "udp_gso"]
    assert Offloads.without([]) == Offloads()


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'udp_gsq'"):
        Offloads.without(["udp_gso", "udp_gsq"])


def test_names_are_those_of_the_fields():
    assert tuple(dataclasses.asdict(Offloads())) == OFFLOAD_NAMES


def test_the_names_load_without_the_data_plane():
    """A help text lists them, and must not wait for ciphers and event loops to load."""
    code = "import sys, ravenvpn.offloads; sys.exit('cryptography' in sys.modules or 'asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
