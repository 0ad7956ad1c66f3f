"""Collect the facts that `preflight` evaluates. Reads and probes; every probe is undone, so nothing changes."""

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
from ravenvpn.node import nft, sysctl
from ravenvpn.node.discovery import default_route_mtu, ipv6_present
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.preflight import PortFact, PreflightFacts, reverse_path_rules
from ravenvpn.node.rtnetlink import dump_routes, dump_rules, rule_table

_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h: socket options of level IPPROTO_UDP
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # struct timex has 208
_UPSTREAM_TABLE = 9027  # routing table of the upstream Raven agent
_SAVE_TIMEOUT = 10.0  # seconds for an iptables-legacy-save
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/ipv6/conf/all/disable_ipv6",
)


def gather_facts(*, listen_port: int, health_port: int) -> PreflightFacts:
    """Return the facts of this host. `listen_port` (UDP) and `health_port` (TCP) are those that the agent would bind.

    Blocking; not for a thread whose event loop is running (see `links.LinkClient`). A fact that cannot be determined
    is None; nothing is raised for it.
    """
    gso, gro = _udp_offloads()  # of this kernel's UDP sockets; the NIC need not have them
    return PreflightFacts(
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
    """Return major and minor version from a release string ("6.1.0-13-amd64"); (0, 0) if it has none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _tun() -> str:
    """Return "" if /dev/net/tun opens, else the error. An open device without a name creates no interface."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return ""


def _capabilities() -> int:
    """Return the effective capabilities of this process, 0 if /proc does not show them."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _nft_version() -> str | None:
    """Return nft's version line, None if it cannot be run."""
    try:
        return nft.version()
    except HostError:
        return None


def _has_vxlan() -> bool | None:
    """Return whether VXLAN is loaded, built in or a module on disk; None without a list of modules (a container)."""
    if Path("/sys/module/vxlan").is_dir():
        return True
    # modules.builtin lists what is compiled in, modules.dep what can be loaded.
    modules = Path("/lib/modules") / os.uname().release
    try:
        return any("/vxlan.ko" in (modules / name).read_text() for name in ("modules.builtin", "modules.dep"))
    except OSError:
        return None


def _udp_offloads() -> tuple[bool, bool]:
    """Return whether the kernel supports UDP_SEGMENT and UDP_GRO."""
    supported: list[bool] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for option in (_UDP_SEGMENT, _UDP_GRO):
            # Setting an option to 0 changes nothing and fails with ENOPROTOOPT where it is unknown.
            try:
                probe.setsockopt(socket.IPPROTO_UDP, option, 0)
            except OSError:
                supported.append(False)
            else:
                supported.append(True)
    return supported[0], supported[1]


def _clock_synchronised() -> bool | None:
    """Return whether NTP disciplines the clock.

    adjtimex(2) without mode bits only reads; they come first in struct timex, and the buffer is zeroed.
    """
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _reverse_path_filters() -> tuple[str, ...] | None:
    """Return the places of reverse-path rules of other programs; None if the packet filter cannot be read."""
    # nft lists its own rules and those of iptables-nft; rules of iptables-legacy are in other kernel tables.
    listing: Mapping[str, Any] = {}
    if _nft_version() is not None:
        try:
            listing = nft.list_ruleset()
        except HostError:
            return None
    saved: dict[str, str] = {}
    # A legacy program loads its kernel tables when it runs, so it is run only where tables are in use.
    for program, names in (
        ("iptables-legacy-save", "ip_tables_names"),
        ("ip6tables-legacy-save", "ip6_tables_names"),
    ):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if (Path("/proc/net") / names).read_text().strip():
                done = subprocess.run([program], capture_output=True, text=True, timeout=_SAVE_TIMEOUT, check=True)
                saved[program] = done.stdout
    return reverse_path_rules(listing, saved)


def _mtu() -> int | None:
    """Return the MTU of the default route in bytes, None without one."""
    with contextlib.suppress(HostError), LinkClient() as links, closing(NetlinkSocket()) as netlink:
        return default_route_mtu(netlink, links.links())
    return None


def _upstream() -> bool:
    """Return whether a route in the upstream agent's table, or a rule that looks it up, exists."""
    with contextlib.suppress(HostError), closing(NetlinkSocket()) as netlink:
        if dump_routes(netlink, socket.AF_INET, table=_UPSTREAM_TABLE):
            return True
        return any(rule_table(body) == _UPSTREAM_TABLE for body in dump_rules(netlink, socket.AF_INET))
    return False


def _ports(listen_port: int, health_port: int) -> Iterable[PortFact]:
    """Yield for each port whether it can be bound, and its holder if not."""
    for protocol, kind, host, port in (
        ("udp", socket.SOCK_DGRAM, "0.0.0.0", listen_port),  # noqa: S104 - the agent binds all addresses too
        ("tcp", socket.SOCK_STREAM, "127.0.0.1", health_port),
    ):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports in TIME_WAIT count as free
            # Binding tests the port as the agent uses it; it is free again when the socket closes.
            try:
                probe.bind((host, port))
            except OSError:
                yield PortFact(protocol, port, _holder(protocol, port) or "?")
            else:
                yield PortFact(protocol, port)


def _holder(protocol: str, port: int) -> str:
    """Return the program that has a port, found by the inode of its socket; "" if not visible (needs root)."""
    inodes = set(_inodes(protocol, port))
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in inodes:
                process = descriptor.parts[2]
                arguments = (Path("/proc") / process / "cmdline").read_bytes().split(b"\0")
                names = [os.fsdecode(argument).rpartition("/")[2] for argument in arguments[:2]]
                # Name a Python program by its script.
                name = names[-1] if names[0].startswith("python") and len(names) > 1 else names[0]
                return f"{name} (process {process})"
    return ""


def _inodes(protocol: str, port: int) -> Iterable[str]:
    """Yield "socket:[inode]", as links in /proc/PID/fd read, of the sockets bound to a port (/proc/net/udp, tcp)."""
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in (Path("/proc/net") / name).read_text().splitlines()[1:]:
                fields = line.split()  # 1: local address as HEX:HEXPORT, 9: inode
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
