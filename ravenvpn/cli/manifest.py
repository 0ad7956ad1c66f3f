"""`raven-vpn manifest`: Gateway, Node and Peer of this node, for the manifest directories of the other nodes.

The objects are a start to edit, for regions of one node: a second node of the region needs a Node and a Peer of its
own, and an entry in the endpoints of the Gateway. Imports are within functions to keep `raven-vpn --help` fast.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from ravenvpn.cli.settings import state_dir_option
from ravenvpn.errors import ConfigError
from ravenvpn.mesh.hoststate import Address, Prefix
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, GATEWAY_LABEL, HostPort, PeerObject


@click.command()
@click.argument("region")
@click.option("--node", envvar="NODE_NAME", help="This node's name.  [default: the host name]")
@click.option(
    "--public",
    "public",
    multiple=True,
    metavar="ADDRESS",
    help="Address or DNS name under which others reach this node; may be given twice. None: it is behind NAT.",
)
@click.option(
    "--pod-cidr",
    "pod_cidrs",
    multiple=True,
    metavar="CIDR",
    help="Prefix behind this node: pods, a LAN, containers. May be given several times.",
)
@click.option(
    "--port", default=DEFAULT_TUNNEL_PORT, show_default=True, type=click.IntRange(1, 65535), help="UDP port."
)
@state_dir_option("Directory of the private key, which is made if there is none.")
def manifest(
    *, region: str, node: str | None, public: tuple[str, ...], pod_cidrs: tuple[str, ...], port: int, state_dir: Path
) -> None:
    """Print Gateway, Node and Peer of this node, as the gateway of REGION, for every node's manifest directory.

    Makes the node's private key if it has none; only the public one is printed.

    \b
    Example, on a machine at home behind a router, with containers on 172.18.0.0/16:
      raven-vpn manifest home --pod-cidr 172.18.0.0/16 > home.yaml
    """
    import yaml

    from ravenvpn.crypto.keyfile import load_or_create
    from ravenvpn.tunnel.linux.cpu import own_suites

    # All arguments are checked before the key is made: an error leaves no file behind.
    prefixes = [_network(text) for text in pod_cidrs]
    hosts = _hosts(public)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=str(state_dir), field="--state-dir") from error
    key = load_or_create(state_dir / "private.key", os.urandom)
    # Packets of the node itself need a source that the other regions have a route to: an address within its prefixes.
    outside, inside = _own_addresses(state_dir, prefixes)
    peer = PeerObject(
        name=node or socket.gethostname(),
        public_key=key.public.raw,
        listen_port=port,
        addresses=tuple(map(HostPort, hosts)),
        node_addresses=outside,
        sources=inside or outside,
        suites=tuple(own_suites()),
    )
    click.echo(yaml.safe_dump_all(objects(peer, region, prefixes), sort_keys=False), nl=False)


def objects(peer: PeerObject, region: str, prefixes: Iterable[Prefix]) -> list[dict[str, Any]]:
    """Return Gateway, Node and Peer of one node, in this order; `prefixes` are behind the node.

    A Gateway endpoint has room for one public address, the first of `peer.addresses`; the Peer lists all.
    """
    from ravenvpn.k8s.crd import write_peer

    # Without a public address the node can connect to others, but others cannot connect to it.
    endpoint: dict[str, Any] = {"nodeName": peer.name, "type": "tunnel", "port": peer.listen_port}
    endpoint |= {"publicIP": peer.addresses[0].host} if peer.addresses else {"underNAT": True}
    return [
        {
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "metadata": {"name": region},
            "spec": {"tunnelConfig": {"Replicas": 1}, "endpoints": [endpoint]},
        },
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": peer.name, "labels": {GATEWAY_LABEL: region}},
            "spec": {"podCIDRs": [str(prefix) for prefix in prefixes]},
            "status": {"addresses": [{"type": "InternalIP", "address": str(a)} for a in peer.node_addresses]},
        },
        write_peer(peer, region),
    ]


def _network(text: str) -> Prefix:
    """Parse a CIDR. ConfigError if it is none, or has host bits set."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(str(error), field="--pod-cidr", remedy="write it as 10.244.1.0/24") from error


def _hosts(public: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses and DNS names in their usual spelling. ConfigError for one that is neither."""
    from ravenvpn.k8s.fields import ProblemCollector, read_host

    collector = ProblemCollector("")
    hosts = [read_host(collector, "--public", text) for text in public]
    for problem in collector.problems:
        raise ConfigError(problem.message, field=problem.field, remedy=problem.remedy)
    return tuple(dict.fromkeys(host for host in hosts if host is not None))


def _own_addresses(state_dir: Path, prefixes: list[Prefix]) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """Addresses of this host outside of `prefixes` and inside, the first of each family: InternalIPs and sources."""
    from ravenvpn.node.apply import Host

    with Host(state_dir / "host") as host:
        found = [item.address.ip for item in host.discover().addresses]
    inside = [ip for ip in found if any(ip in prefix for prefix in prefixes if prefix.version == ip.version)]
    return _first_of_each([ip for ip in found if ip not in inside]), _first_of_each(inside)


def _first_of_each(addresses: list[Address]) -> tuple[Address, ...]:
    """The first IPv4 and the first IPv6 address."""
    # Reversed, so that the first address of a family is the one that stays.
    by_family = {address.version: address for address in reversed(addresses)}
    return tuple(by_family[version] for version in sorted(by_family))
