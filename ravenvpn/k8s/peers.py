"""Peer: converts the API object to the model and back. `write` is the only writer of Peer objects.

An agent writes the Peer of its own node (`peer_writer`); `raven-vpn manifest` and the lab write Peers for manifest
files; people write Peers for routers that run no agent. Every reader therefore treats a Peer as untrusted input.
"""

from __future__ import annotations

import base64
from typing import Any

from ravenvpn.crypto.aead import Suite
from ravenvpn.k8s import wire
from ravenvpn.k8s.fields import (
    ProblemCollector,
    check_port,
    read_address,
    read_host_port,
    read_key,
    read_time,
    shown,
)
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.model import GATEWAY_LABEL, HostPort, PeerObject

MAX_ADDRESSES = 32  # of each list; every address is a candidate that other nodes may have to try


def read(raw: wire.PeerWire, collector: ProblemCollector) -> PeerObject:
    """Convert a Peer. Malformed fields are reported to `collector` and left out."""
    spec = raw.spec
    key = read_key(collector, "spec.publicKey", spec.public_key)
    following = read_key(collector, "spec.nextPublicKey", spec.next_public_key) if spec.next_public_key else None
    if key is not None and following == key:
        collector.error("spec.nextPublicKey", "is the current key", "leave it out unless the key is being replaced")
    check_port(collector, "spec.listenPort", spec.listen_port or 0)
    addresses = [
        read_host_port(collector, f"spec.addresses[{i}]", text)
        for i, text in enumerate(_bounded("spec.addresses", spec.addresses, collector))
    ]
    created = raw.metadata.creation_timestamp
    return PeerObject(
        name=raw.metadata.name,
        public_key=key or b"",  # empty only after an error, when the caller does not use the value
        next_public_key=following,
        listen_port=spec.listen_port or 0,
        # dict.fromkeys removes duplicates and keeps the order, which is that of preference.
        addresses=tuple(dict.fromkeys(a for a in addresses if a is not None)),
        node_addresses=_addresses("spec.nodeAddresses", spec.node_addresses, collector),
        sources=_sources(spec.sources, collector),
        suites=_suites(spec.suites, collector),
        created=read_time(collector, "metadata.creationTimestamp", created) if created else None,
    )


def write(peer: PeerObject, region: str = "", role: str = "") -> dict[str, Any]:
    """Return the Peer as an object of the API, without status.

    `region` and `role` become labels; "" leaves the label out, as in manifests for files, which need no role."""
    # Agents select Peers by these labels (`feeds`): without them a Peer is sent to every node of the mesh.
    labels = {GATEWAY_LABEL: region, "ravenvpn.io/role": role}
    # None and 0 are left out: the definition has minimum values and no null.
    spec: dict[str, Any] = {
        "publicKey": base64.b64encode(peer.public_key).decode(),
        "nextPublicKey": base64.b64encode(peer.next_public_key).decode() if peer.next_public_key else None,
        "listenPort": peer.listen_port,
        "addresses": [_write_host_port(address) for address in peer.addresses],
        "nodeAddresses": [str(address) for address in peer.node_addresses],
        "sources": [str(address) for address in peer.sources],
        "suites": [suite.value for suite in peer.suites],
    }
    return {
        "apiVersion": "ravenvpn.io/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": peer.name, "labels": {key: value for key, value in labels.items() if value}},
        "spec": {key: value for key, value in spec.items() if value not in (None, 0)},
    }


def _write_host_port(address: HostPort) -> str:
    """HOST, HOST:PORT or [IPv6]:PORT, the inverse of `fields.read_host_port`."""
    if not address.port:
        return address.host
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def _bounded(field: str, listed: list[str] | None, collector: ProblemCollector) -> list[str]:
    """The list, or nothing and a problem if it is longer than `MAX_ADDRESSES`."""
    if listed and len(listed) > MAX_ADDRESSES:
        collector.error(field, f"lists {len(listed)} addresses", f"list the best ones, {MAX_ADDRESSES} at most")
        return []
    return listed or []


def _addresses(field: str, listed: list[str] | None, collector: ProblemCollector) -> tuple[Address, ...]:
    """A list of addresses without duplicates, in the order of the list."""
    read = [
        read_address(collector, f"{field}[{i}]", text) for i, text in enumerate(_bounded(field, listed, collector))
    ]
    return tuple(dict.fromkeys(address for address in read if address is not None))


def _sources(listed: list[str] | None, collector: ProblemCollector) -> tuple[Address, ...]:
    """Source addresses of the node's own packets to other regions, at most one for each family."""
    found = _addresses("spec.sources", listed, collector)
    # Each route has one source address (RTA_PREFSRC), so a second one of a family could not be used.
    for version in (4, 6):
        if sum(address.version == version for address in found) > 1:
            collector.error(
                "spec.sources", f"names several IPv{version} addresses", "name one address for each family"
            )
    return found


def _suites(listed: list[str] | None, collector: ProblemCollector) -> tuple[Suite, ...]:
    """Suites in the order of the list. An unknown name is a warning: a newer node may support more suites."""
    if not listed:  # upstream's WireGuard, or a Peer written by hand
        return (Suite.CHACHA20POLY1305,)
    known = {suite.value: suite for suite in Suite}
    for i, name in enumerate(listed):
        if name not in known:
            collector.warn(f"spec.suites[{i}]", f"{shown(name)} is not known here", f"known are {', '.join(known)}")
    # WireGuard's own suite is mandatory for every peer, listed or not.
    names = dict.fromkeys((*listed, Suite.CHACHA20POLY1305.value))
    return tuple(known[name] for name in sorted(names.keys() & known.keys(), key=list(names).index))
