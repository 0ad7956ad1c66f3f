"""Is this host fit to run the agent? `judge` is pure and says for each thing: ok, warn or fail, what, and the remedy.

`gather` collects what is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ravenvpn.overhead import MIN_IPV6_MTU, TUNNEL_OVERHEAD

NET_ADMIN = 12  # linux/capability.h: number of the bit
MIN_KERNEL = (5, 7)  # nft's iifname in postrouting
USO_KERNEL = (6, 2)  # TUN_F_USO4
PLAUSIBLE_CLOCK = 1767225600.0  # 2026-01-01: this program is younger than that


class FindingLevel(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    verdict: FindingLevel
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class PortFact:
    """`holder` is who has it ("charon (process 812)"), "" if it is free, "?" if that can't be told."""

    protocol: str  # "udp" or "tcp"
    port: int
    holder: str = ""


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """What is known of a host. None: could not be looked at."""

    kernel: tuple[int, int] = (0, 0)
    tun: str = ""  # "" if /dev/net/tun opens, else why not
    capabilities: int = 0  # CapEff
    nft: str | None = None  # version, None if there is none
    vxlan: bool | None = None
    udp_gso: bool = False
    udp_gro: bool = False
    wall_clock: float = 0.0
    clock_synchronised: bool | None = None
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    reverse_path_filters: tuple[str, ...] | None = ()  # rules of others, each with where it is
    mtu: int | None = None  # of the way out
    ipv6: bool = True
    ports: tuple[PortFact, ...] = ()
    upstream: bool = False  # the upstream Raven agent's rule or table is here


def judge(facts: CheckFacts) -> list[Finding]:
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
    verdicts = {finding.verdict for finding in findings}
    return next(
        (verdict for verdict in (FindingLevel.FAIL, FindingLevel.WARN) if verdict in verdicts), FindingLevel.OK
    )


def _finding(name: str, ok: bool, what: str, remedy: str, bad: FindingLevel = FindingLevel.FAIL) -> Finding:
    return Finding(name, FindingLevel.OK if ok else bad, what, "" if ok else remedy)


def _kernel(facts: CheckFacts) -> Finding:
    major, minor = facts.kernel
    needed = f"{MIN_KERNEL[0]}.{MIN_KERNEL[1]}"
    return _finding("kernel", facts.kernel >= MIN_KERNEL, f"Linux {major}.{minor}", f"Linux ≥ {needed} is needed")


def _tun(facts: CheckFacts) -> Finding:
    remedy = "modprobe tun; in a container: mount /dev/net/tun and allow device 10:200"
    return _finding("tun", not facts.tun, facts.tun or "/dev/net/tun opens", remedy)


def _capabilities(facts: CheckFacts) -> Finding:
    has = bool(facts.capabilities >> NET_ADMIN & 1)
    what = "CAP_NET_ADMIN" if has else "CAP_NET_ADMIN is missing"
    return _finding("capabilities", has, what, "run as root, or with CAP_NET_ADMIN (AmbientCapabilities= in systemd)")


def _nft(facts: CheckFacts) -> Finding:
    return _finding("nft", facts.nft is not None, facts.nft or "nft is not installed", "apt-get install nftables")


def _vxlan(facts: CheckFacts) -> Finding:
    words = {True: "there", False: "this kernel has none", None: "could not be told"}
    remedy = "install the kernel's extra modules; regions of one node do without"
    return _finding("vxlan", facts.vxlan is not False, words[facts.vxlan], remedy, FindingLevel.WARN)


def _offloads(facts: CheckFacts) -> Finding:
    missing = [
        name
        for name, there in (
            ("UDP GSO", facts.udp_gso),
            ("UDP GRO", facts.udp_gro),
            ("TUN USO (Linux 6.2)", facts.kernel >= USO_KERNEL),
        )
        if not there
    ]
    what = f"missing: {', '.join(missing)}" if missing else "UDP GSO and GRO, TUN TSO and USO"
    return _finding(
        "offloads", not missing, what, "it works, more slowly; a newer kernel has them", FindingLevel.WARN
    )


def _clock(facts: CheckFacts) -> Finding:
    remedy = "run an NTP client (apt-get install systemd-timesyncd)"
    if facts.wall_clock < PLAUSIBLE_CLOCK:
        what = "the clock is years behind: handshakes carry timestamps that may never go back"
        return Finding("clock", FindingLevel.FAIL, what, remedy)
    words = {True: "synchronised", False: "not synchronised", None: "plausible"}
    what = words[facts.clock_synchronised]
    return _finding("clock", facts.clock_synchronised is not False, what, remedy, FindingLevel.WARN)


def _sysctls(facts: CheckFacts) -> Iterable[Finding]:
    if facts.sysctls.get("net/ipv4/ip_forward") == "0":
        yield Finding(
            "forwarding",
            FindingLevel.WARN,
            "net.ipv4.ip_forward is 0: the agent turns it on for its own and the pods' devices only",
            "a CNI usually wants it on: sysctl -w net.ipv4.ip_forward=1",
        )
    else:
        yield Finding("forwarding", FindingLevel.OK, "net.ipv4.ip_forward is on")
    strict = facts.sysctls.get("net/ipv4/conf/all/rp_filter") == "1"
    what = "strict here, loose on the agent's own devices" if strict else "not strict"
    yield Finding("rp_filter", FindingLevel.OK, what)
    limit, used = (facts.sysctls.get(f"net/netfilter/nf_conntrack_{name}") for name in ("max", "count"))
    if limit and used and int(limit) > 0:
        full = int(used) / int(limit)
        yield _finding(
            "conntrack",
            full < 0.8,
            f"{used} of {limit} flows",
            "raise net.netfilter.nf_conntrack_max: a full table drops packets",
            FindingLevel.WARN,
        )


def _reverse_path(facts: CheckFacts) -> Finding:
    if facts.reverse_path_filters is None:
        return Finding("reverse path", FindingLevel.WARN, "the packet filter could not be read", "run as root")
    found = facts.reverse_path_filters
    what = "; ".join(found) if found else "no rule of others asks for it"
    remedy = (
        "let ravenvpn0 and raven0 pass before such rules (firewalld: IPv6_rpfilter=loose): packets arrive "
        "asymmetrically while roles change"
    )
    return _finding("reverse path", not found, what, remedy, FindingLevel.WARN)


def _mtu(facts: CheckFacts) -> Finding:
    if facts.mtu is None:
        return Finding("mtu", FindingLevel.WARN, "there is no route out", "give the host a default route")
    inner = facts.mtu - TUNNEL_OVERHEAD
    what = f"{facts.mtu} on the way out, so {max(inner, 0)} in the tunnel"
    if inner < MIN_IPV6_MTU:
        remedy = f"an underlay below {MIN_IPV6_MTU + TUNNEL_OVERHEAD} makes the outer packets fragment; raise its MTU"
        return Finding("mtu", FindingLevel.WARN, what, remedy)
    return Finding("mtu", FindingLevel.OK, what)


def _ipv6(facts: CheckFacts) -> Finding:
    if not facts.ipv6:
        what = "the kernel runs without IPv6: pods reach other regions by IPv4 only"
        return Finding("ipv6", FindingLevel.WARN, what, "boot without ipv6.disable=1")
    if facts.sysctls.get("net/ipv6/conf/all/disable_ipv6") == "1":
        return Finding("ipv6", FindingLevel.OK, "disabled by sysctl; the agent enables it on its own device only")
    return Finding("ipv6", FindingLevel.OK, "enabled")


def _ports(facts: CheckFacts) -> Iterable[Finding]:
    settings = {"udp": "listen_port", "tcp": "health_address"}
    for port in facts.ports:
        name = f"{port.protocol} port {port.port}"
        ours = port.holder.startswith(("raven-vpn", "ravenvpn"))
        what = f"held by {port.holder}" if port.holder else "free"
        remedy = f"stop it, or choose another with the setting {settings[port.protocol]}"
        yield _finding(name, not port.holder or ours, what, remedy)


def _upstream(facts: CheckFacts) -> Iterable[Finding]:
    if facts.upstream:
        what = "objects of the upstream Raven agent are here (its rule at 100, table 9027)"
        remedy = (
            "one agent per node: stop its DaemonSet on this node and run its cleanup. What it left is asked after "
            "our rules, so it leads astray only what no other region has any more"
        )
        yield Finding("upstream raven", FindingLevel.WARN, what, remedy)


def reverse_path_rules(listing: Mapping[str, Any], saved: Mapping[str, str]) -> tuple[str, ...]:
    """Rules that drop by reverse path, in words. Pure.

    `listing` is what `nft -j list ruleset` says, `saved` what each iptables-legacy-save says, by its name.
    """
    found: dict[str, None] = {}
    for item in listing.get("nftables", ()):
        rule = item.get("rule")
        if rule is not None and any(_asks_reverse_path(expression) for expression in rule.get("expr", ())):
            where = f"nft {rule.get('family')} {rule.get('table')} {rule.get('chain')}"
            found[where] = None
    for program, text in saved.items():
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A ") and " rpfilter" in line:
                found[f"{program} {table} {line.split()[1]}"] = None
    return tuple(found)


def _asks_reverse_path(expression: Any) -> bool:
    """`fib saddr . iif oif` in nft's own words, `-m rpfilter` in those of iptables-nft."""
    if isinstance(expression, Mapping):
        fib = expression.get("fib")
        if isinstance(fib, Mapping) and str(fib.get("result", "")).startswith("oif"):
            flags = fib.get("flags", ())
            if "saddr" in flags and "iif" in flags:
                return True
        extension = expression.get("xt")
        if isinstance(extension, Mapping) and extension.get("name") == "rpfilter":
            return True
        return any(_asks_reverse_path(value) for value in expression.values())
    if isinstance(expression, list):
        return any(_asks_reverse_path(value) for value in expression)
    return False
