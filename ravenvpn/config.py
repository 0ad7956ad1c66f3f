"""Settings of the agent: one table, from which flags, environment variables, file keys and their help come.

Precedence: flag, then `RAVENVPN_*` variable, then `/etc/ravenvpn/config.yaml`, then the default in this table. The
table is also the one place that says whether a setting changes at a reload (SIGHUP, `systemctl reload`) or at a
restart.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.fields import ProblemCollector, read_host_port, split_host_port
from ravenvpn.mesh.liveness import DEFAULT_PROBE_INTERVALS
from ravenvpn.mesh.model import HostPort
from ravenvpn.offloads import OFFLOAD_NAMES

CONFIG_FILE = Path("/etc/ravenvpn/config.yaml")
RUN_DIRECTORY = Path("/run/ravenvpn")
STATE_DIRECTORY = Path("/var/lib/ravenvpn")
MAX_CONFIG_BYTES = 1 << 20  # a larger file is refused: it is not a configuration, and reading it would take memory
CLUSTER = "cluster"  # the value of `source` that is not a directory

RELOAD, RESTART = "reload", "restart"  # when a changed setting takes effect


def _setting(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 (click's word for it)
    """Define one setting.

    `help` is the text of --help. Optional: `choices`, the allowed strings; `least` and `most`, the range of a number;
    `env`, one more environment variable; `applies`, RELOAD or RESTART (the default)."""
    return dataclasses.field(default=default, metadata={"help": help, "applies": RESTART, **more})


@dataclass(frozen=True)
class AgentConfig:
    """Settings of one agent, checked by `build`. Durations are in seconds, paths and lists are strings as written.

    A setting needs a restart where a change would make another agent of this one: another node, another cluster,
    other keys and files, or another data plane, which cannot take over the sessions of the one that runs.
    """

    # Which node this is, and the source of the world. The saved world belongs to one source and one mesh name.
    node: str = _setting("", "This node's name in the cluster. Empty: the host name.", env="NODE_NAME")
    source: str = _setting("file:/etc/ravenvpn/world", "Source of the world: file:DIRECTORY, or cluster.")
    kubeconfig: str = _setting(
        "", "Kubeconfig for the cluster. Empty: the pod's service account, else the file that kubectl uses."
    )
    context: str = _setting("", "Context of the kubeconfig. Empty: its current one.")
    mesh: str = _setting(
        "",
        "Name of the mesh, from which tunnel addresses are derived. Empty: the UID of namespace kube-system in a "
        "cluster, else ravenvpn.",
    )
    # Files. They are opened at the start: keys, saved state, the control socket, on which other programs may wait.
    state_dir: str = _setting(str(STATE_DIRECTORY), "Directory of private key and saved state (mode 0700).")
    run_dir: str = _setting(str(RUN_DIRECTORY), "Directory of the control socket.")
    private_key_file: str = _setting("", "Private key; created if absent. Empty: STATE_DIR/private.key.")
    # Settings of the tunnel and the plan (`mesh.situation.Intent`), which apply without closing a session.
    preshared_key_file: str = _setting(
        "", "Preshared key for all peers, in wg's base64; the same on all nodes. Empty: none.", applies=RELOAD
    )
    listen_port: int = _setting(
        0,
        "UDP port of the tunnel, unless the Gateway names one. 0: the port in the Peer, else 4500.",
        least=0,
        most=65535,
        applies=RELOAD,
    )
    forward_node_ip: bool = _setting(
        False,
        "Route node addresses of other regions like pod addresses, and accept traffic from them; the same on all "
        "nodes.",
        applies=RELOAD,
    )
    addresses: str = _setting(
        "",
        "Addresses or DNS names at which others can reach this node, best first, separated by commas.",
        applies=RELOAD,
    )
    # Health probes from outside: kubelets and load balancers are set up with this address.
    http_address: str = _setting("127.0.0.1:10275", "Address of /livez, /readyz and /metrics. Empty: off.")
    # Probes inside the tunnel. Two unanswered ones and 2 s of silence are proof of death (`mesh.liveness`), so at the
    # default a dead hub is noticed within 3 s; below 0.2 s the probes of many peers would be traffic of their own.
    probe_interval: float = _setting(
        DEFAULT_PROBE_INTERVALS[0],
        "Seconds between probes of a peer with traffic.",
        least=0.2,
        most=60.0,
        applies=RELOAD,
    )
    probe_interval_idle: float = _setting(
        DEFAULT_PROBE_INTERVALS[1],
        "Seconds between probes of a peer without traffic. 0: none.",
        least=0.0,
        most=3600.0,
        applies=RELOAD,
    )
    # The data plane. Offloads exist to be switched off where a driver or kernel handles one wrongly.
    dataplane: str = _setting(
        "auto",
        "Data plane: native (Rust), pure (Python), or auto: native where it is installed.",
        choices=("auto", "native", "pure"),
        env="RAVENVPN_DATAPLANE",
    )
    without: str = _setting(
        "", f"Offloads to leave off, separated by commas: {', '.join(OFFLOAD_NAMES)}.", applies=RELOAD
    )
    aes: bool = _setting(True, "Offer AES-256-GCM where the CPU accelerates it.", applies=RELOAD)
    # The process.
    cleanup_on_exit: bool = _setting(
        False, "Remove everything of ours from the host at exit, not only the tunnel device.", applies=RELOAD
    )
    log_level: str = _setting(
        "info", "Least level that is logged.", choices=("debug", "info", "warning", "error"), applies=RELOAD
    )
    log_format: str = _setting(
        "auto",
        "Format of log lines; auto: human on a terminal, else json.",
        choices=("auto", "human", "json"),
        applies=RELOAD,
    )

    @property
    def world_directory(self) -> Path | None:
        """Directory of the manifests; None where the world comes from a cluster."""
        return None if self.source == CLUSTER else Path(self.source.removeprefix("file:"))

    @property
    def announced_addresses(self) -> tuple[HostPort, ...]:
        """`addresses`, parsed, without repetitions; port 0 where none is given. Raises ConfigError."""
        report = ProblemCollector("")
        # Each entry is HOST, HOST:PORT or [IPv6]:PORT, as in Peer.spec.addresses.
        found = [
            read_host_port(report, "addresses", text.strip()) for text in self.addresses.split(",") if text.strip()
        ]
        for problem in report.problems:
            raise ConfigError(problem.message, field="addresses", remedy=problem.remedy)
        return tuple(dict.fromkeys(one for one in found if one is not None))

    @property
    def node_name(self) -> str:
        """Name of this node in the cluster."""
        return self.node or socket.gethostname()

    @property
    def private_key_path(self) -> Path:
        """File of the private key."""
        return Path(self.private_key_file) if self.private_key_file else Path(self.state_dir) / "private.key"

    @property
    def control_socket(self) -> Path:
        """Unix socket of the control API."""
        return Path(self.run_dir) / "agent.sock"

    @property
    def disabled_offloads(self) -> frozenset[str]:
        """`without`, parsed. Raises ConfigError for a name that is not an offload."""
        names = frozenset(name.strip() for name in self.without.split(",") if name.strip())
        if not names <= set(OFFLOAD_NAMES):
            raise ConfigError(
                f"{self.without!r} names something that is not an offload",
                field="without",
                remedy=f"choose from {', '.join(OFFLOAD_NAMES)}",
            )
        return names

    @property
    def http_endpoint(self) -> tuple[str, int] | None:
        """`http_address`, parsed; None where it is off. Raises ConfigError."""
        return parse_host_port(self.http_address, field="http_address") if self.http_address else None


SETTINGS = {setting.name: setting for setting in dataclasses.fields(AgentConfig)}


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Read the configuration again as it was read at the start: the same file, with the same flags and variables."""

    path: Path
    required: bool  # the file was named explicitly, so that its absence is an error
    overrides: Mapping[str, Any]  # values from flags and variables, which take precedence over the file

    def read(self) -> AgentConfig:
        """Return the configuration as the file is now. Raises ConfigError that names file, key and remedy."""
        values = read_file(self.path) if self.required or self.path.exists() else {}
        return build({**values, **self.overrides}, where=str(self.path))


def parse_host_port(text: str, *, field: str) -> tuple[str, int]:
    """Parse the address of a listening socket: `127.0.0.1:10275` or `[::1]:10275`. Raises ConfigError about `field`.

    The host is a literal address, loopback and unspecified included, which `k8s.fields.read_host_port` refuses: that
    one reads addresses which other nodes dial. Port 0 lets the kernel choose."""
    parts = split_host_port(text)
    host, port = parts if parts else ("", -1)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise ConfigError(f"{text!r} is not an address and port", field=field, remedy="write it as 127.0.0.1:10275")
    return host, port


def read_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file, keys, types and ranges checked. Raises ConfigError naming file and key."""
    where = str(path)
    # Every failure becomes a ConfigError: an unreadable file ends the start, and leaves a reload without effect.
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError(f"larger than {MAX_CONFIG_BYTES} bytes", where=where)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=where) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"not YAML: {getattr(error, 'problem', error)}", where=where + line) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("the file is not a mapping", where=where, remedy="write `key: value` lines")
    return {str(key): _checked(str(key), value, where) for key, value in content.items()}


def build(values: Mapping[str, Any], *, where: str = "") -> AgentConfig:
    """Return a configuration from values of any origin; `where` is the origin in messages.

    Raises ConfigError for a wrong key, type or range, and for a text that does not parse."""
    config = AgentConfig(**{key: _checked(key, value, where) for key, value in values.items()})
    if config.source != CLUSTER and (not config.source.startswith("file:") or config.source == "file:"):
        raise ConfigError(
            f"unknown source {config.source!r}",
            where=where,
            field="source",
            remedy=f"use file:DIRECTORY, or {CLUSTER}",
        )
    try:
        _ = config.http_endpoint, config.disabled_offloads, config.announced_addresses
    except ConfigError as error:
        error.where = error.where or where
        raise
    return config


def _checked(key: str, value: Any, where: str) -> Any:
    """Return the value of one setting in its type (an int is taken for a float). Raises ConfigError."""
    setting = SETTINGS.get(key)
    if setting is None:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        raise ConfigError(
            "unknown key", where=where, field=key, remedy=f"did you mean {near[0]}?" if near else "remove it"
        )
    # The default has the type: bool, int, float or str. YAML 1.1 turns `yes` and `on` into booleans by itself.
    wanted = type(setting.default)
    # bool is a subclass of int, and neither `aes: 1` nor `listen_port: true` is meant as written.
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        kind = {"str": "text", "bool": "true or false", "int": "a whole number", "float": "a number"}[wanted.__name__]
        raise ConfigError(f"{value!r} is not {kind}", where=where, field=key)
    limits = setting.metadata
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{value!r} is not one of {', '.join(limits['choices'])}", where=where, field=key)
    if "least" in limits and not limits["least"] <= value <= limits["most"]:
        raise ConfigError(f"{value} is not within {limits['least']}..{limits['most']}", where=where, field=key)
    return value
