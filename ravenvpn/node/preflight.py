"""Preflight: evaluate whether a host can run the agent. Pure; `preflight_facts` collects the facts.

Every check yields one Finding (some none, some several) with a level, the observed fact and a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ravenvpn.overhead import MIN_IPV6_MTU, TUNNEL_OVERHEAD

NET_ADMIN = 12  # linux/capability.h: bit of CAP_NET_ADMIN
MIN_KERNEL = (5, 7)  # nftables' iifname in postrouting
USO_KERNEL = (6, 2)  # TUN_F_USO4
# 2026-01-01 in Unix seconds. This program is younger, so an earlier clock is wrong. Handshakes carry timestamps, and
# a peer refuses one that is older than the last (whitepaper section 5.1).
PLAUSIBLE_CLOCK = 1767225600.0
CONNTRACK_ALARM = 0.8  # fraction of nf_conntrack_max from which on a warning is due


class FindingLevel(StrEnum):
    """Severity of a finding. FAIL: the agent cannot work; WARN: it works with the named restriction."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"  # makes `raven-vpn check` exit with 1


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check. Field names are those of the JSON output."""

    name: str  # of the check
    verdict: FindingLevel
    what: str  # the observed fact
    remedy: str = ""  # what the operator can do; "" if nothing is wrong


@dataclass(frozen=True, slots=True)
class PortFact:
    """Whether a port that the agent binds is free."""

    protocol: str  # "udp" or "tcp"
    port: int
    holder: str = ""  # "": free; else the program that has it ("charon (process 812)"), "?" if unknown


@dataclass(frozen=True, slots=True)
class PreflightFacts:
    """Facts of a host at one instant. None: could not be determined."""

    # Kernel and process.
    kernel: tuple[int, int] = (0, 0)  # major and minor version
    tun: str = ""  # "" if /dev/net/tun opens, else the error
    capabilities: int = 0  # CapEff of /proc/self/status, one bit a capability
    nft: str | None = None  # version line, None if nft is not installed
    vxlan: bool | None = None  # the kernel has VXLAN devices
    udp_gso: bool = False  # UDP_SEGMENT
    udp_gro: bool = False  # UDP_GRO
    wall_clock: float = 0.0  # Unix seconds
    clock_synchronised: bool | None = None  # by NTP, as adjtimex(2) reports
    # Network of the host.
    sysctls: Mapping[str, str | None] = field(default_factory=dict)  # None: no such key
    reverse_path_filters: tuple[str, ...] | None = ()  # places of rules of other programs that check reverse paths
    mtu: int | None = None  # of the default route, bytes
    ipv6: bool = True
    ports: tuple[PortFact, ...] = ()
    upstream: bool = False  # the upstream Raven agent's rule or table exists


def evaluate(facts: PreflightFacts) -> list[Finding]:
    """Return the findings of all checks, in the order in which they are shown."""
    return [
        _kernel(facts),
        _tun(facts),
        _capabilities(facts),
        _nft(facts),
        _vxlan(facts),
        _offloads(facts),
        _clock(facts),
        *_sysctls(facts),
        _reverse_path(facts),
        _mtu(facts),
        _ipv6(facts),
        *_ports(facts),
        *_upstream(facts),
    ]


def worst(findings: Iterable[Finding]) -> FindingLevel:
    """Return the most severe level among findings, OK without any."""
    levels = {finding.verdict for finding in findings}
    return next((level for level in (FindingLevel.FAIL, FindingLevel.WARN) if level in levels), FindingLevel.OK)


def _finding(name: str, ok: bool, what: str, remedy: str, bad: FindingLevel = FindingLevel.FAIL) -> Finding:
    """Return a finding that is OK, or else `bad` with a remedy."""
    return Finding(name, FindingLevel.OK if ok else bad, what, "" if ok else remedy)


def _kernel(facts: PreflightFacts) -> Finding:
    """Require the kernel whose nftables matches input devices after routing."""
    major, minor = facts.kernel
    needed = f"{MIN_KERNEL[0]}.{MIN_KERNEL[1]}"
    return _finding("kernel", facts.kernel >= MIN_KERNEL, f"Linux {major}.{minor}", f"Linux ≥ {needed} is needed")


def _tun(facts: PreflightFacts) -> Finding:
    """Require /dev/net/tun, the door to TUN devices."""
    remedy = "modprobe tun; in a container: mount /dev/net/tun and allow device 10:200"
    return _finding("tun", not facts.tun, facts.tun or "/dev/net/tun opens", remedy)


def _capabilities(facts: PreflightFacts) -> Finding:
    """Require CAP_NET_ADMIN; no other capability is needed, since the kernel loads modules by itself."""
    has = bool(facts.capabilities >> NET_ADMIN & 1)
    what = "CAP_NET_ADMIN" if has else "CAP_NET_ADMIN is missing"
    return _finding("capabilities", has, what, "run as root, or with CAP_NET_ADMIN (AmbientCapabilities= in systemd)")


def _nft(facts: PreflightFacts) -> Finding:
    """Require nft(8), by which the packet filter is written."""
    return _finding("nft", facts.nft is not None, facts.nft or "nft is not installed", "apt-get install nftables")


def _vxlan(facts: PreflightFacts) -> Finding:
    """Warn without VXLAN, which joins the nodes of a region of two or more."""
    observed = {True: "supported", False: "this kernel does not support it", None: "support is unknown"}
    remedy = "install the kernel's extra modules; only regions of one node work without VXLAN"
    return _finding("vxlan", facts.vxlan is not False, observed[facts.vxlan], remedy, FindingLevel.WARN)


def _offloads(facts: PreflightFacts) -> Finding:
    """Warn about missing segmentation offloads: without them the kernel takes and gives packets one by one."""
    missing = [
        name
        for name, supported in (
            ("UDP GSO", facts.udp_gso),
            ("UDP GRO", facts.udp_gro),
            ("TUN USO (Linux 6.2)", facts.kernel >= USO_KERNEL),
        )
        if not supported
    ]
    what = f"missing: {', '.join(missing)}" if missing else "UDP GSO and GRO, TUN TSO and USO"
    return _finding(
        "offloads", not missing, what, "the tunnel works, but slower; use a newer kernel", FindingLevel.WARN
    )


def _clock(facts: PreflightFacts) -> Finding:
    """Fail for an implausible clock, warn for one that is not synchronised."""
    remedy = "run an NTP client (apt-get install systemd-timesyncd)"
    if facts.wall_clock < PLAUSIBLE_CLOCK:
        what = "the clock is years behind: peers refuse handshakes with a timestamp older than the last one"
        return Finding("clock", FindingLevel.FAIL, what, remedy)
    what = {True: "synchronised", False: "not synchronised", None: "plausible"}[facts.clock_synchronised]
    return _finding("clock", facts.clock_synchronised is not False, what, remedy, FindingLevel.WARN)


def _sysctls(facts: PreflightFacts) -> Iterable[Finding]:
    """Yield findings about forwarding, reverse-path filtering and the size of the conntrack table."""
    if facts.sysctls.get("net/ipv4/ip_forward") == "0":
        yield Finding(
            "forwarding",
            FindingLevel.WARN,
            "net.ipv4.ip_forward is 0: the agent enables forwarding on its own and the pods' devices only",
            "most CNIs need forwarding: sysctl -w net.ipv4.ip_forward=1",
        )
    else:
        yield Finding("forwarding", FindingLevel.OK, "net.ipv4.ip_forward is on")
    strict = facts.sysctls.get("net/ipv4/conf/all/rp_filter") == "1"
    what = "strict; the agent makes its own devices loose" if strict else "not strict"
    yield Finding("rp_filter", FindingLevel.OK, what)
    limit, used = (facts.sysctls.get(f"net/netfilter/nf_conntrack_{name}") for name in ("max", "count"))
    if limit and used and int(limit) > 0:
        yield _finding(
            "conntrack",
            int(used) / int(limit) < CONNTRACK_ALARM,
            f"{used} of {limit} flows",
            "raise net.netfilter.nf_conntrack_max: a full table drops packets",
            FindingLevel.WARN,
        )


def _reverse_path(facts: PreflightFacts) -> Finding:
    """Warn about rules of other programs that drop packets from our devices by reverse path.

    The rp_filter sysctl is no concern: the plan sets it to loose on our devices, where the larger of the device's and
    the global value counts (kernel document ip-sysctl), and loose is larger than strict."""
    if facts.reverse_path_filters is None:
        return Finding("reverse path", FindingLevel.WARN, "the packet filter could not be read", "run as root")
    found = facts.reverse_path_filters
    what = "; ".join(found) if found else "no rule of another program checks reverse paths"
    remedy = (
        "accept packets from ravenvpn0 and raven0 before such rules (firewalld: IPv6_rpfilter=loose): packets arrive "
        "asymmetrically while gateway roles change"
    )
    return _finding("reverse path", not found, what, remedy, FindingLevel.WARN)


def _mtu(facts: PreflightFacts) -> Finding:
    """Warn if the underlay leaves less than IPv6's minimum MTU inside the tunnel."""
    if facts.mtu is None:
        return Finding("mtu", FindingLevel.WARN, "there is no default route", "give the host a default route")
    inner = facts.mtu - TUNNEL_OVERHEAD
    what = f"{facts.mtu} on the default route, so {max(inner, 0)} in the tunnel"
    if inner < MIN_IPV6_MTU:
        remedy = f"raise the MTU of the underlay: below {MIN_IPV6_MTU + TUNNEL_OVERHEAD} outer packets are fragmented"
        return Finding("mtu", FindingLevel.WARN, what, remedy)
    return Finding("mtu", FindingLevel.OK, what)


def _ipv6(facts: PreflightFacts) -> Finding:
    """Warn without IPv6 in the kernel; IPv6 disabled by sysctl is no obstacle."""
    if not facts.ipv6:
        what = "the kernel runs without IPv6: pods reach other regions over IPv4 only"
        return Finding("ipv6", FindingLevel.WARN, what, "boot without ipv6.disable=1")
    if facts.sysctls.get("net/ipv6/conf/all/disable_ipv6") == "1":
        return Finding("ipv6", FindingLevel.OK, "disabled by sysctl; the agent enables it on its own device only")
    return Finding("ipv6", FindingLevel.OK, "enabled")


def _ports(facts: PreflightFacts) -> Iterable[Finding]:
    """Fail for a port that another program holds. A running agent holds them itself."""
    settings = {"udp": "listen_port", "tcp": "http_address"}  # setting that changes the port
    for port in facts.ports:
        name = f"{port.protocol} port {port.port}"
        ours = port.holder.startswith(("raven-vpn", "ravenvpn"))
        what = f"held by {port.holder}" if port.holder else "free"
        remedy = f"stop that program, or choose another port with the setting {settings[port.protocol]}"
        yield _finding(name, not port.holder or ours, what, remedy)


def _upstream(facts: PreflightFacts) -> Iterable[Finding]:
    """Warn about objects of the upstream Raven agent, which uses the same device name raven0."""
    if facts.upstream:
        what = "objects of the upstream Raven agent exist (its rule at 100, table 9027)"
        remedy = (
            "one agent per node: stop its DaemonSet on this node and run its cleanup. Our rules are evaluated before "
            "its leftovers, so these only affect prefixes that no region announces any more"
        )
        yield Finding("upstream raven", FindingLevel.WARN, what, remedy)


def reverse_path_rules(listing: Mapping[str, Any], saved: Mapping[str, str]) -> tuple[str, ...]:
    """Return the places ("nft inet firewalld filter_PREROUTING") of rules that check the reverse path. Pure.

    `listing` is the output of `nft -j list ruleset`, `saved` that of each iptables-legacy-save, by program name.
    """
    found: dict[str, None] = {}
    for item in listing.get("nftables", ()):
        rule = item.get("rule")
        if rule is not None and any(_checks_reverse_path(expression) for expression in rule.get("expr", ())):
            where = f"nft {rule.get('family')} {rule.get('table')} {rule.get('chain')}"
            found[where] = None
    for program, text in saved.items():
        table = ""  # "*raw" begins a table, "-A CHAIN …" is a rule
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A ") and " rpfilter" in line:
                found[f"{program} {table} {line.split()[1]}"] = None
    return tuple(found)


def _checks_reverse_path(expression: Any) -> bool:
    """Return whether an expression checks the reverse path: nft's `fib saddr . iif oif`, iptables-nft's rpfilter."""
    if isinstance(expression, Mapping):
        fib = expression.get("fib")
        if isinstance(fib, Mapping) and str(fib.get("result", "")).startswith("oif"):
            flags = fib.get("flags", ())
            if "saddr" in flags and "iif" in flags:
                return True
        extension = expression.get("xt")
        if isinstance(extension, Mapping) and extension.get("name") == "rpfilter":
            return True
        return any(_checks_reverse_path(value) for value in expression.values())
    if isinstance(expression, list):
        return any(_checks_reverse_path(value) for value in expression)
    return False
