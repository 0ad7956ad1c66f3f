"""The content of our nft table: from `PacketFilter` to chains, rules and sets, as JSON of libnftables-json(5). Pure.

How the meaning of `PacketFilter` is expressed (docs/architecture/host-network.md):

* The rules match devices, not remote prefixes. A packet for another region is one that leaves by our devices, and a
  packet from another region one that arrives by them, since table 9127 has already routed it. The filter therefore
  cannot disagree with the routes, and a change of the world costs it nothing. (nft reads a whole interval set before
  it adds an element: 100 to 200 ms for a set of 20,000.) Only the region's own prefixes are a set. `iifname` in
  postrouting needs Linux 5.7.
* Each rule has a comment with a hash of its content. Comments, their order, chains and sets make the `Shape`, by
  which a table is compared: versions of nft print the same rule differently, but all of them print its comment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any

from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, VXLAN_DEVICE, HostState, Prefix
from ravenvpn.mesh.reason import Reason
from ravenvpn.mesh.vxlan import PORT as VXLAN_PORT

KUBE_PROXY_MARK = 0x4000  # kube-proxy's --iptables-masquerade-bit, default 14: packets to be masqueraded later
# Hook priorities, netfilter's names in brackets.
PRIORITY_GUARD = 0  # (filter)
PRIORITY_VXLAN = -10  # before (filter), where CNIs and host firewalls accept by other criteria
PRIORITY_MSS = -150  # (mangle)
PRIORITY_SOURCE = 100 - 10  # (srcnat − 10): the first nat chain that binds a flow wins, so this comes before CNIs'
# Sets by family. Their elements change in place: a rule with the addresses in it would have to be written anew.
LOCAL_SETS = {4: "local4", 6: "local6"}  # this region's prefixes
VXLAN_SETS = {4: "vxlan4", 6: "vxlan6"}  # outer sources of VXLAN frames

# An element with the name of its set.
SetElement = tuple[str, Prefix]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A table without its set elements, in the form in which two tables are compared."""

    chains: tuple[tuple[str, str, str, int, str], ...]  # name, type, hook, priority, policy; "" and 0 without a hook
    rules: tuple[tuple[str, str], ...]  # chain, comment; in order within each chain
    sets: tuple[tuple[str, str], ...]  # name, type
    others: tuple[str, ...] = ()  # objects in the table that no plan makes


@dataclass(frozen=True, slots=True)
class FilterFacts:
    """A whole table, observed or planned, for comparison."""

    shape: Shape
    elements: frozenset[SetElement]  # of all sets


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A planned table with everything that is needed to write it."""

    facts: FilterFacts
    rules: tuple[tuple[str, str, str], ...]  # chain, comment, expressions as JSON text
    reason: Reason | None = None  # of the packet filter


# Name, type, hook, priority, policy; chains without a hook are targets of goto. Sorted by name, as Shape has them.
CHAINS = (
    ("arriving", "", "", 0, ""),
    ("astray", "filter", "forward", PRIORITY_GUARD, "accept"),
    ("leaving", "", "", 0, ""),
    ("masqueraded", "", "", 0, ""),
    ("mss", "filter", "postrouting", PRIORITY_MSS, "accept"),
    ("source", "nat", "postrouting", PRIORITY_SOURCE, "accept"),
    ("vxlan", "filter", "input", PRIORITY_VXLAN, "accept"),
    ("vxlan_forwarded", "filter", "forward", PRIORITY_VXLAN, "accept"),
)
SETS = (("local4", "ipv4_addr"), ("local6", "ipv6_addr"), ("vxlan4", "ipv4_addr"), ("vxlan6", "ipv6_addr"))


def build_ruleset(wanted: HostState) -> Ruleset | None:
    """Return the table for a host, None if the host has no packet filter."""
    if wanted.packet_filter is None:
        return None
    rules = tuple(
        (chain, f"{comment} [{_digest(chain, expressions)}]", json.dumps(expressions, sort_keys=True))
        for chain, comment, expressions in _rules(wanted)
    )
    shape = Shape(
        chains=CHAINS,
        # Grouped as nft lists them: chain by chain. The sort is stable, so the order within a chain stays.
        rules=tuple(sorted(((chain, comment) for chain, comment, _ in rules), key=lambda rule: rule[0])),
        sets=SETS,
    )
    elements = [(LOCAL_SETS[prefix.version], prefix) for prefix in _collapse(wanted.packet_filter.local)]
    frame_sources = _collapse([ip_network(source) for source in wanted.packet_filter.vxlan_sources])
    elements += [(VXLAN_SETS[prefix.version], prefix) for prefix in frame_sources]
    return Ruleset(FilterFacts(shape, frozenset(elements)), rules, wanted.packet_filter.reason)


def _rules(wanted: HostState) -> Iterable[tuple[str, str, list[Json]]]:
    """Yield (chain, comment, expressions) of every rule, in order within each chain."""
    assert wanted.packet_filter is not None
    own: dict[int, str] = {address.version: str(address) for address in wanted.packet_filter.own_sources}
    ours: Json = {"set": [TUNNEL_DEVICE, VXLAN_DEVICE]}
    yield from _mss_rules(ours)
    yield from _guard_rules(ours)
    yield from _source_rules(ours, own)
    yield from _vxlan_rules()


def _mss_rules(ours: Json) -> Iterable[tuple[str, str, list[Json]]]:
    """Yield the rules that clamp the TCP MSS of SYNs to the MTU of the route, in both directions."""
    clamp: list[Json] = [
        _match("==", {"&": [_payload("tcp", "flags"), ["syn", "rst"]]}, "syn"),
        # `rt mtu` is the smaller of the MTUs of the route to the destination and of the route back to the source.
        {"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}},
    ]
    yield "mss", "MSS follows the route's MTU", [_out(ours), *clamp]
    yield "mss", "MSS follows the route's MTU", [_in(ours), *clamp]


def _guard_rules(ours: Json) -> Iterable[tuple[str, str, list[Json]]]:
    """Yield the rules against leaks: packets from our devices go to our devices or to this region, or are refused.

    Any other packet is for a prefix that its sender routes to us and that this node does not route (any more); it
    would leave in clear by another device. Packets that this host itself redirected (kube-proxy) or masqueraded are
    exempt. Established flows are not: the region of a flow may have gone meanwhile.
    """
    status: Json = {"ct": {"key": "status"}}
    answer = _match("==", {"ct": {"key": "direction"}}, "reply")
    yield "astray", "redirected by this host", [_in(ours), _match("in", status, "dnat"), {"accept": None}]
    yield "astray", "masqueraded by this host", [_in(ours), _match("in", status, "snat"), answer, {"accept": None}]
    yield "astray", "for another region", [_in(ours), _out(ours), {"accept": None}]
    for version in (4, 6):
        here = _match("==", _payload(_ip(version), "daddr"), f"@{LOCAL_SETS[version]}")
        yield "astray", "for this region", [_in(ours), here, {"accept": None}]
    refusal: Json = {"reject": {"type": "icmpx", "expr": "no-route"}}
    yield "astray", "for nobody known here: never in clear", [_in(ours), refusal]


def _vxlan_rules() -> Iterable[tuple[str, str, list[Json]]]:
    """Yield the rules for the VXLAN port: frames of the sets' addresses pass, all others are dropped and counted.

    They are there without VXLAN too, with empty sets: a region's second node then changes elements alone.

    VXLAN has no authentication (RFC 7348 section 7): without these rules one UDP datagram from any host or pod is
    decapsulated and forwarded into the tunnel. The route back to the source has to leave by the device that the frame
    arrived at, so a pod or a host behind another device cannot use the address of a node of the region. A host on the
    same LAN still can; only authenticated sessions stop that one.
    """
    port = _match("==", _payload("udp", "dport"), VXLAN_PORT)
    same_device = _match("==", {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, True)
    drop: list[Json] = [{"counter": None}, {"drop": None}]
    for chain in ("vxlan", "vxlan_forwarded"):
        for version in (4, 6):
            source = _match("==", _payload(_ip(version), "saddr"), f"@{VXLAN_SETS[version]}")
            yield chain, "VXLAN from a node of this region", [port, source, same_device, {"accept": None}]
            if chain == "vxlan_forwarded":
                target = _match("==", _payload(_ip(version), "daddr"), f"@{VXLAN_SETS[version]}")
                yield chain, "VXLAN to a node, from elsewhere", [port, target, *drop]
        if chain == "vxlan":
            yield chain, "VXLAN from elsewhere", [port, *drop]


def _source_rules(ours: Json, own: dict[int, str]) -> Iterable[tuple[str, str, list[Json]]]:
    """Yield the nat rules that decide the source address of flows between regions. `own`: our source by family."""
    # A flow that kube-proxy redirected and marked for masquerading: its replies have to return to this node, which
    # holds the DNAT state.
    marked: Json = {"&": [{"meta": {"key": "mark"}}, KUBE_PROXY_MARK]}
    yield (
        "source",
        "kube-proxy wants it masqueraded",
        [
            _match("in", {"ct": {"key": "status"}}, "dnat"),
            _match("==", marked, KUBE_PROXY_MARK),
            {"goto": {"target": "masqueraded"}},
        ],
    )
    yield "source", "from another region or to it through here", [_in(ours), {"goto": {"target": "arriving"}}]
    yield "source", "from here to another region", [_out(ours), {"goto": {"target": "leaving"}}]

    # A packet that leaves by the tunnel goes to another region. So does one that leaves by raven0, unless it came out
    # of the tunnel: then it goes to a node of this region, and its source is kube-proxy's decision.
    yield from _own_source("masqueraded", own, [_out(TUNNEL_DEVICE)])
    yield "masqueraded", "bound for this region: left to kube-proxy", [_in(TUNNEL_DEVICE), {"return": None}]
    yield from _own_source("masqueraded", own, [_out(VXLAN_DEVICE)])

    for version in (4, 6):
        yield "arriving", "keeps its source", [_keep_source(version)]

    for version in (4, 6):
        local = _match("==", _payload(_ip(version), "saddr"), f"@{LOCAL_SETS[version]}")
        yield "leaving", "pods keep their source", [local, _keep_source(version)]
    for version in (4, 6):
        # An address of the device that the packet leaves by: our tunnel address, or a neighbour on raven0. The route
        # has chosen that device, so the address cannot be another region's.
        own_device = {"fib": {"result": "type", "flags": ["saddr", "oif"]}}
        yield (
            "leaving",
            "the device's own address stays",
            [_family(version), _match("==", own_device, "local"), _keep_source(version)],
        )
    starts_here = _match("==", {"fib": {"result": "type", "flags": ["saddr"]}}, "local")
    yield from _own_source("leaving", own, [starts_here])


def _own_source(chain: str, own: dict[int, str], conditions: list[Json]) -> Iterable[tuple[str, str, list[Json]]]:
    """Yield one rule for each family that translates the source to ours."""
    for version, address in sorted(own.items()):
        yield (
            chain,
            "leaves with our own source",
            [_family(version), *conditions, {"snat": {"family": _ip(version), "addr": address}}],
        )


# --- Expressions, libnftables-json(5) --------------------------------------------------------------------------


def _family(version: int) -> Json:
    return _match("==", {"meta": {"key": "nfproto"}}, f"ipv{version}")


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _match(operator: str, left: Json, right: Any) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _in(devices: Any) -> Json:
    return _match("==", {"meta": {"key": "iifname"}}, devices)


def _out(devices: Any) -> Json:
    return _match("==", {"meta": {"key": "oifname"}}, devices)


def _keep_source(version: int) -> Json:
    """Return the SNAT of a flow to its own source.

    It binds the flow: conntrack, DNAT and policies still apply, a later MASQUERADE does not.
    """
    return {"snat": {"family": _ip(version), "addr": _payload(_ip(version), "saddr")}}


def _digest(chain: str, expressions: list[Json]) -> str:
    """Return 12 hex digits of SHA-256, enough to notice an edit; not a protection against a forged comment."""
    text = json.dumps([chain, expressions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _collapse(prefixes: Sequence[Prefix]) -> frozenset[Prefix]:
    """Return the fewest prefixes with the same addresses: an interval set refuses elements that overlap."""
    v4 = [prefix for prefix in prefixes if isinstance(prefix, IPv4Network)]
    v6 = [prefix for prefix in prefixes if isinstance(prefix, IPv6Network)]
    return frozenset([*collapse_addresses(v4), *collapse_addresses(v6)])
