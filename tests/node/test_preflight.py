"""Preflight findings, from given facts and on a real kernel."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
from node.box import Box

from ravenvpn.node.preflight import FindingLevel, PortFact, PreflightFacts, evaluate, reverse_path_rules, worst
from ravenvpn.node.preflight_facts import gather_facts

FIT = PreflightFacts(
    kernel=(6, 12),
    capabilities=1 << 12,
    nft="nftables v1.0.6 (Lester Gooch #5)",
    vxlan=True,
    udp_gso=True,
    udp_gro=True,
    wall_clock=1.8e9,
    clock_synchronised=True,
    sysctls={
        "net/ipv4/ip_forward": "1",
        "net/netfilter/nf_conntrack_max": "1000",
        "net/netfilter/nf_conntrack_count": "7",
    },
    mtu=1500,
    ports=(PortFact("udp", 4500), PortFact("tcp", 10275)),
)


def test_a_fit_host_has_no_remedy() -> None:
    findings = evaluate(FIT)

    assert worst(findings) is FindingLevel.OK
    assert [finding for finding in findings if finding.remedy] == []


@pytest.mark.parametrize(
    ("facts", "name", "verdict", "words"),
    [
        (replace(FIT, kernel=(5, 4)), "kernel", FindingLevel.FAIL, "Linux ≥ 5.7"),
        (replace(FIT, tun="/dev/net/tun: No such file or directory"), "tun", FindingLevel.FAIL, "modprobe tun"),
        (replace(FIT, capabilities=0), "capabilities", FindingLevel.FAIL, "CAP_NET_ADMIN"),
        (replace(FIT, nft=None), "nft", FindingLevel.FAIL, "apt-get install nftables"),
        (replace(FIT, vxlan=False), "vxlan", FindingLevel.WARN, "only regions of one node work without VXLAN"),
        (replace(FIT, udp_gro=False), "offloads", FindingLevel.WARN, "slower"),
        (replace(FIT, kernel=(6, 1)), "offloads", FindingLevel.WARN, "newer kernel"),
        (replace(FIT, wall_clock=0.0), "clock", FindingLevel.FAIL, "NTP"),
        (replace(FIT, clock_synchronised=False), "clock", FindingLevel.WARN, "NTP"),
        (
            replace(FIT, reverse_path_filters=("nft inet firewalld raw",)),
            "reverse path",
            FindingLevel.WARN,
            "ravenvpn0",
        ),
        (replace(FIT, reverse_path_filters=None), "reverse path", FindingLevel.WARN, "run as root"),
        (replace(FIT, mtu=1340), "mtu", FindingLevel.WARN, "1360"),
        (replace(FIT, mtu=None), "mtu", FindingLevel.WARN, "default route"),
        (replace(FIT, ipv6=False), "ipv6", FindingLevel.WARN, "ipv6.disable=1"),
        (
            replace(FIT, ports=(PortFact("udp", 4500, "charon (process 812)"),)),
            "udp port 4500",
            FindingLevel.FAIL,
            "listen_port",
        ),
        (
            replace(FIT, sysctls={"net/ipv4/ip_forward": "0"}),
            "forwarding",
            FindingLevel.WARN,
            "net.ipv4.ip_forward=1",
        ),
        (
            replace(
                FIT,
                sysctls={"net/netfilter/nf_conntrack_max": "1000", "net/netfilter/nf_conntrack_count": "900"},
            ),
            "conntrack",
            FindingLevel.WARN,
            "nf_conntrack_max",
        ),
        (replace(FIT, upstream=True), "upstream raven", FindingLevel.WARN, "one agent per node"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_defect_is_reported_with_its_remedy(
    facts: PreflightFacts, name: str, verdict: FindingLevel, words: str
) -> None:
    findings = evaluate(facts)
    (finding,) = [finding for finding in findings if finding.name == name]

    assert finding.verdict is verdict is worst(findings)
    assert words in finding.remedy


def test_ports_held_by_the_agent_are_accepted() -> None:
    held = replace(FIT, ports=(PortFact("udp", 4500, "raven-vpn (process 9)"),))

    assert worst(evaluate(held)) is FindingLevel.OK


def test_reverse_path_rules_are_found_in_every_notation() -> None:
    """The notations are those of nft 1.0.6: firewalld's own rules, and those of iptables-nft."""
    fib = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}
    ours = {"fib": {"result": "type", "flags": ["saddr"]}}
    listing = {
        "nftables": [
            {"rule": {"family": "inet", "table": "firewalld", "chain": "pre", "expr": [{"match": {"left": fib}}]}},
            {
                "rule": {
                    "family": "ip",
                    "table": "mangle",
                    "chain": "PREROUTING",
                    "expr": [{"xt": {"name": "rpfilter"}}],
                }
            },
            {
                "rule": {
                    "family": "inet",
                    "table": "ravenvpn",
                    "chain": "leaving",
                    "expr": [{"match": {"left": ours}}],
                }
            },
        ]
    }
    saved = {"iptables-legacy-save": "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter --invert -j DROP\n"}

    assert reverse_path_rules(listing, saved) == (
        "nft inet firewalld pre",
        "nft ip mangle PREROUTING",
        "iptables-legacy-save raw PREROUTING",
    )


@pytest.mark.root
@pytest.mark.needs("nft", "iptables-nft")
def test_gathering_facts_changes_nothing(box: Callable[[], Box]) -> None:
    one = box()
    one.sh(
        """
        ip link add eth0 type veth peer name uplink; ip link set eth0 up mtu 1400; ip link set uplink up
        ip addr add 10.0.0.5/24 dev eth0; ip route add default via 10.0.0.1
        iptables-nft -t mangle -A PREROUTING -m rpfilter --invert -j DROP
        ip route add 10.9.0.0/16 dev eth0 table 9027
        """
    )
    before = one.dump()

    def busy() -> PreflightFacts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("0.0.0.0", 4500))
            return gather_facts(listen_port=4500, health_port=10275)

    facts = one.call(busy)

    assert one.dump() == before
    assert facts.mtu == 1400
    assert facts.reverse_path_filters == ("nft ip mangle PREROUTING",)
    assert facts.upstream
    assert facts.tun == ""
    assert facts.ports[0].holder.startswith(("pytest (process", "__main__.py (process", "python", "?", "-m"))
    assert facts.ports[1] == PortFact("tcp", 10275)

    # Only upstream's rule is left, as after its device was deleted together with the routes.
    def gather() -> PreflightFacts:
        return gather_facts(listen_port=4500, health_port=10275)

    one.sh("ip route flush table 9027; ip rule add pref 100 fwmark 0x40 lookup 9027")
    assert one.call(gather).upstream
    one.sh("ip rule del pref 100")
    assert not one.call(gather).upstream
