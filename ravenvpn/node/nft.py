"""Our one nft table, and the only door to nft: JSON in, JSON out, every write one transaction.

How the meaning of `PacketFilter` is written (docs/architecture/host-network.md):

* Bound for another region is what leaves by our devices, from another region what arrives by them: table 9127 has
  decided that already, so the filter asks for the device, not for 20,000 prefixes. It can't disagree with the
  routes, and a change of the world costs it nothing (an element added to an interval set of 20,000 makes nft read all
  of them first, 100 to 200 ms). Only the region's own prefixes are a set. `iifname` in postrouting needs Linux 5.7.
* Each rule carries a comment with a hash of what it says. That, the order, the chains and the sets make the `Shape`
  which is compared: different versions of nft print the same rule differently, but they all print a comment.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import NFT_TABLE, TUNNEL_DEVICE, VXLAN_DEVICE, HostState, Prefix
from ravenvpn.mesh.reason import Reason
from ravenvpn.node.errors import host_error

FAMILY = "inet"
KUBE_PROXY_MARK = 0x4000  # kube-proxy's --iptables-masquerade-bit, default 14: "masquerade this later"
PRIORITY_GUARD = 0  # filter
PRIORITY_MSS = -150  # mangle
PRIORITY_SOURCE = 100 - 10  # srcnat − 10: the first nat chain that binds a flow wins
SET_NAMES = {4: "local4", 6: "local6"}
TIMEOUT = 30.0  # seconds for one run of nft; an iptables-restore of thousands of rules may hold the lock that long

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is compared: chains with their hooks, each chain's rules by comment in order, sets with their types."""

    chains: tuple[tuple[str, str, str, int, str], ...]  # name, type, hook, priority, policy; "" and 0 without a hook
    rules: tuple[tuple[str, str], ...]  # chain, comment
    sets: tuple[tuple[str, str], ...]  # name, type
    others: tuple[str, ...] = ()  # what is in the table and no plan puts there


@dataclass(frozen=True, slots=True)
class FilterFacts:
    """A table as it is, or as it should be."""

    shape: Shape
    local: frozenset[Prefix]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A table as it should be, ready to be written."""

    facts: FilterFacts
    rules: tuple[tuple[str, str, str], ...]  # chain, comment, expressions as JSON
    reason: Reason | None = None  # of the packet filter


_CHAINS = (
    ("arriving", "", "", 0, ""),
    ("astray", "filter", "forward", PRIORITY_GUARD, "accept"),
    ("leaving", "", "", 0, ""),
    ("masqueraded", "", "", 0, ""),
    ("mss", "filter", "postrouting", PRIORITY_MSS, "accept"),
    ("source", "nat", "postrouting", PRIORITY_SOURCE, "accept"),
)
_SETS = (("local4", "ipv4_addr"), ("local6", "ipv6_addr"))


def ruleset(wanted: HostState) -> Ruleset | None:
    """The table for a host, None if it has none. Pure."""
    if wanted.packet_filter is None:
        return None
    rules = tuple(
        (chain, f"{words} [{_digest(chain, expressions)}]", json.dumps(expressions, sort_keys=True))
        for chain, words, expressions in _rules(wanted)
    )
    shape = Shape(
        chains=_CHAINS,
        # Grouped as nft lists them: chain by chain, in the order of rules within each.
        rules=tuple(sorted(((chain, comment) for chain, comment, _ in rules), key=lambda rule: rule[0])),
        sets=_SETS,
    )
    local = _collapsed(wanted.packet_filter.local)
    return Ruleset(FilterFacts(shape, local), rules, wanted.packet_filter.reason)


def _rules(wanted: HostState) -> Iterable[tuple[str, str, list[Json]]]:
    """(chain, words for people, expressions) in order."""
    assert wanted.packet_filter is not None
    own: dict[int, str] = {address.version: str(address) for address in wanted.packet_filter.own_sources}
    ours: Json = {"set": [TUNNEL_DEVICE, VXLAN_DEVICE]}
    clamp: list[Json] = [
        _match("==", {"&": [_payload("tcp", "flags"), ["syn", "rst"]]}, "syn"),
        # rt mtu looks both ways: at the route to the destination and at the one back to the source.
        {"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}},
    ]
    yield "mss", "MSS follows the route's MTU", [_out(ours), *clamp]
    yield "mss", "MSS follows the route's MTU", [_in(ours), *clamp]

    # What came from another region or from a node of ours is for another region, or for this one's pods and nodes.
    # The rest is meant for a prefix that its sender routes and this node does not (any more): by any other device it
    # would leave in clear. What this host itself redirected (kube-proxy) or masqueraded is its own affair. Whether a
    # flow is an established one says nothing: its region may have gone since.
    status: Json = {"ct": {"key": "status"}}
    answer = _match("==", {"ct": {"key": "direction"}}, "reply")
    yield "astray", "redirected by this host", [_in(ours), _match("in", status, "dnat"), {"accept": None}]
    yield "astray", "masqueraded by this host", [_in(ours), _match("in", status, "snat"), answer, {"accept": None}]
    yield "astray", "for another region", [_in(ours), _out(ours), {"accept": None}]
    for version in (4, 6):
        here = _match("==", _payload(_ip(version), "daddr"), f"@{SET_NAMES[version]}")
        yield "astray", "for this region", [_in(ours), here, {"accept": None}]
    refusal: Json = {"reject": {"type": "icmpx", "expr": "no-route"}}
    yield "astray", "for nobody known here: never in clear", [_in(ours), refusal]

    # What kube-proxy DNATed and wants masqueraded: the reply has to come back to this node, which did the DNAT.
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

    # By the tunnel: to another region. By raven0: to another region too, unless it came out of the tunnel (then it
    # goes to a node of this region and is kube-proxy's).
    yield from _own_source("masqueraded", own, [_out(TUNNEL_DEVICE)])
    yield "masqueraded", "bound for this region: left to kube-proxy", [_in(TUNNEL_DEVICE), {"return": None}]
    yield from _own_source("masqueraded", own, [_out(VXLAN_DEVICE)])

    for version in (4, 6):
        yield "arriving", "keeps its source", [_keep(version)]

    for version in (4, 6):
        source = _payload(_ip(version), "saddr")
        yield "leaving", "pods keep their source", [_match("==", source, f"@{SET_NAMES[version]}"), _keep(version)]
    for version in (4, 6):
        # Traffic of the devices themselves: our tunnel address, and neighbours on raven0. (The route decides which
        # device it leaves by, so it can't be another region's.)
        own_device = {"fib": {"result": "type", "flags": ["saddr", "oif"]}}
        yield (
            "leaving",
            "the device's own address stays",
            [_family(version), _match("==", own_device, "local"), _keep(version)],
        )
    starts_here = _match("==", {"fib": {"result": "type", "flags": ["saddr"]}}, "local")
    yield from _own_source("leaving", own, [starts_here])


def _own_source(chain: str, own: dict[int, str], conditions: list[Json]) -> Iterable[tuple[str, str, list[Json]]]:
    for version, address in sorted(own.items()):
        yield (
            chain,
            "leaves with our own source",
            [_family(version), *conditions, {"snat": {"family": _ip(version), "addr": address}}],
        )


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


def _keep(version: int) -> Json:
    """Bind the flow to its own source: conntrack, DNAT and policies go on, later masquerading is skipped."""
    return {"snat": {"family": _ip(version), "addr": _payload(_ip(version), "saddr")}}


def _network(prefix: Prefix) -> Any:
    if prefix.prefixlen == prefix.max_prefixlen:
        return str(prefix.network_address)
    return {"prefix": {"addr": str(prefix.network_address), "len": prefix.prefixlen}}


def _digest(chain: str, expressions: list[Json]) -> str:
    text = json.dumps([chain, expressions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _collapsed(prefixes: Sequence[Prefix]) -> frozenset[Prefix]:
    """The same addresses in the fewest prefixes: an interval set refuses elements that overlap."""
    v4 = [prefix for prefix in prefixes if isinstance(prefix, IPv4Network)]
    v6 = [prefix for prefix in prefixes if isinstance(prefix, IPv6Network)]
    return frozenset([*collapse_addresses(v4), *collapse_addresses(v6)])


# --- What is written -------------------------------------------------------------------------------------------


def replacement(rules: Ruleset) -> list[Json]:
    """One transaction that puts the whole table in place of whatever had its name."""
    table = {"family": FAMILY, "name": NFT_TABLE}
    # nft 1.0.6 has no `destroy`; adding first makes the deletion certain to find something.
    commands: list[Json] = [{"add": {"table": table}}, {"delete": {"table": table}}, {"add": {"table": table}}]
    for name, kind in _SETS:
        commands.append(
            {"add": {"set": {**_of_table(name=name), "type": kind, "flags": ["interval"]}}},
        )
    commands += _elements(rules.facts.local)
    for name, kind, hook, priority, policy in _CHAINS:
        chain = _of_table(name=name)
        if hook:
            chain |= {"type": kind, "hook": hook, "prio": priority, "policy": policy}
        commands.append({"add": {"chain": chain}})
    for chain_name, comment, expressions in rules.rules:
        rule = {**_of_table(chain=chain_name), "comment": comment, "expr": json.loads(expressions)}
        commands.append({"add": {"rule": rule}})
    return commands


def refill(local: frozenset[Prefix]) -> list[Json]:
    """One transaction that gives the sets of local prefixes new elements and touches nothing else."""
    flush: list[Json] = [{"flush": {"set": _of_table(name=name)}} for name, _ in _SETS]
    return flush + _elements(local)


def _elements(local: frozenset[Prefix]) -> list[Json]:
    commands: list[Json] = []
    for version, name in SET_NAMES.items():
        ordered = sorted(prefix for prefix in local if prefix.version == version)
        if ordered:
            elements = [_network(prefix) for prefix in ordered]
            commands.append({"add": {"element": {**_of_table(name=name), "elem": elements}}})
    return commands


def _of_table(**rest: Any) -> Json:
    return {"family": FAMILY, "table": NFT_TABLE, **rest}


# --- The door --------------------------------------------------------------------------------------------------


def write(commands: list[Json], started: Callable[[int], None] = lambda _: None) -> None:
    """Run one transaction: all of it or nothing. `started` hears the process id before anything is written."""
    _run(["-j", "-f", "-"], json.dumps({"nftables": commands}), started)


def removal() -> list[Json]:
    """One transaction that deletes our table; quietly if there is none."""
    table = {"family": FAMILY, "name": NFT_TABLE}
    return [{"add": {"table": table}}, {"delete": {"table": table}}]


def observe() -> FilterFacts | None:
    """Our table as it is; None if there is none. A host without nft has none either."""
    try:
        text = _run(["-j", "list", "table", FAMILY, NFT_TABLE], "")
    except HostError as error:
        if error.errno_name == "ENOENT":
            return None
        raise
    return read(json.loads(text))


def read(listing: Json) -> FilterFacts:
    """A listing (`nft -j list table`) as facts. Pure."""
    chains: list[tuple[str, str, str, int, str]] = []
    rules: list[tuple[str, str]] = []
    sets: list[tuple[str, str]] = []
    others: list[str] = []
    local: set[Prefix] = set()
    for item in listing["nftables"]:
        for kind, value in item.items():
            if kind in ("metainfo", "table"):
                continue
            if kind == "chain":
                hook = value.get("hook", "")
                chains.append(
                    (value["name"], value.get("type", ""), hook, value.get("prio", 0), value.get("policy", ""))
                )
            elif kind == "rule":
                rules.append((value["chain"], value.get("comment", "")))
            elif kind == "set":
                sets.append((value["name"], str(value["type"])))
                for element in value.get("elem", []):
                    prefix = _read_element(element)
                    if prefix is None:
                        others.append(f"element {element} of set {value['name']}")
                    else:
                        local.add(prefix)
            else:
                others.append(f"{kind} {value.get('name', '')}")
    shape = Shape(
        chains=tuple(sorted(chains)),
        rules=tuple(sorted(rules, key=lambda rule: rule[0])),
        sets=tuple(sorted(sets)),
        others=tuple(others),
    )
    return FilterFacts(shape, frozenset(local))


def _read_element(element: Any) -> Prefix | None:
    try:
        if isinstance(element, str):
            return ip_network(element)
        return ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
    except (KeyError, TypeError, ValueError):
        return None


def version() -> str:
    """As nft says it: "nftables v1.0.6 (Lester Gooch #5)"."""
    return _run(["--version"], "").strip()


def list_ruleset() -> Json:
    """All tables of all programs, for `check`. Never written to."""
    listing: Json = json.loads(_run(["-j", "list", "ruleset"], ""))
    return listing


def _run(arguments: list[str], text: str, started: Callable[[int], None] = lambda _: None) -> str:
    try:
        with subprocess.Popen(
            ["nft", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"},
        ) as process:
            started(process.pid)
            try:
                output, errors = process.communicate(text, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    except FileNotFoundError as error:
        raise HostError("nft is not installed", subject="nft", remedy="apt-get install nftables") from error
    except OSError as error:
        raise host_error("nft", error.errno or 0) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(
            f"no answer within {TIMEOUT:.0f} s", subject="nft", errno_name="ETIMEDOUT", remedy="it is retried"
        ) from error
    if process.returncode == 0:
        return output
    said = " ".join(errors.split())[:400]
    if "No such file or directory" in said:
        raise HostError(said, subject="nft", errno_name="ENOENT", remedy="Linux ≥ 5.7 with nf_tables is needed")
    if "Operation not permitted" in said:
        raise HostError(said, subject="nft", errno_name="EPERM", remedy="run as root, or with CAP_NET_ADMIN")
    raise HostError(said, subject="nft", remedy="Linux ≥ 5.7 with nf_tables and nft ≥ 1.0 are needed")
