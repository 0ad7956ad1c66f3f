"""Comparable dumps of everything on a host that an agent may change, including the entries of other programs."""

from __future__ import annotations

from lab import host_dumps
from lab.host_dumps import Dump

from ravenvpn.lab.host import LabNode

_COMMANDS = (
    "ip -j link",
    "ip -j address",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "ip -j neigh show nud permanent",
    "bridge -j fdb show",
    "nft -j list ruleset",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)",
)


def dump(node: LabNode) -> Dump:
    """Return the outputs of these commands on a node."""
    return host_dumps.dump(node, _COMMANDS)
