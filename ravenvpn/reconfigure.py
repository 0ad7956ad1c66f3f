"""Apply the configuration to a running agent: at the start, and again at every reload (SIGHUP, control API).

`ravenvpn.config` says which settings change at a reload. The others keep their value until the agent is restarted; a
reload names them in its answer, and `raven-vpn status` as a note.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import msgspec

from ravenvpn import logs
from ravenvpn.agent.reports import ProblemReport, ReloadReport, StatusReport
from ravenvpn.config import RELOAD, SETTINGS, AgentConfig, ConfigReader
from ravenvpn.crypto import keyfile
from ravenvpn.errors import ConfigError, HostError
from ravenvpn.mesh.situation import Intent
from ravenvpn.tunnel.linux.cpu import own_suites
from ravenvpn.tunnel.peer import WIREGUARD_ONLY

log = logging.getLogger(__name__)

RESTART_REMEDY = "restart the agent to apply: systemctl restart ravenvpn"


def read_intent(config: AgentConfig) -> Intent:
    """Return the settings that planning and the tunnel use, in the form they use them in.

    Reads the preshared key file and /proc/cpuinfo. Raises ConfigError for a key file that is missing or malformed."""
    preshared = keyfile.load_preshared(Path(config.preshared_key_file)) if config.preshared_key_file else None
    return Intent(
        listen_port=config.listen_port or None,
        forward_node_ip=config.forward_node_ip,
        addresses=config.announced_addresses,
        suites=frozenset(own_suites() if config.aes else WIREGUARD_ONLY),
        preshared_key=preshared,
        disabled_offloads=config.disabled_offloads,
        probe_intervals=(config.probe_interval, config.probe_interval_idle),
    )


class RunningConfig:
    """The configuration in force, and the difference to the one on disk. Owned by the event loop.

    Settings that need a restart keep the value they had at the start, whatever the file has, so that `config` is
    always what the process runs with."""

    def __init__(self, config: AgentConfig, reader: ConfigReader | None = None) -> None:
        """`reader` reads the configuration again; None: a reload changes no setting. Raises as `read_intent` does."""
        self._reader = reader
        self.config = config
        self.intent = read_intent(config)
        self.pending: tuple[str, ...] = ()  # settings whose value on disk takes effect at a restart
        self._problem: ConfigError | HostError | None = None  # why the last reload changed nothing

    def reload(self) -> ReloadReport:
        """Read the configuration again and replace `config` and `intent`; return which settings changed.

        ConfigError or HostError where it cannot be read: nothing changes then, and `report` shows the problem."""
        if self._reader is None:
            return ReloadReport()
        try:
            read = self._reader.read()
            differing = [name for name in SETTINGS if getattr(read, name) != getattr(self.config, name)]
            changed = {name for name in differing if SETTINGS[name].metadata["applies"] == RELOAD}
            config = dataclasses.replace(self.config, **{name: getattr(read, name) for name in changed})
            intent = read_intent(config)
        except (ConfigError, HostError) as error:
            self._problem = error
            raise
        pending = tuple(name for name in differing if name not in changed)
        if intent.preshared_key != self.intent.preshared_key:
            changed.add("preshared_key_file")  # another key can stand in the same file
        for name in pending:
            if name not in self.pending:  # logged when it first differs, not at every reload
                log.warning("setting %s changed, but takes effect at a restart; %s", name, RESTART_REMEDY)
        self.config, self.intent, self.pending, self._problem = config, intent, pending, None
        if changed & {"log_level", "log_format"}:
            logs.set_up(self.config.log_level, self.config.log_format)
        names = tuple(name for name in SETTINGS if name in changed)
        if names:
            log.info("settings changed: %s", ", ".join(names))
        return ReloadReport(changed=names, restart=pending, remedy=RESTART_REMEDY if pending else "")

    def annotate(self, report: StatusReport) -> StatusReport:
        """Return the report with a reload that failed as a problem, and settings that wait for a restart as a
        note."""
        problems, notes, codes = report.problems, report.notes, report.note_codes
        if (error := self._problem) is not None:
            problems = (
                ProblemReport(
                    kind="config",
                    where="reload",
                    message=f"{error}; the settings before stay in force",
                    remedy="correct the file, then reload again",
                ),
                *problems,
            )
        if self.pending:
            notes = (*notes, f"settings that wait for a restart: {', '.join(self.pending)}")
            codes = (*codes, "restart-pending")
        return msgspec.structs.replace(report, problems=problems, notes=notes, note_codes=codes)
