"""A host's network as it is, in dumps that can be compared: what an agent may change, and whatever else is there."""

from __future__ import annotations

import json
import re

from ravenvpn.lab.host import Node

_OBJECTS = (
    "ip -j link",
    "ip -j address",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "ip -j neigh show nud permanent",
    "bridge -j fdb show",
    "nft -j list ruleset",
)
_TEXTS = (
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)",
)
# What the kernel counts, or what comes and goes by itself.
_VOLATILE = {"valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"}
_COUNTERS = {"packets", "bytes"}
_STIRRING = re.compile(r"^#|^net\.ipv4\.(tcp_fastopen_key|tcp_mem|udp_mem)|^net\.ipv[46]\.neigh\..*delay_probe")


def dump(node: Node) -> dict[str, object]:
    """By the command that showed it."""
    found: dict[str, object] = {}
    for command in _OBJECTS:
        shown = json.loads(node.run(command.split()).stdout or "[]")
        found[command] = _steady(shown["nftables"] if isinstance(shown, dict) else shown)
    for command in _TEXTS:
        lines = node.run(command.split()).stdout.splitlines()
        found[command] = sorted(_without_counters(line) for line in lines if not _STIRRING.match(line))
    return found


def differences(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[list[object], list[object]]]:
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


def _without_counters(line: str) -> str:
    return re.sub(r" \[\d+:\d+\]$", "", line)
