"""The only door to nft(8): JSON in, JSON out, every write one transaction. `nft_ruleset` makes the content.

Every call runs one short-lived process and blocks. Errors are HostError, with errno_name ENOENT, EPERM or ETIMEDOUT
where nft's message allows the distinction.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import NFT_TABLE, Prefix
from ravenvpn.node.errors import host_error
from ravenvpn.node.nft_ruleset import CHAINS, SETS, FilterFacts, Json, Ruleset, SetElement, Shape

FAMILY = "inet"  # one table for IPv4 and IPv6
TIMEOUT = 30.0  # seconds for one run; an iptables-restore of thousands of rules may hold nf_tables' lock that long
_MESSAGE_LIMIT = 400  # characters of nft's message that go into an error


# --- Transactions ----------------------------------------------------------------------------------------------


def replacement(ruleset: Ruleset) -> list[Json]:
    """Return the transaction that writes the whole table, in place of any table of its name."""
    table = {"family": FAMILY, "name": NFT_TABLE}
    # nft 1.0.6 has no `destroy`; adding the table first makes sure that the deletion finds one.
    commands: list[Json] = [{"add": {"table": table}}, {"delete": {"table": table}}, {"add": {"table": table}}]
    # Sets before the rules that refer to them, all chains before the rules that jump to them.
    for name, kind in SETS:
        commands.append({"add": {"set": {**_in_table(name=name), "type": kind, "flags": ["interval"]}}})
    commands += _elements(ruleset.facts.elements)
    for name, kind, hook, priority, policy in CHAINS:
        chain = _in_table(name=name)
        if hook:
            chain |= {"type": kind, "hook": hook, "prio": priority, "policy": policy}
        commands.append({"add": {"chain": chain}})
    for chain_name, comment, expressions in ruleset.rules:
        rule = {**_in_table(chain=chain_name), "comment": comment, "expr": json.loads(expressions)}
        commands.append({"add": {"rule": rule}})
    return commands


def refill(elements: frozenset[SetElement]) -> list[Json]:
    """Return the transaction that replaces the elements of all sets and touches nothing else."""
    flush: list[Json] = [{"flush": {"set": _in_table(name=name)}} for name, _ in SETS]
    return flush + _elements(elements)


def removal() -> list[Json]:
    """Return the transaction that deletes our table; it succeeds if there is none."""
    table = {"family": FAMILY, "name": NFT_TABLE}
    return [{"add": {"table": table}}, {"delete": {"table": table}}]


def _elements(elements: frozenset[SetElement]) -> list[Json]:
    """Return one command for each set that has elements, which adds all of them."""
    prefixes: dict[str, list[Prefix]] = {}
    for name, prefix in elements:
        prefixes.setdefault(name, []).append(prefix)
    commands: list[Json] = []
    for name, members in sorted(prefixes.items()):
        listed = [_element(prefix) for prefix in sorted(members)]
        commands.append({"add": {"element": {**_in_table(name=name), "elem": listed}}})
    return commands


def _element(prefix: Prefix) -> Any:
    """Return a prefix in nft's notation; nft lists a single address without a length, so it is written so."""
    if prefix.prefixlen == prefix.max_prefixlen:
        return str(prefix.network_address)
    return {"prefix": {"addr": str(prefix.network_address), "len": prefix.prefixlen}}


def _in_table(**rest: Any) -> Json:
    """Return the properties of an object in our table."""
    return {"family": FAMILY, "table": NFT_TABLE, **rest}


# --- Runs of nft -----------------------------------------------------------------------------------------------


def write(commands: list[Json], on_start: Callable[[int], None] = lambda _: None) -> None:
    """Run one transaction: all of it or nothing.

    `on_start` gets the process id before nft can have written anything. Notifications about the transaction carry
    that id, by which `watch` recognises it as ours.
    """
    _run(["-j", "-f", "-"], json.dumps({"nftables": commands}), on_start)


def observe() -> FilterFacts | None:
    """Return our table as the kernel holds it, None if there is none."""
    try:
        text = _run(["-j", "list", "table", FAMILY, NFT_TABLE], "")
    except HostError as error:
        if error.errno_name == "ENOENT":
            return None
        raise
    return parse_table(json.loads(text))


def parse_table(listing: Json) -> FilterFacts:
    """Parse the output of `nft -j list table`. Pure.

    Objects that no plan writes go into `Shape.others`, so that the table differs from any planned one.
    """
    chains: list[tuple[str, str, str, int, str]] = []
    rules: list[tuple[str, str]] = []
    sets: list[tuple[str, str]] = []
    others: list[str] = []
    elements: set[SetElement] = set()
    # Each item is a dict with one key, the kind of the object.
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
                    prefix = _parse_element(element)
                    if prefix is None:
                        others.append(f"element {element} of set {value['name']}")
                    else:
                        elements.add((value["name"], prefix))
            else:  # a map, a flow table, …
                others.append(f"{kind} {value.get('name', '')}")
    # The same order as `build_ruleset`; within a chain the order of the rules counts.
    shape = Shape(
        chains=tuple(sorted(chains)),
        rules=tuple(sorted(rules, key=lambda rule: rule[0])),
        sets=tuple(sorted(sets)),
        others=tuple(others),
    )
    return FilterFacts(shape, frozenset(elements))


def _parse_element(element: Any) -> Prefix | None:
    """Return the prefix of a set element, None for what we never write (a range, an element with a timeout)."""
    try:
        if isinstance(element, str):
            return ip_network(element)
        return ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
    except (KeyError, TypeError, ValueError):
        return None


def version() -> str:
    """Return nft's own version line: "nftables v1.0.6 (Lester Gooch #5)"."""
    return _run(["--version"], "").strip()


def list_ruleset() -> Json:
    """Return all tables of all programs, for `preflight`."""
    listing: Json = json.loads(_run(["-j", "list", "ruleset"], ""))
    return listing


def _run(arguments: list[str], text: str, on_start: Callable[[int], None] = lambda _: None) -> str:
    """Run nft with `text` as its input and return its output. A process over TIMEOUT is killed."""
    try:
        with subprocess.Popen(
            ["nft", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Messages are parsed below, so they have to be in English; a service's PATH may lack /usr/sbin.
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"},
        ) as process:
            on_start(process.pid)
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
    message = " ".join(errors.split())[:_MESSAGE_LIMIT]
    if "No such file or directory" in message:
        raise HostError(message, subject="nft", errno_name="ENOENT", remedy="Linux ≥ 5.7 with nf_tables is needed")
    if "Operation not permitted" in message:
        raise HostError(message, subject="nft", errno_name="EPERM", remedy="run as root, or with CAP_NET_ADMIN")
    raise HostError(message, subject="nft", remedy="Linux ≥ 5.7 with nf_tables and nft ≥ 1.0 are needed")
