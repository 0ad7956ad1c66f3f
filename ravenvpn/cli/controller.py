"""`raven-vpn controller`: run the controller. Options and their defaults are those of `k8s.controller.options`."""

from __future__ import annotations

import secrets
import socket

import click

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.controller.options import ControllerOptions, ElectMode, ProcessOptions
from ravenvpn.k8s.lease_timing import LeaseTiming

# Where a default is shown, it is read from here.
_OPTIONS = ControllerOptions(identity="")  # without an identity one is generated at the start
_PROCESS = ProcessOptions()
_TIMING = _OPTIONS.timing


@click.command()
@click.option(
    "--kubeconfig",
    default=_PROCESS.kubeconfig,
    help="Kubeconfig of the cluster.  [default: the pod's service account, else kubectl's]",
)
@click.option("--context", default=_PROCESS.context, help="Context of the kubeconfig.  [default: its current one]")
@click.option(
    "--elect",
    type=click.Choice([mode.value for mode in ElectMode]),
    default=_OPTIONS.elect.value,
    show_default=True,
    help="auto: elect unless OpenYurt's yurt-manager writes the status of Gateways; own: elect in any case; "
    "defer: leave election, status and Services to another controller.",
)
@click.option(
    "--publish-keys/--no-publish-keys",
    default=_OPTIONS.publish_keys,
    show_default=True,
    help="Write the public keys of Peers into spec.endpoints[].config.publicKey of their Gateways, for OpenYurt's "
    "WireGuard agents. A cluster without these agents does not need it.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    default=_OPTIONS.leader_election,
    show_default=True,
    help="Take the Lease before writing. Without it there must be no other replica.",
)
@click.option(
    "--identity",
    default=_OPTIONS.identity,
    help="Name of this replica in the Lease, unique among the replicas.  [default: host name and a random number]",
)
@click.option(
    "--lease-namespace",
    "--namespace",
    "lease_namespace",
    default=_OPTIONS.lease_namespace,
    show_default=True,
    help="Namespace of the Lease.",
)
@click.option("--lease-name", default=_OPTIONS.lease_name, show_default=True, help="Name of the Lease.")
@click.option(
    "--lease-duration",
    type=float,
    default=_TIMING.duration,
    show_default=True,
    help="Seconds after the last renewal until another replica may lead.",
)
@click.option(
    "--renew-deadline",
    type=float,
    default=_TIMING.renew,
    show_default=True,
    help="Seconds after the last renewal until a leader stops leading.",
)
@click.option(
    "--retry-period",
    type=float,
    default=_TIMING.retry,
    show_default=True,
    help="Seconds between two attempts to take or renew the Lease.",
)
@click.option(
    "--http-address",
    default=_PROCESS.http_address,
    show_default=True,
    help='Address of /livez, /readyz and /metrics, as HOST:PORT or [IPv6]:PORT; "" turns them off.',
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default=_PROCESS.log_level,
    show_default=True,
    help="Lowest level that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "human", "json"]),
    default=_PROCESS.log_format,
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
    """Elect the active endpoints of the cluster's regions, in the foreground, until SIGTERM or Ctrl-C.

    Writes the status of every Gateway from its Nodes: active endpoints, nodes with their prefixes, and conditions if
    the served definition has them. Creates the Services of Gateways with exposeType LoadBalancer. With several
    replicas one leads, by a Lease, and the others wait.
    """
    # Imported here because the HTTP client and server take long to import, and --help needs neither.
    from ravenvpn import controllerd

    if not lease_name or not lease_namespace:
        raise ConfigError("is empty", field="--lease-name or --lease-namespace", remedy="give the Lease a name")
    process = ProcessOptions(
        kubeconfig=kubeconfig,
        context=context,
        http_address=http_address,
        log_level=log_level,
        log_format=log_format,
    )
    options = ControllerOptions(
        identity=identity or f"{socket.gethostname()}_{secrets.token_hex(4)}",
        elect=ElectMode(elect),
        leader_election=leader_elect,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        timing=LeaseTiming(lease_duration, renew_deadline, retry_period),
        publish_keys=publish_keys,
    )
    controllerd.run(process, options)
