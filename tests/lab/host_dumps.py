"""Dumps of a host's network configuration that can be compared. Each test folder has its own list of commands.

Counters and lifetimes, which change by themselves, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from ravenvpn.lab.host import LabNode

Dump = dict[str, object]  # output by command

_VOLATILE = {"valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"}
_COUNTERS = {"packets", "bytes"}
_CHANGING = re.compile(r"^#|^net\.ipv4\.(tcp_fastopen_key|tcp_mem|udp_mem)|^net\.ipv[46]\.neigh\..*delay_probe")


def dump(node: LabNode, commands: Iterable[str], *, may_fail: Collection[str] = ()) -> Dump:
    """Run commands on a node and return their outputs: parsed JSON for commands with `-j`, otherwise lines.

    Lines are sorted, except rules of iptables, whose order matters. Commands in `may_fail` may have no output.
    """
    found: Dump = {}
    for command in commands:
        text = node.run(command.split(), check=command not in may_fail).stdout
        if "-j" in command.split():
            shown = json.loads(text or "[]")
            found[command] = _without_counters(shown["nftables"] if isinstance(shown, dict) else shown)
        else:
            lines = [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not _CHANGING.match(line)]
            found[command] = lines if "tables" in command else sorted(lines)
    return found


def differences(before: Dump, after: Dump) -> dict[str, tuple[list[object], list[object]]]:
    """Return by command the entries that disappeared and those that appeared; empty if the dumps are equal."""
    found = {}
    for command, old in before.items():
        new = after[command]
        assert isinstance(old, list)
        assert isinstance(new, list)
        if old != new:
            found[command] = ([one for one in old if one not in new], [one for one in new if one not in old])
    return found


def _without_counters(value: object) -> object:
    if isinstance(value, dict):
        kept = {key: _without_counters(inner) for key, inner in value.items() if key not in _VOLATILE}
        return {key: inner for key, inner in kept.items() if not (key in _COUNTERS and isinstance(inner, int))}
    return [one for one in map(_without_counters, value) if one != {}] if isinstance(value, list) else value
