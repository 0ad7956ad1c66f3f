"""A host's network in dumps that can be compared; each folder names the commands that show what its scenes change.

What the kernel counts, and what comes and goes by itself, is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from ravenvpn.lab.host import LabNode

Dump = dict[str, object]  # by the command that showed it

_VOLATILE = {"valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"}
_COUNTERS = {"packets", "bytes"}
_STIRRING = re.compile(r"^#|^net\.ipv4\.(tcp_fastopen_key|tcp_mem|udp_mem)|^net\.ipv[46]\.neigh\..*delay_probe")


def dump(node: LabNode, commands: Iterable[str], *, may_fail: Collection[str] = ()) -> Dump:
    """Commands with `-j` give objects, others lines. Rules of xtables stay in order; all other lines have none."""
    found: Dump = {}
    for command in commands:
        text = node.run(command.split(), check=command not in may_fail).stdout
        if "-j" in command.split():
            shown = json.loads(text or "[]")
            found[command] = _steady(shown["nftables"] if isinstance(shown, dict) else shown)
        else:
            lines = [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not _STIRRING.match(line)]
            found[command] = lines if "tables" in command else sorted(lines)
    return found


def differences(before: Dump, after: Dump) -> dict[str, tuple[list[object], list[object]]]:
    """By command: what was there before and is not after, and the other way round. Empty if all is equal."""
    found = {}
    for command, old in before.items():
        new = after[command]
        assert isinstance(old, list)
        assert isinstance(new, list)
        if old != new:
            found[command] = ([one for one in old if one not in new], [one for one in new if one not in old])
    return found


def _steady(value: object) -> object:
    if isinstance(value, dict):
        kept = {key: _steady(inner) for key, inner in value.items() if key not in _VOLATILE}
        return {key: inner for key, inner in kept.items() if not (key in _COUNTERS and isinstance(inner, int))}
    return [one for one in map(_steady, value) if one != {}] if isinstance(value, list) else value
