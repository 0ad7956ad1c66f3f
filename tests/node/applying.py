"""A host state brought about, or taken away, by a `Host` of its own, as at a start of the agent."""

from __future__ import annotations

from pathlib import Path

from ravenvpn.mesh.hoststate import HostState
from ravenvpn.node.apply import ApplyResult, Host


def apply(state_file: Path, wanted: HostState) -> ApplyResult:
    with Host(state_file) as host:
        return host.apply(wanted)


def cleanup(state_file: Path) -> ApplyResult:
    with Host(state_file) as host:
        return host.cleanup()
