"""Collects what `check` judges. Reads, probes and lets go again; changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ravenvpn.errors import HostError
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT
from ravenvpn.node import nft, sysctl
from ravenvpn.node.discovery import ipv6_present, way_out
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.preflight import CheckFacts, PortFact, reverse_path_rules
from ravenvpn.node.rtnetlink import dump_routes, dump_rules, rule_table

_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_UPSTREAM_TABLE = 9027
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/ipv6/conf/all/disable_ipv6",
)


def gather(*, listen_port: int = DEFAULT_TUNNEL_PORT, health_port: int = 10275) -> CheckFacts:
    """Look at this host. Blocking, and not from a thread whose event loop runs (`netlink.Netlink`)."""
    gso, gro = _udp_offloads()
    return CheckFacts(
        kernel=_kernel(os.uname().release),
        tun=_tun(),
        capabilities=_capabilities(),
        nft=_nft_version(),
        vxlan=_has_vxlan(),
        udp_gso=gso,
        udp_gro=gro,
        wall_clock=time.time(),
        clock_synchronised=_clock_synchronised(),
        sysctls={key: sysctl.read(key) for key in _SYSCTLS},
        reverse_path_filters=_reverse_path_filters(),
        mtu=_mtu(),
        ipv6=ipv6_present(),
        ports=tuple(_ports(listen_port, health_port)),
        upstream=_upstream(),
    )


def _kernel(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _tun() -> str:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return ""


def _capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _nft_version() -> str | None:
    try:
        return nft.version()
    except HostError:
        return None


def _has_vxlan() -> bool | None:
    if Path("/sys/module/vxlan").is_dir():
        return True
    modules = Path("/lib/modules") / os.uname().release
    try:
        return any("/vxlan.ko" in (modules / name).read_text() for name in ("modules.builtin", "modules.dep"))
    except OSError:
        return None


def _udp_offloads() -> tuple[bool, bool]:
    there: list[bool] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for option in (_UDP_SEGMENT, _UDP_GRO):
            try:
                probe.setsockopt(socket.IPPROTO_UDP, option, 0)
            except OSError:
                there.append(False)
            else:
                there.append(True)
    return there[0], there[1]


def _clock_synchronised() -> bool | None:
    """adjtimex(2) with no mode bits only reads; struct timex has 208 bytes and begins with them."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _reverse_path_filters() -> tuple[str, ...] | None:
    listing: Mapping[str, Any] = {}
    if _nft_version() is not None:
        try:
            listing = nft.list_ruleset()
        except HostError:
            return None
    saved: dict[str, str] = {}
    # The legacy programs load their kernel tables when asked, so they are asked only where tables are in use.
    for program, names in (
        ("iptables-legacy-save", "ip_tables_names"),
        ("ip6tables-legacy-save", "ip6_tables_names"),
    ):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if (Path("/proc/net") / names).read_text().strip():
                done = subprocess.run([program], capture_output=True, text=True, timeout=10, check=True)
                saved[program] = done.stdout
    return reverse_path_rules(listing, saved)


def _mtu() -> int | None:
    with contextlib.suppress(HostError), LinkClient() as netlink, closing(NetlinkSocket()) as pipe:
        return way_out(pipe, netlink.links())
    return None


def _upstream() -> bool:
    with contextlib.suppress(HostError), closing(NetlinkSocket()) as pipe:
        if dump_routes(pipe, socket.AF_INET, table=_UPSTREAM_TABLE):
            return True
        return any(rule_table(body) == _UPSTREAM_TABLE for body in dump_rules(pipe, socket.AF_INET))
    return False


def _ports(listen_port: int, health_port: int) -> Iterable[PortFact]:
    for protocol, kind, host, port in (
        ("udp", socket.SOCK_DGRAM, "0.0.0.0", listen_port),  # noqa: S104 - the agent binds all, so does the probe
        ("tcp", socket.SOCK_STREAM, "127.0.0.1", health_port),
    ):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed one may linger
            try:
                probe.bind((host, port))
            except OSError:
                yield PortFact(protocol, port, _holder(protocol, port) or "?")
            else:
                yield PortFact(protocol, port)


def _holder(protocol: str, port: int) -> str:
    """Who has the port, by the inode of its socket; root sees everybody's descriptors."""
    inodes = set(_inodes(protocol, port))
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in inodes:
                process = descriptor.parts[2]
                arguments = (Path("/proc") / process / "cmdline").read_bytes().split(b"\0")
                names = [os.fsdecode(argument).rpartition("/")[2] for argument in arguments[:2]]
                # A Python program goes by its script.
                name = names[-1] if names[0].startswith("python") and len(names) > 1 else names[0]
                return f"{name} (process {process})"
    return ""


def _inodes(protocol: str, port: int) -> Iterable[str]:
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in (Path("/proc/net") / name).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
