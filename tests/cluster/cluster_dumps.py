"""A node's network as dumps that can be compared, xtables rules, flannel's forwarding database and all."""

from __future__ import annotations

import json
import re

from ravenvpn.lab.host import Node

DUMPS = (
    "ip -j link",
    "ip -j -d link show type vxlan",
    "ip -j address",
    "ip -j -4 route show table main",
    "ip -j -6 route show table main",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "bridge -j fdb show dev flannel.1",
    "bridge -j fdb show dev flannel-v6.1",
    "nft -j list ruleset",
    "iptables-save",
    "ip6tables-save",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.conf",
)
# What the kernel counts or what comes and goes by itself.
VOLATILE = {
    *("valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"),
    *("packets", "bytes"),
}


def dump(node: Node) -> dict[str, object]:
    """Everything of the host's network that an agent could have changed."""
    found: dict[str, object] = {}
    for command in DUMPS:
        text = node.run(command.split(), check=not command.startswith("bridge")).stdout
        if " -j " in f" {command} ":
            found[command] = steady(json.loads(text or "[]"))
        else:
            lines = [re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#")]
            found[command] = lines if "tables" in command else sorted(lines)
    return found


def steady(value: object) -> object:
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value
