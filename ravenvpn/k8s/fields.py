"""Readers of single fields: names, prefixes, addresses, ports, keys and times, from untrusted text.

No reader raises. A malformed field is reported to a ProblemCollector with a remedy, and the reader returns None. Each
takes the collector, the path of the field for messages, and its text. Returned values are canonical, so that two
spellings of one address or prefix compare equal.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from functools import lru_cache

from ravenvpn import rfc3339
from ravenvpn.crypto.keys import KEY_BYTES
from ravenvpn.k8s.problems import Problem
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import HostPort

# RFC 1123 subdomain, as Kubernetes names nodes and cluster-scoped objects; 253 characters at most.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MAX_NAME = 253  # characters, RFC 1123
# HOST:PORT or [IPv6]:PORT. An IPv6 address without brackets does not match, and is read as one without port.
_PORTED = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d{1,5})")


class ProblemCollector:
    """Collects the problems of one object."""

    def __init__(self, subject: str) -> None:
        """`subject`: kind and name of the object, for messages."""
        self.subject = subject
        self.problems: list[Problem] = []

    def error(self, field: str, message: str, remedy: str) -> None:
        """Add a problem for which the object is not used."""
        self.problems.append(Problem(message, remedy, field, self.subject))

    def warn(self, field: str, message: str, remedy: str) -> None:
        """Add a problem in spite of which the object is used."""
        self.problems.append(Problem(message, remedy, field, self.subject, fatal=False))

    @property
    def fatal(self) -> bool:
        """Whether there is an error, not only warnings."""
        return any(problem.fatal for problem in self.problems)


def shown(value: object) -> str:
    """Return an untrusted value for a message: quoted, on one line, 60 characters of it at most."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def is_name(text: str) -> bool:
    """Whether `text` is an RFC 1123 subdomain, as names of Nodes and of cluster-scoped objects are."""
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def check_name(collector: ProblemCollector, field: str, name: str) -> None:
    """Report a name that is empty or not an RFC 1123 subdomain."""
    if not name:
        collector.error(field, "is empty", "give it a name")
    elif not is_name(name):
        collector.error(
            field,
            f"{shown(name)} is not a name that Kubernetes accepts",
            "at most 253 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
        )


@lru_cache(maxsize=1 << 17)  # more than the prefixes of 1,000 regions with 64 nodes
def _prefix(text: str) -> Prefix | str:
    """The prefix, or the error as text. Cached: the same prefixes are read again with every change of a status."""
    # ipaddress would read a bare address as /32 or /128; in a list of prefixes that is usually a mistake.
    if "/" not in text:
        return "no prefix length"
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return "no prefix"
    if "%" in text:  # a zone, which has no meaning on another node
        return "no prefix"
    network = interface.network
    # Host bits: the prefix may be meant, or an address with the length of its subnet; the message shows the former.
    if interface.ip != network.network_address:
        return f"host bits: the prefix is {network}"
    return network


def read_prefix(collector: ProblemCollector, field: str, text: str) -> Prefix | None:
    """Read an IPv4 or IPv6 prefix in CIDR notation that pods or nodes can have: unicast, not link-local, not /0."""
    read = _prefix(text)
    if isinstance(read, str):
        if read == "no prefix length":
            length = 128 if ":" in text else 32
            collector.error(field, f"{shown(text)} has no prefix length", f"for a single address append /{length}")
        elif read == "no prefix":
            collector.error(
                field, f"{shown(text)} is not a prefix", "write it like 10.244.1.0/24 or fd00:10:244:1::/64"
            )
        else:
            collector.error(field, f"{shown(text)} has {read}", "write the prefix without host bits")
        return None
    why = _unusable(read)
    if why:
        collector.error(field, f"{text} is {why}", "write the prefix of its pods")
        return None
    return read


def _unusable(network: Prefix) -> str:
    """Why no pod or node can have an address in this prefix; "" if one can."""
    if network.prefixlen == 0:
        return "the whole address space, and cannot belong to one region"
    for name in ("is_loopback", "is_multicast", "is_link_local", "is_unspecified"):
        if getattr(network, name):
            return f"a {name.removeprefix('is_').replace('_', '-')} prefix"
    return ""


def read_address(collector: ProblemCollector, field: str, text: str) -> Address | None:
    """Read the address of a node: unicast, and neither loopback nor link-local."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        remedy = (
            "write the address without prefix length" if "/" in text else "write it like 192.0.2.7 or 2001:db8::7"
        )
        collector.error(field, f"{shown(text)} is not an address", remedy)
        return None
    # A link-local address, with a zone or without, is reachable on one segment only.
    if "%" in text or address.is_link_local:
        collector.error(
            field, f"{text} is link-local", "write an address that is reachable from another network segment"
        )
        return None
    for name in ("is_loopback", "is_multicast", "is_unspecified"):
        if getattr(address, name):
            collector.error(field, f"{text} is a {name.removeprefix('is_')} address", "write an address of the node")
            return None
    return address


def read_host(collector: ProblemCollector, field: str, text: str) -> str | None:
    """Read an address or a DNS name; returns its canonical spelling (RFC 5952; lower case, no trailing dot)."""
    lowered = text.lower().rstrip(".")
    # A text of only digits and dots is a mistyped address: no top-level domain is numeric (RFC 3696, section 2).
    if is_name(lowered) and not re.fullmatch(r"[0-9.]+", lowered):
        return lowered
    # Only text that looks like an address gets the message about addresses.
    if not re.fullmatch(r"[0-9./]+|[0-9a-fA-F:./%]*:[0-9a-fA-F:./%]*", text):
        collector.error(
            field, f"{shown(text)} is neither an address nor a DNS name", "write it like 192.0.2.7 or vpn.example.org"
        )
        return None
    address = read_address(collector, field, text)
    return None if address is None else str(address)


def split_host_port(text: str) -> tuple[str, int] | None:
    """Split HOST:PORT or [IPv6]:PORT, None where there is no port. Neither part is checked beyond that form."""
    matched = _PORTED.fullmatch(text)
    return (matched["v6"] or matched["host"], int(matched["port"])) if matched else None


def read_host_port(collector: ProblemCollector, field: str, text: str) -> HostPort | None:
    """Read HOST, HOST:PORT or [IPv6]:PORT; port 0 stands for the default port of the peer."""
    parts = split_host_port(text)
    if parts is None:
        host = read_host(collector, field, text)
        return None if host is None else HostPort(host)
    if not check_port(collector, field, parts[1]) or parts[1] == 0:
        return None
    host = read_host(collector, field, parts[0])
    return None if host is None else HostPort(host, parts[1])


def check_port(collector: ProblemCollector, field: str, port: int) -> bool:
    """Report a port outside of 0 to 65535; 0 stands for the default."""
    if 0 <= port <= 65535:
        return True
    collector.error(field, f"{port} is not a port", "a port is between 1 and 65535")
    return False


def read_key(collector: ProblemCollector, field: str, text: str) -> bytes | None:
    """Read a Curve25519 public key in base64, as `wg pubkey` prints it; returns 32 bytes, not all zero."""
    remedy = "copy the output of `raven-vpn pubkey` or `wg pubkey`: 44 characters, ending in ="
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        collector.error(field, "is not base64", remedy)
        return None
    if len(key) != KEY_BYTES:
        collector.error(field, f"holds {len(key)} bytes instead of {KEY_BYTES}", remedy)
        return None
    # A point of low order: a handshake with it has a shared secret that everybody knows (RFC 7748, section 6.1).
    if not any(key):
        collector.error(field, "is all zeros", remedy)
        return None
    return key


def read_time(collector: ProblemCollector, field: str, text: str) -> float | None:
    """Read an RFC 3339 time; returns seconds since 1970."""
    try:
        return rfc3339.parse(text)
    except ValueError:
        collector.error(field, f"{shown(text)} is not a time", "write it like 2026-01-31T12:00:00Z, or leave it out")
        return None
