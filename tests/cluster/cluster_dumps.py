"""Comparable dumps of a node's network, including the xtables rules and flannel's forwarding database."""

from __future__ import annotations

from lab import host_dumps
from lab.host_dumps import Dump

from ravenvpn.lab.host import LabNode

_FLANNELS = ("bridge -j fdb show dev flannel.1", "bridge -j fdb show dev flannel-v6.1")
_COMMANDS = (
    "ip -j link",
    "ip -j -d link show type vxlan",
    "ip -j address",
    "ip -j -4 route show table main",
    "ip -j -6 route show table main",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    *_FLANNELS,
    "nft -j list ruleset",
    "iptables-save",
    "ip6tables-save",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.conf",
)


def dump(node: LabNode) -> Dump:
    """Return every part of the host's network that an agent could have changed."""
    return host_dumps.dump(node, _COMMANDS, may_fail=_FLANNELS)
