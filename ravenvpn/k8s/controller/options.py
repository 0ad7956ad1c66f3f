"""Options of the controller and their defaults.

This is the only home of the defaults: the command line shows them, `deploy/workloads` is compared with them by a
test, and the other modules of this package take the names under which the controller writes from here. The module
imports nothing beyond the standard library and small modules, because the command line needs it for its help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ravenvpn.k8s.lease_timing import DEFAULT_TIMING, LeaseTiming

# The namespace of the controller's own Lease, of OpenYurt's ConfigMap raven-cfg, and of LoadBalancer Services.
NAMESPACE = "kube-system"
# One name in every field of the API that asks for the author of a write: field manager, source of events, managed-by
# label of EndpointSlices, and the name of the Lease.
CONTROLLER_NAME = "raven-vpn-controller"


class ElectMode(StrEnum):
    """Whether this controller elects the active endpoints (`--elect`)."""

    AUTO = "auto"  # elect unless OpenYurt's yurt-manager writes the status of Gateways, see `yurt_manager`
    OWN = "own"  # elect in any case
    DEFER = "defer"  # never elect; write neither status nor Services


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """Identity, Lease and features of one controller replica, from its command line."""

    identity: str  # holderIdentity of this replica in the Lease; unique among the replicas
    elect: ElectMode = ElectMode.AUTO
    leader_election: bool = True  # False: the process is the only replica and writes without a Lease
    lease_namespace: str = NAMESPACE
    lease_name: str = CONTROLLER_NAME
    timing: LeaseTiming = DEFAULT_TIMING
    publish_keys: bool = True  # write public keys of Peers into spec.endpoints[].config, see `published_keys`


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """Options of the process around the controller (`controllerd`)."""

    kubeconfig: str = ""  # path; empty: the service account of the pod, else kubectl's default
    context: str = ""  # context of the kubeconfig; empty: its current one
    # HOST:PORT or [IPv6]:PORT of /livez, /readyz and /metrics; empty: no server. All addresses of the pod, because
    # the kubelet and Prometheus come from other hosts or namespaces.
    http_address: str = "0.0.0.0:10285"
    log_level: str = "info"
    log_format: str = "auto"  # "auto", "human" or "json", see `logs`
