"""The configuration is read again: settings that change, settings that need a restart, files that are refused."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_reports import status

from ravenvpn.config import ConfigReader
from ravenvpn.errors import ConfigError
from ravenvpn.reconfigure import RunningConfig


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Running:
    """A configuration file, and an agent's configuration that was read from it."""

    def __init__(self, folder: Path, text: str = "", **overrides: object) -> None:
        self.path = folder / "config.yaml"
        self.path.write_text(text)
        reader = ConfigReader(self.path, required=True, overrides=overrides)
        self.running = RunningConfig(reader.read(), reader)

    def reload(self, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        self.path.write_text(text)
        report = self.running.reload()
        return report.changed, report.restart


def key(folder: Path, byte: bytes) -> None:
    path = folder / "psk"
    path.write_text(base64.b64encode(byte * 32).decode())
    path.chmod(0o600)


def test_settings_of_the_tunnel_and_the_plan_change(tmp_path: Path) -> None:
    held = Running(tmp_path)
    assert held.running.intent.listen_port is None
    changed, restart = held.reload("listen_port: 4600\nprobe_interval: 0.5\naddresses: vpn.example.org\n")
    assert changed == ("listen_port", "addresses", "probe_interval")
    assert restart == ()
    assert held.running.intent.listen_port == 4600
    assert held.running.intent.probe_intervals == (0.5, 2.5)
    assert held.reload("") == (changed, ()), "back to the defaults"


def test_another_key_in_the_same_file_is_a_change(tmp_path: Path) -> None:
    key(tmp_path, b"\1")
    text = f"preshared_key_file: {tmp_path / 'psk'}\n"
    held = Running(tmp_path, text)
    before = held.running.intent.preshared_key
    assert held.reload(text) == ((), ())
    key(tmp_path, b"\2")
    assert held.reload(text) == (("preshared_key_file",), ())
    assert held.running.intent.preshared_key != before


def test_a_setting_that_needs_a_restart_keeps_its_value_and_is_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Running(tmp_path)
    assert held.reload("state_dir: /elsewhere\nlog_format: json\n") == (("log_format",), ("state_dir",))
    assert held.running.config.state_dir == "/var/lib/ravenvpn"
    report = held.running.annotate(status())
    assert report.notes == ("settings that wait for a restart: state_dir",)
    assert report.note_codes == ("restart-pending",)
    assert held.reload("state_dir: /elsewhere\nlog_format: json\n") == ((), ("state_dir",))
    assert caplog.text.count("setting state_dir changed, but takes effect at a restart") == 1, "logged once"
    assert held.reload("") == (("log_format",), ())
    assert held.running.annotate(status()).notes == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listen_prot: 1\n", "listen_prot: unknown key (did you mean listen_port?)"),
        ("log_level: debug\nlisten_port: 70000\n", "listen_port: 70000 is not within 0..65535"),
        ("addresses: 1.2.3.999\n", "addresses: '1.2.3.999' is not an address"),
        ("without: tso\n", "without: 'tso' names something that is not an offload"),
        ("a: [\n", ": not YAML"),
    ],
)
def test_a_file_that_does_not_parse_changes_nothing_and_is_a_problem(
    tmp_path: Path, text: str, complaint: str
) -> None:
    held = Running(tmp_path, "log_level: warning\n")
    before = held.running.config, held.running.intent
    with pytest.raises(ConfigError) as refused:
        held.reload(text)
    assert complaint in str(refused.value)
    assert str(held.path) in str(refused.value)
    assert (held.running.config, held.running.intent) == before
    (problem,) = held.running.annotate(status()).problems
    assert (problem.kind, complaint in problem.message) == ("config", True)
    assert held.reload("log_level: warning\n") == ((), ())
    assert held.running.annotate(status()).problems == ()


def test_a_key_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    key(tmp_path, b"\1")
    held = Running(tmp_path, f"preshared_key_file: {tmp_path / 'psk'}\n")
    before = held.running.intent
    with pytest.raises(ConfigError, match="absent"):
        held.reload(f"preshared_key_file: {tmp_path / 'absent'}\nlog_level: debug\n")
    assert held.running.intent == before
    assert held.running.config.log_level == "info"


def test_flags_and_variables_keep_precedence(tmp_path: Path) -> None:
    held = Running(tmp_path, listen_port=4700)
    assert held.reload("listen_port: 4600\nlog_level: debug\n") == (("log_level",), ())
    assert held.running.intent.listen_port == 4700


def test_the_default_file_may_disappear_a_named_one_may_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert ConfigReader(path, required=False, overrides={}).read().listen_port == 0
    with pytest.raises(ConfigError, match="No such file"):
        ConfigReader(path, required=True, overrides={}).read()
