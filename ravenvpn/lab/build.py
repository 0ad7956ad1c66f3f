"""Build a lab and remove it.

Few processes do the work: one `ip -batch` makes all namespaces, then for each namespace one process sets its sysctls,
one makes its devices, and one sets addresses and routes. Every device is made in the namespace it belongs to, and its
veth peer directly in the other one, so the machine's own network never has one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ravenvpn.errors import HostError
from ravenvpn.lab import cni, holder, manifests, node_filters, router_filters
from ravenvpn.lab.command import ip_batch, require, run
from ravenvpn.lab.devices import Wiring, configure, default_routes, veth
from ravenvpn.lab.host import LabHost, LabNode, Pod, Router
from ravenvpn.lab.manifests import WIREGUARD_SUITE
from ravenvpn.lab.ownership import NAMESPACES, OwnershipRecord, remove, sweep
from ravenvpn.lab.topology import LabRegionPlan, Nat, Region, assign_addresses

# Set in every namespace before it has devices. All addresses are assigned by the lab, so neither duplicate address
# detection nor router advertisements are needed; without them an address is usable at once.
_SYSCTLS = {
    "net.ipv6.conf.all.disable_ipv6": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}
_FORWARDING = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}
# Namespaces configured at the same time. The work is done by the kernel and by ip(8); more threads gain nothing.
_WORKERS = 4

_Host = TypeVar("_Host", bound=LabHost)


class Lab:
    """Regions around an internet, built on entering `with` and removed on leaving it. Hosts are found by name."""

    def __init__(self, *regions: Region) -> None:
        """Assign addresses; nothing is built yet. ValueError if the regions do not fit (`topology`)."""
        self.plans: tuple[LabRegionPlan, ...] = assign_addresses(regions)
        self.nodes: tuple[LabNode, ...] = ()
        self.routers: tuple[Router, ...] = ()  # in the order of `plans`
        self.internet: LabHost  # one host with a device for each region, named after it
        # By region, only regions with a delay: a host between the internet and the router that runs `lab.delay`.
        self._wires: dict[str, LabHost] = {}
        self._record: OwnershipRecord
        self._holders: list[subprocess.Popen[str]] = []  # one for each node, see `lab.holder`
        self._kept = False

    # Build and remove.

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise HostError("a lab consists of network namespaces, and only root can make them; run it as root")
        require("ip", "nft", "nsenter", "unshare", "sysctl")
        sweep()
        self._record = OwnershipRecord.new()
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.remove()

    def keep(self) -> None:
        """Leave the lab standing after `with`, also when this process has ended, until `sweep(also=kept_labs())`."""
        self._record = replace(self._record, kept=True)
        self._record.write()
        self._kept = True

    def remove(self) -> None:
        """Kill every process in the lab and delete it. `with` calls this."""
        remove(self._record)
        for child in (*self._holders, *(child for host in self.hosts() for child in host.children)):
            child.wait()

    # Look up.

    @property
    def prefix(self) -> str:
        """First part of the names of all namespaces of this lab: `rv-` and 6 hex digits."""
        return self._record.prefix

    @property
    def folder(self) -> Path:
        """Folder for files that are removed with the lab. Only root can read it."""
        return self._record.folder

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The pods of all nodes, in the order of `nodes`."""
        return tuple(pod for node in self.nodes for pod in node.pods)

    def hosts(self) -> Iterator[LabHost]:
        """Yield every host of the lab that has been described so far; while it is built these may be none."""
        if hasattr(self, "internet"):
            yield self.internet
        yield from (*self._wires.values(), *self.routers, *self.nodes, *self.pods)

    def node(self, name: str) -> LabNode:
        """Return the node `REGION-NUMBER`. KeyError if there is none."""
        return _find(self.nodes, name)

    def pod(self, name: str) -> Pod:
        """Return the pod `NODE-pod-NUMBER`. KeyError if there is none."""
        return _find(self.pods, name)

    def router(self, region: str) -> Router:
        """Return the router of a region. KeyError if there is no such region."""
        return _find(self.routers, f"{region}-router")

    # Change the network.

    def rebind(self, region: str, binding: int = 1) -> None:
        """Delete every NAT mapping of a region, as a router that restarts does.

        New mappings get ports of another range for each `binding`, so that no new one equals an old one.
        """
        router = self.router(region)
        router.run(["nft", "-f", "-"], input=router_filters.nat_table(router.plan.region, binding))
        router.run(["conntrack", "-F"])

    def set_loss(self, region: str, share: float) -> None:
        """Drop this share of packets on a region's uplink, in each direction: 0 none, 1 all."""
        self.router(region).run(["nft", "-f", "-"], input=router_filters.loss_table(share))

    # Manifests.

    def manifests(
        self, public_keys: Mapping[str, str], suites: Sequence[str] = WIREGUARD_SUITE
    ) -> list[dict[str, Any]]:
        """Return the Gateways and Nodes of the lab, and a Peer for every node with an entry in `public_keys`.

        `public_keys` are base64 by name of the node; `suites` are the suites that each Peer announces.
        """
        return manifests.of_lab(self.plans, self.nodes, public_keys, suites)

    def write_manifests(
        self, folder: Path, public_keys: Mapping[str, str], suites: Sequence[str] = WIREGUARD_SUITE
    ) -> None:
        """Write `manifests` to `folder`, one YAML file for each object. Other files there are not touched."""
        manifests.write(folder, self.manifests(public_keys, suites))

    # Steps of building.

    def _build(self) -> None:
        """Build everything, in an order in which each step finds what it needs from the steps before."""
        self._describe_hosts()
        self._add_namespaces()
        # Collect all lines first, so that each namespace needs two processes and not two hundred.
        wiring = Wiring()
        tables: dict[str, str] = {}  # by namespace
        for plan, router in zip(self.plans, self.routers, strict=True):
            self._attach_region(plan, router, wiring)
            tables[router.namespace] = router_filters.nat_table(plan.region) + router_filters.loss_table(
                plan.region.loss
            )
        for node in self.nodes:
            cni.attach_pods(node, wiring)
        for host in self.hosts():
            wiring.settings[host.namespace].insert(0, "link set lo up")
        with ThreadPoolExecutor(max_workers=_WORKERS) as workers:

            def for_each_host(step: Callable[[LabHost], None]) -> None:
                for _ in workers.map(step, self.hosts()):
                    pass  # the result raises the step's exception

            for_each_host(_set_sysctls)
            for_each_host(lambda host: ip_batch(wiring.devices[host.namespace], host.namespace))
            for_each_host(lambda host: ip_batch(wiring.settings[host.namespace], host.namespace))
            for_each_host(lambda host: _load_ruleset(host, tables.get(host.namespace, "")))
            for_each_host(self._configure_node)
        for plan in self.plans:
            if plan.region.delay:
                _start_delay(self._wires[plan.region.name], plan.region.delay)

    def _describe_hosts(self) -> None:
        """Make the host objects; nothing exists in the kernel yet."""
        self.internet = LabHost("internet", self._record)
        self.routers = tuple(Router(self._record, plan) for plan in self.plans)
        self.nodes = tuple(
            LabNode(self._record, plan.region, node, plan.lan.host(node.number))
            for plan in self.plans
            for node in plan.nodes
        )
        self._wires = {
            plan.region.name: LabHost(f"{plan.region.name}-wire", self._record)
            for plan in self.plans
            if plan.region.delay
        }

    def _add_namespaces(self) -> None:
        """Make the namespaces; those of nodes are made by their holder process and named afterwards."""
        self._holders = [holder.start(node.name, self.prefix) for node in self.nodes]
        ip_batch([f"netns add {host.namespace}" for host in self.hosts() if not isinstance(host, LabNode)])
        for node, process in zip(self.nodes, self._holders, strict=True):
            holder.wait_until_ready(process)
            node.pid = process.pid
        ip_batch([f"netns attach {node.namespace} {node.pid}" for node in self.nodes])

    def _attach_region(self, plan: LabRegionPlan, router: Router, wiring: Wiring) -> None:
        """Add the lines that join the internet, the region's router and its nodes."""
        region = plan.region
        internet, here = self.internet.namespace, router.namespace
        devices, settings = wiring.devices, wiring.settings
        if wire := self._wires.get(region.name):
            # Ends of two veth pairs without addresses; `lab.delay` carries frames from one to the other.
            devices[internet].append(veth(region.name, "outer", wire.namespace, region.mtu))
            devices[wire.namespace].append(veth("inner", Router.UPLINK, here, region.mtu))
            settings[wire.namespace] += ["link set inner up", "link set outer up"]
        else:
            devices[internet].append(veth(region.name, Router.UPLINK, here, region.mtu))
        settings[internet] += configure(region.name, plan.uplink.interface(1))
        devices[here].append(f"link add {Router.LAN} type bridge")
        settings[here] += [
            *configure(Router.UPLINK, plan.uplink.interface(2)),
            *configure(Router.LAN, plan.lan.interface(1)),
            *default_routes(Router.UPLINK, plan.uplink),
        ]
        if region.nat is Nat.NONE:
            # The internet has routes to public LANs only: a private LAN is reached through NAT mappings.
            v4, v6 = plan.uplink.host(2)
            settings[internet] += [
                f"route add {plan.lan.v4} via {v4} dev {region.name}",
                f"route add {plan.lan.v6} via {v6} dev {region.name}",
            ]
        nodes = [node for node in self.nodes if node.region is region]
        for index, node in enumerate(nodes):
            port = f"node{index + 1}"
            devices[here].append(veth(port, LabNode.DEVICE, node.namespace, region.lan_mtu))
            settings[here].append(f"link set {port} master {Router.LAN} up")
            settings[node.namespace] += [
                *configure(LabNode.DEVICE, plan.lan.interface(plan.nodes[index].number)),
                *default_routes(LabNode.DEVICE, plan.lan),
            ]
            settings[node.namespace] += cni.routes(node, [other for other in nodes if other is not node])

    def _configure_node(self, host: LabHost) -> None:
        """Set the sysctls and load the packet filter of a node's CNI and kube-proxy, once its devices exist."""
        if not isinstance(host, LabNode):
            return
        if settings := cni.sysctls(host):
            _write_sysctls(host, settings)
        if host.region.masquerade:
            node_filters.install(host, [node for node in self.nodes if node.region is host.region])


def _find(hosts: Iterable[_Host], name: str) -> _Host:
    """Return the host with this name. KeyError if there is none."""
    for host in hosts:
        if host.name == name:
            return host
    raise KeyError(name)


def _set_sysctls(host: LabHost) -> None:
    """Set the sysctls of a new namespace, with forwarding on all hosts but pods and wires."""
    forwards = host.name == "internet" or isinstance(host, (Router, LabNode))
    _write_sysctls(host, {**_SYSCTLS, **(_FORWARDING if forwards else {})})


def _write_sysctls(host: LabHost, settings: Mapping[str, int]) -> None:
    # /proc/sys/net belongs to the network namespace of the process that opens it, so no other namespace is entered.
    inside = ["nsenter", f"--net={NAMESPACES / host.namespace}", "--"]
    run([*inside, "sysctl", "-q", "-w", *(f"{key}={value}" for key, value in settings.items())])


def _start_delay(wire: LabHost, seconds: float) -> None:
    """Start `lab.delay` on a wire and wait until it carries frames. HostError if it ends before that."""
    process = wire.popen(
        [sys.executable, "-m", "ravenvpn.lab.delay", "inner", "outer", str(seconds)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None  # a pipe
    with process.stdout:
        if process.stdout.readline() != b"ready\n":
            raise HostError(f"{wire.name}: the process that delays packets ended at its start")


def _load_ruleset(host: LabHost, ruleset: str) -> None:
    """Load nft tables in one transaction; an empty ruleset changes nothing."""
    if ruleset:
        run([*host.enter, "nft", "-f", "-"], input=ruleset)
