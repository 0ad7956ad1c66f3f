"""Comparable dumps of a host's network, memory and CPU time of a process, and HTTP requests to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

from ravenvpn.lab.host import LabNode

DUMPS = (
    "ip -j link",
    "ip -j address",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "nft -j list ruleset",
    "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.conf",
)
# Counters and entries that the kernel changes by itself.
VOLATILE = {"valid_life_time", "preferred_life_time", "expires", "metainfo", "stats64", "operstate", "pref"}


def dump(node: LabNode) -> dict[str, object]:
    """Return every part of the host's network that an agent could have changed."""
    found: dict[str, object] = {}
    for command in DUMPS:
        text = node.run(command.split()).stdout
        found[command] = steady(json.loads(text or "[]")) if " -j " in f" {command} " else sorted(text.splitlines())
    return found


def steady(value: object) -> object:
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def resident(pid: int) -> float:
    """Return the RSS of a process in MB of 2²⁰ bytes, as top and systemctl show it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


HTTP = ("127.0.0.1", 10275)


def get(node: LabNode, path: str, timeout: float = 1.0) -> tuple[int, str]:
    """Return status and text of a request, or (0, reason) if no answer arrives."""
    connection = http.client.HTTPConnection(*HTTP, timeout=timeout)
    connection.sock = node.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    try:
        connection.sock.connect(HTTP)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()
