"""`raven-vpn manifest`: what the other nodes have to know of this one, as the objects they read."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from ravenvpn.cli.settings import state_dir_option
from ravenvpn.errors import ConfigError
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT, GATEWAY_LABEL


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
    help="What is behind this node: pods, a LAN, containers.",
)
@click.option(
    "--port", default=DEFAULT_TUNNEL_PORT, show_default=True, type=click.IntRange(1, 65535), help="UDP port."
)
@state_dir_option("Where the private key is, or will be.")
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

    prefixes = [_network(text) for text in pod_cidrs]
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), where=str(state_dir), field="--state-dir") from error
    key = load_or_create(state_dir / "private.key", os.urandom)
    own, inside = _addresses(state_dir, prefixes)
    objects = _objects(
        region=region,
        node=node or socket.gethostname(),
        public=public,
        pod_cidrs=[str(prefix) for prefix in prefixes],
        port=port,
        public_key=str(key.public),
        own=own,
        sources=inside or own,
    )
    click.echo(yaml.safe_dump_all(objects, sort_keys=False), nl=False)


def _network(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(str(error), field="--pod-cidr", remedy="write it as 10.244.1.0/24") from error


def _addresses(state_dir: Path, prefixes: list[Any]) -> tuple[list[str], list[str]]:
    """This host's addresses outside and inside of what is behind it, the first of each family."""
    from ravenvpn.node.apply import Host

    with Host(state_dir / "host") as host:
        found = [item.address.ip for item in host.facts().addresses]
    inside = [ip for ip in found if any(ip in prefix for prefix in prefixes if prefix.version == ip.version)]
    outside = [ip for ip in found if ip not in inside]

    def first_of_each(addresses: list[Any]) -> list[str]:
        by_family = {address.version: address for address in reversed(addresses)}
        return [str(by_family[version]) for version in sorted(by_family)]

    return first_of_each(outside), first_of_each(inside)


def _objects(
    *,
    region: str,
    node: str,
    public: tuple[str, ...],
    pod_cidrs: list[str],
    port: int,
    public_key: str,
    own: list[str],
    sources: list[str],
) -> list[dict[str, Any]]:
    from ravenvpn.agent.resolve import is_literal
    from ravenvpn.tunnel.linux.cpu import own_suites

    labels = {GATEWAY_LABEL: region}
    endpoint: dict[str, Any] = {"nodeName": node, "type": "tunnel", "port": port}
    endpoint |= {"publicIP": public[0]} if public else {"underNAT": True}
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
            "metadata": {"name": node, "labels": labels},
            "spec": {"podCIDRs": pod_cidrs},
            "status": {"addresses": [{"type": "InternalIP", "address": address} for address in own]},
        },
        {
            "apiVersion": "ravenvpn.io/v1alpha1",
            "kind": "Peer",
            "metadata": {"name": node, "labels": labels},
            "spec": {
                "publicKey": public_key,
                "listenPort": port,
                "addresses": [address for address in public if is_literal(address)],
                "nodeAddresses": list(own),  # copies: YAML would write a shared list as an alias
                "sources": list(sources),
                "suites": [suite.value for suite in own_suites()],
            },
        },
    ]
