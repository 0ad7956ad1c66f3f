"""The command line: help, errors, exit codes, and the verbs that need no agent."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "two-regions"


def raven_vpn(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAVENVPN_", "NODE_NAME"))}
    return subprocess.run(
        [sys.executable, "-m", "ravenvpn", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **(env or {})},
        check=False,
    )


def test_help_lists_every_verb_and_is_fast() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = raven_vpn("--help")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    verbs = (
        "agent",
        "status",
        "peers",
        "plan",
        "check",
        "config",
        "cleanup",
        "manifest",
        "keygen",
        "pubkey",
        "tun",
        "demo",
    )
    assert done.returncode == 0
    assert [verb for verb in verbs if f"  {verb} " not in done.stdout] == []
    assert spent < 0.4, "processor time: the machine may be busy, the command must not be"


@pytest.mark.parametrize("verb", ["agent", "status", "peers", "plan", "check", "cleanup", "manifest", "tun", "demo"])
def test_every_verb_has_a_help_text(verb: str) -> None:
    done = raven_vpn(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: raven-vpn")


def test_an_unknown_verb_is_wrong_usage() -> None:
    done = raven_vpn("pears")
    assert done.returncode == 2
    assert "pears" in done.stderr


@pytest.mark.parametrize("verb", [["status"], ["peers"], ["plan"]])
def test_without_an_agent_the_exit_code_is_3_and_the_remedy_is_named(verb: list[str], tmp_path: Path) -> None:
    done = raven_vpn(*verb, "--socket", str(tmp_path / "agent.sock"))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "is the agent running?" in done.stderr


def test_a_printed_key_has_the_format_of_wg() -> None:
    private = raven_vpn("keygen").stdout.strip()
    public = raven_vpn("pubkey", stdin=private).stdout.strip()
    assert len(private) == len(public) == 44
    assert private != public


def test_a_key_file_is_created_once_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "private.key"
    first, second = raven_vpn("keygen", str(path)), raven_vpn("keygen", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.stdout == second.stdout == raven_vpn("pubkey", str(path)).stdout
    assert path.read_text().strip() not in first.stdout


def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "private.key"
    raven_vpn("keygen", str(path))
    path.chmod(0o644)
    done = raven_vpn("pubkey", str(path))
    assert done.returncode == 2
    assert f"chmod 600 {path}" in done.stderr


def test_a_malformed_key_is_refused_and_not_shown() -> None:
    done = raven_vpn("pubkey", stdin="secret, but no key\n")
    assert done.returncode == 2
    assert "secret, but no key" not in done.stderr


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("listen_port: 1001\nprobe_interval: 3\nmesh: from-the-file\n")
    done = raven_vpn(
        "config", "show", "-o", "json", "--config", str(path), "--listen-port", "1003",
        env={"RAVENVPN_LISTEN_PORT": "1002", "RAVENVPN_PROBE_INTERVAL": "2"},
    )  # fmt: skip
    shown = json.loads(done.stdout)
    assert (shown["listen_port"]["value"], shown["listen_port"]["from"]) == (1003, "flag")
    assert (shown["probe_interval"]["value"], shown["probe_interval"]["from"]) == (2.0, "variable")
    assert (shown["mesh"]["value"], shown["mesh"]["from"]) == ("from-the-file", f"file {path}")
    assert shown["log_level"]["from"] == "default"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listen_prot: 1\n", "listen_prot: unknown key (did you mean listen_port?)"),
        ("listen_port: many\n", "listen_port: 'many' is not a whole number"),
        ("listen_port: 65536\n", "listen_port: 65536 is not within 0..65535"),
        ("log_format: xml\n", "log_format: 'xml' is not one of auto, human, json"),
        ("aes: 1\n", "aes: 1 is not true or false"),
        (
            "without: udp_gso,tso\n",
            "without: 'udp_gso,tso' names something that is not an offload (choose from tun_tso, ",
        ),
        (
            "source: http://example.org\n",
            "source: unknown source 'http://example.org' (use file:DIRECTORY, or cluster)",
        ),
        (
            "http_address: localhost\n",
            "http_address: 'localhost' is not an address and port (write it as 127.0.0.1:10275)",
        ),
        ("- a list\n", "the file is not a mapping (write `key: value` lines)"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    done = raven_vpn("config", "validate", "--config", str(path))
    assert done.returncode == 2
    assert complaint in done.stderr


def test_the_agent_refuses_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("listen_prot: 1\n")
    done = raven_vpn("agent", "--config", str(path))
    assert done.returncode == 2
    assert "did you mean listen_port?" in done.stderr


def test_a_plan_from_manifests_needs_no_agent_and_gives_every_line_a_reason() -> None:
    done = raven_vpn("plan", "-f", str(EXAMPLES), "--node", "edge-1", "-o", "json")
    lines = json.loads(done.stdout)
    assert done.returncode == 0
    assert [line for line in lines if not line["why"]] == []
    routes = {line["what"] for line in lines}
    assert "route 10.244.1.0/24 table 9127 dev ravenvpn0 src 10.244.2.1 mtu 1420" in routes
    assert "route unreachable 10.244.1.0/24 table 9127 metric 4278198272" in routes
    assert "peer cloud-1 at 203.0.113.10:4500, [2001:db8:10::10]:4500, warm, keepalive 25 s" in routes


def test_a_plan_reports_a_broken_manifest_and_plans_the_rest(tmp_path: Path) -> None:
    for path in EXAMPLES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "broken.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: [1]}\n")
    done = raven_vpn("plan", "-f", str(tmp_path), "--node", "edge-1")
    assert "broken.yaml:3: " in done.stderr
    assert "10.244.1.0/24" in done.stdout


@pytest.mark.root
def test_a_manifest_of_this_node_joins_a_mesh(tmp_path: Path) -> None:
    """Other nodes plan with the printed manifests, which do not contain the private key."""
    state, world = tmp_path / "state", tmp_path / "world"
    world.mkdir()
    done = raven_vpn(
        "manifest", "home", "--node", "laptop", "--public", "home.example.org", "--pod-cidr", "10.9.0.0/16",
        "--state-dir", str(state),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [thing["kind"] for thing in yaml.safe_load_all(done.stdout)] == ["Gateway", "Node", "Peer"]
    assert (state / "private.key").read_text().strip() not in done.stdout
    (world / "home.yaml").write_text(done.stdout)
    (world / "others.yaml").write_text("---\n".join(path.read_text() for path in EXAMPLES.glob("*.yaml")))
    plan = raven_vpn("plan", "-f", str(world), "--node", "cloud-1")
    assert "raven-vpn:" not in plan.stderr
    assert "peer laptop at home.example.org:4500" in plan.stdout
    assert "route 10.9.0.0/16 table 9127 dev ravenvpn0" in plan.stdout


@pytest.mark.root
def test_a_manifest_keeps_every_public_name_of_the_node(tmp_path: Path) -> None:
    """A Gateway endpoint has one name only; the Peer has both, and other nodes try both."""
    state, world = tmp_path / "state", tmp_path / "world"
    world.mkdir()
    done = raven_vpn(
        "manifest", "home", "--node", "laptop", "--public", "Home.example.org", "--public", "backup.example.net",
        "--pod-cidr", "10.9.0.0/16", "--state-dir", str(state),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gateway, _, peer = yaml.safe_load_all(done.stdout)
    assert gateway["spec"]["endpoints"][0]["publicIP"] == "home.example.org"
    assert peer["spec"]["addresses"] == ["home.example.org", "backup.example.net"]
    (world / "home.yaml").write_text(done.stdout)
    (world / "others.yaml").write_text("---\n".join(path.read_text() for path in EXAMPLES.glob("*.yaml")))
    plan = raven_vpn("plan", "-f", str(world), "--node", "cloud-1")
    assert "raven-vpn:" not in plan.stderr
    assert "peer laptop at home.example.org:4500, backup.example.net:4500" in plan.stdout


def test_a_manifest_with_a_malformed_public_address_is_refused(tmp_path: Path) -> None:
    done = raven_vpn("manifest", "home", "--public", "1.2.3.4.5", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "--public: '1.2.3.4.5' is not an address" in done.stderr


def test_a_manifest_with_a_malformed_prefix_is_refused(tmp_path: Path) -> None:
    done = raven_vpn("manifest", "home", "--pod-cidr", "10.9.1.0/16", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "--pod-cidr: 10.9.1.0/16 has host bits set (write it as 10.244.1.0/24)" in done.stderr


def test_config_show_says_when_each_setting_takes_effect() -> None:
    shown = json.loads(raven_vpn("config", "show", "-o", "json").stdout)
    assert {entry["applies"] for entry in shown.values()} == {"reload", "restart"}
    assert (shown["log_level"]["applies"], shown["state_dir"]["applies"]) == ("reload", "restart")
    head, *rows = raven_vpn("config", "show").stdout.splitlines()
    assert head.split() == ["SETTING", "VALUE", "FROM", "APPLIES"]
    assert next(row for row in rows if row.startswith("listen_port")).split()[-1] == "reload"
