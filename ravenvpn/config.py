"""The agent's settings: one table, from which the flags, the variables and the file's keys all come.

Precedence: flag, then `RAVENVPN_*` variable, then `/etc/ravenvpn/config.yaml`, then the default here.
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
from ravenvpn.k8s.fields import ProblemCollector, read_host_port
from ravenvpn.mesh.model import HostPort
from ravenvpn.offloads import Offloads

CONFIG_FILE = Path("/etc/ravenvpn/config.yaml")
RUN_DIRECTORY = Path("/run/ravenvpn")
STATE_DIRECTORY = Path("/var/lib/ravenvpn")
MAX_CONFIG_BYTES = 1 << 20
CLUSTER = "cluster"  # the source that is no directory
OFFLOADS = tuple(field.name for field in dataclasses.fields(Offloads))


def _setting(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 (click's word for it)
    """One setting: `help` is shown by --help; `choices` limits a string; `env` names one more variable."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class AgentConfig:
    """What an agent is told by its operator. Durations in seconds."""

    node: str = _setting("", "This node's name in the cluster; the host name if empty.", env="NODE_NAME")
    source: str = _setting("file:/etc/ravenvpn/world", "Where the world comes from: file:DIRECTORY, or cluster.")
    kubeconfig: str = _setting(
        "", "How to enter the cluster; if empty a pod's service account, else what kubectl takes."
    )
    context: str = _setting("", "Context of the kubeconfig; its current one if empty.")
    mesh: str = _setting(
        "",
        "Name of the mesh, from which tunnel addresses are derived. If empty: the UID of namespace kube-system in a "
        "cluster, else ravenvpn.",
    )
    state_dir: str = _setting(str(STATE_DIRECTORY), "Private key and saved state (mode 0700).")
    run_dir: str = _setting(str(RUN_DIRECTORY), "Control socket.")
    private_key_file: str = _setting("", "Private key; made if absent. STATE_DIR/private.key if empty.")
    preshared_key_file: str = _setting("", "A preshared key for all peers, in wg's base64; none if empty.")
    listen_port: int = _setting(
        0, "UDP port of the tunnel; 0: as Gateway or Peer say, else 4500.", least=0, most=65535
    )
    forward_node_ip: bool = _setting(
        False,
        "Route the addresses of other regions' nodes as pods are, and accept what they send; the same on all nodes.",
    )
    addresses: str = _setting(
        "", "Addresses or names at which others may try this node, best first, separated by commas."
    )
    http_address: str = _setting("127.0.0.1:10275", "Where /livez, /readyz and /metrics answer; off if empty.")
    probe_interval: float = _setting(1.0, "Seconds between probes of a peer with traffic.", least=0.2, most=60.0)
    probe_interval_idle: float = _setting(
        2.5, "Seconds between probes of a peer without; 0 switches idle probes off.", least=0.0, most=3600.0
    )
    dataplane: str = _setting(
        "auto", "The data plane's body.", choices=("auto", "native", "pure"), env="RAVENVPN_DATAPLANE"
    )
    without: str = _setting("", f"Offloads to do without, separated by commas: {', '.join(OFFLOADS)}.")
    aes: bool = _setting(True, "Announce AES-256-GCM where the CPU accelerates it.")
    cleanup_on_exit: bool = _setting(False, "Remove everything from the host at exit, not only the tunnel device.")
    log_level: str = _setting("info", "How much to log.", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("auto", "human on a terminal, else json.", choices=("auto", "human", "json"))

    @property
    def world_directory(self) -> Path | None:
        """Of the manifests; None where the world comes from a cluster."""
        return None if self.source == CLUSTER else Path(self.source.removeprefix("file:"))

    @property
    def announced_addresses(self) -> tuple[HostPort, ...]:
        """Raises ConfigError."""
        report = ProblemCollector("")
        found = [
            read_host_port(report, "addresses", text.strip()) for text in self.addresses.split(",") if text.strip()
        ]
        for problem in report.problems:
            raise ConfigError(problem.message, field="addresses", remedy=problem.remedy)
        return tuple(dict.fromkeys(one for one in found if one is not None))

    @property
    def node_name(self) -> str:
        return self.node or socket.gethostname()

    @property
    def private_key_path(self) -> Path:
        return Path(self.private_key_file) if self.private_key_file else Path(self.state_dir) / "private.key"

    @property
    def control_socket(self) -> Path:
        return Path(self.run_dir) / "agent.sock"

    @property
    def offloads(self) -> Offloads:
        names = [name.strip() for name in self.without.split(",") if name.strip()]
        try:
            return Offloads(**dict.fromkeys(names, False))
        except TypeError as error:
            raise ConfigError(
                f"{self.without!r} names something that is no offload",
                field="without",
                remedy=f"choose from {', '.join(OFFLOADS)}",
            ) from error

    @property
    def http_endpoint(self) -> tuple[str, int] | None:
        return parse_host_port(self.http_address, field="http_address") if self.http_address else None


SETTINGS = {setting.name: setting for setting in dataclasses.fields(AgentConfig)}


def parse_host_port(text: str, *, field: str) -> tuple[str, int]:
    """`127.0.0.1:10275` or `[::1]:10275`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise ConfigError(f"{text!r} is no address and port", field=field, remedy="write it as 127.0.0.1:10275")
    return host, number


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, keys and types checked. Raises ConfigError naming file and key."""
    where = str(path)
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
        raise ConfigError("the file holds no mapping", where=where, remedy="write `key: value` lines")
    return {str(key): _checked(str(key), value, where) for key, value in content.items()}


def build(values: Mapping[str, Any], *, where: str = "") -> AgentConfig:
    """A configuration from values of any origin. Raises ConfigError for what no single value shows wrong."""
    config = AgentConfig(**{key: _checked(key, value, where) for key, value in values.items()})
    if config.source != CLUSTER and (not config.source.startswith("file:") or config.source == "file:"):
        raise ConfigError(
            f"unknown source {config.source!r}",
            where=where,
            field="source",
            remedy=f"use file:DIRECTORY, or {CLUSTER}",
        )
    _ = config.http_endpoint, config.offloads, config.announced_addresses  # parsed for their complaints
    return config


def _checked(key: str, value: Any, where: str) -> Any:
    setting = SETTINGS.get(key)
    if setting is None:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        raise ConfigError(
            "unknown key", where=where, field=key, remedy=f"did you mean {near[0]}?" if near else "remove it"
        )
    wanted = type(setting.default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{value!r} is no {wanted.__name__}", where=where, field=key)
    limits = setting.metadata
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{value!r} is not one of {', '.join(limits['choices'])}", where=where, field=key)
    if "least" in limits and not limits["least"] <= value <= limits["most"]:
        raise ConfigError(f"{value} is not within {limits['least']}..{limits['most']}", where=where, field=key)
    return value
