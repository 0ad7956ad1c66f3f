"""Apply or remove a host state with a new `Host`, as at a start of the agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ravenvpn.mesh.hoststate import HostDelta, HostState
from ravenvpn.node.apply import ApplyResult, Host


def apply(state_file: Path, wanted: HostState) -> ApplyResult:
    with Host(state_file) as host:
        return host.apply(wanted)


def cleanup(state_file: Path) -> ApplyResult:
    with Host(state_file) as host:
        return host.cleanup()


def delta_between(previous: HostState, wanted: HostState) -> HostDelta:
    """Return the delta of two whole states, as the planner makes one."""

    def parts(one: HostState, other: HostState) -> dict[str, Any]:
        names = ("routes", "neighbours", "forwarding")
        there = {name: set(getattr(other, name)) for name in names}
        return {name: tuple(item for item in getattr(one, name) if item not in there[name]) for name in names}

    added, removed = replace(wanted, **parts(wanted, previous)), replace(previous, **parts(previous, wanted))
    if (previous.tun, previous.vxlan) == (wanted.tun, wanted.vxlan):
        added, removed = replace(added, tun=None, vxlan=None), replace(removed, tun=None, vxlan=None)
    return HostDelta(added, removed, filter_replaced=True)


def change_host(host: Host, previous: HostState, wanted: HostState) -> ApplyResult:
    return host.apply_delta(delta_between(previous, wanted), lambda: wanted)
