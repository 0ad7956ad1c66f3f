"""`raven-vpn controller`: elect the active gateways of the cluster's regions."""

from __future__ import annotations

import secrets
import socket

import click

from ravenvpn.errors import ConfigError


@click.command()
@click.option("--kubeconfig", default="", help="Cluster to talk to.  [default: the pod's own, else kubectl's]")
@click.option("--context", default="", help="Context of the kubeconfig.  [default: its current one]")
@click.option(
    "--elect",
    type=click.Choice(["auto", "own", "defer"]),
    default="auto",
    show_default=True,
    help="auto: step back where OpenYurt's yurt-manager writes the status of Gateways; own: elect whoever else does; "
    "defer: leave election, status and Services to others.",
)
@click.option(
    "--publish-keys/--no-publish-keys",
    default=True,
    show_default=True,
    help="Put the public keys of Peers into spec.endpoints[].config.publicKey, where upstream's WireGuard agents "
    "look for them. A cluster without such agents does not need it.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    default=True,
    show_default=True,
    help="Stand for the Lease; without it this must be the only replica.",
)
@click.option(
    "--identity",
    default="",
    help="Name of this replica in the Lease, not to be shared.  [default: host name and a random number]",
)
@click.option(
    "--lease-namespace",
    "--namespace",
    "lease_namespace",
    default="kube-system",
    show_default=True,
    help="Of the Lease.",
)
@click.option("--lease-name", default="raven-vpn-controller", show_default=True, help="Name of the Lease.")
@click.option("--lease-duration", type=float, default=15.0, show_default=True, help="Seconds until another may lead.")
@click.option(
    "--renew-deadline", type=float, default=10.0, show_default=True, help="Seconds without renewal until we stop."
)
@click.option("--retry-period", type=float, default=2.0, show_default=True, help="Seconds between two tries.")
@click.option(
    "--http-address",
    default="0.0.0.0:10285",
    show_default=True,
    help='Where /livez, /readyz and /metrics are answered, as HOST:PORT or [IPv6]:PORT; "" for nowhere.',
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="From which level on lines are written.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "human", "json"]),
    default="auto",
    show_default=True,
    help="auto: human on a terminal, JSON elsewhere.",
)
def controller(
    *,
    kubeconfig: str,
    context: str,
    elect: str,
    publish_keys: bool,
    leader_elect: bool,
    identity: str,
    lease_namespace: str,
    lease_name: str,
    lease_duration: float,
    renew_deadline: float,
    retry_period: float,
    http_address: str,
    log_level: str,
    log_format: str,
) -> None:
    """Elect the active gateways of the cluster's regions, in the foreground, until SIGTERM or Ctrl-C.

    Fills the status of every Gateway from its Nodes: who is active, which prefixes belong to it, and conditions where
    the served Gateway has them. Gives Gateways with exposeType LoadBalancer their Services. Several replicas may run:
    one leads, by a Lease, and the others wait.
    """
    from ravenvpn import controllerd
    from ravenvpn.config import parse_host_port
    from ravenvpn.k8s.controller.controller import Options
    from ravenvpn.k8s.controller.yurt_manager import Elect
    from ravenvpn.k8s.lease import LeaseTiming

    if not lease_name or not lease_namespace:
        raise ConfigError("is empty", field="--lease-name or --lease-namespace", remedy="give the Lease a name")
    process = controllerd.Process(
        kubeconfig=kubeconfig,
        context=context,
        http=parse_host_port(http_address, field="--http-address") if http_address else None,
        log_level=log_level,
        log_format=log_format,
    )
    options = Options(
        identity=identity or f"{socket.gethostname()}_{secrets.token_hex(4)}",
        elect=Elect(elect),
        leader_election=leader_elect,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        timing=LeaseTiming(lease_duration, renew_deadline, retry_period),
        publish_keys=publish_keys,
    )
    controllerd.run(process, options)
