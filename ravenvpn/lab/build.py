"""Building a lab, and taking it away.

Everything is done by few processes: one `ip -batch` for all namespaces, then for each namespace one for its sysctls,
one for its devices, one for addresses and routes. A device is born in the namespace it belongs to, its veth peer
straight in the other; the machine's own network never sees one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ravenvpn.errors import HostError
from ravenvpn.lab import cni, filters, holder, manifests, nft
from ravenvpn.lab.command import ip_batch, require, run
from ravenvpn.lab.devices import default_routes, up, veth
from ravenvpn.lab.host import LabHost, LabNode, Pod, Router
from ravenvpn.lab.manifests import WIREGUARD_SUITE
from ravenvpn.lab.ownership import NAMESPACES, OwnershipRecord, remove, sweep
from ravenvpn.lab.topology import LabRegion, LabRegionPlan, Nat, lay_out

# For every namespace, before it has devices. Addresses are ours to give, so nothing needs to be found out first.
_SYSCTLS = {
    "net.ipv6.conf.all.disable_ipv6": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}
_FORWARDING = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}


H = TypeVar("H", bound=LabHost)


class Lab:
    """Regions around an internet. Build and remove it by `with`; look things up by name in between."""

    def __init__(self, *regions: LabRegion) -> None:
        self.plans: tuple[LabRegionPlan, ...] = lay_out(regions)
        self.nodes: tuple[LabNode, ...] = ()
        self.routers: tuple[Router, ...] = ()
        self.internet: LabHost
        self._wires: dict[str, LabHost] = {}  # by region: between the internet and a router, where there is a delay
        self._record: OwnershipRecord
        self._holders: list[subprocess.Popen[str]] = []
        self._kept = False

    # Life.

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise HostError("a lab is made of network namespaces, and only root can make those")
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
        """Leave it standing after `with`, until `sweep(also=kept())`."""
        self._record = OwnershipRecord(self._record.prefix, self._record.owner, self._record.owner_started, kept=True)
        self._record.write()
        self._kept = True

    def remove(self) -> None:
        """End everything that runs in it and delete it. `with` does this."""
        remove(self._record)
        for child in (*self._holders, *(child for host in self.hosts() for child in host.children)):
            child.wait()

    # Looking things up.

    @property
    def prefix(self) -> str:
        return self._record.prefix

    @property
    def folder(self) -> Path:
        """For files that are to go with the lab; only root may look in."""
        return self._record.folder

    @property
    def pods(self) -> tuple[Pod, ...]:
        return tuple(pod for node in self.nodes for pod in node.pods)

    def hosts(self) -> Iterator[LabHost]:
        if hasattr(self, "internet"):
            yield self.internet
        yield from (*self._wires.values(), *self.routers, *self.nodes, *self.pods)

    def node(self, name: str) -> LabNode:
        return _named(self.nodes, name)

    def pod(self, name: str) -> Pod:
        return _named(self.pods, name)

    def router(self, region: str) -> Router:
        return _named(self.routers, f"{region}-router")

    # Things that happen to regions.

    def rebind(self, region: str, binding: int = 1) -> None:
        """The region's NAT forgets every mapping, and new ones get other ports: another range for each `binding`."""
        router = self.router(region)
        router.run(["nft", "-f", "-"], input=nft.translation(router.plan.region, binding))
        router.run(["conntrack", "-F"])

    def set_loss(self, region: str, share: float) -> None:
        """From now on the region's uplink loses this share of packets, in each direction; 1.0 cuts it off."""
        self.router(region).run(["nft", "-f", "-"], input=nft.loss(share))

    # Manifests.

    def manifests(
        self, public_keys: Mapping[str, str], suites: Sequence[str] = WIREGUARD_SUITE
    ) -> list[dict[str, Any]]:
        """Gateways and Nodes, and a Peer that announces these suites for every node whose public key is given."""
        return manifests.of_lab(self.plans, self.nodes, public_keys, suites)

    def write_manifests(
        self, folder: Path, public_keys: Mapping[str, str], suites: Sequence[str] = WIREGUARD_SUITE
    ) -> None:
        """The same as YAML, a file for each object; other files in the folder are left alone."""
        manifests.write(folder, self.manifests(public_keys, suites))

    # Building.

    def _build(self) -> None:
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
        self._add_namespaces()
        devices: dict[str, list[str]] = defaultdict(list)
        settings: dict[str, list[str]] = defaultdict(list)
        translations: dict[str, str] = {}
        for plan, router in zip(self.plans, self.routers, strict=True):
            self._join_region(plan, router, devices, settings)
            translations[router.namespace] = nft.translation(plan.region) + nft.loss(plan.region.loss)
        for node in self.nodes:
            cni.join(node, devices, settings)
        for host in self.hosts():
            settings[host.namespace].insert(0, "link set lo up")
        with ThreadPoolExecutor(max_workers=4) as workers:

            def everywhere(step: Callable[[LabHost], None]) -> None:
                for _ in workers.map(step, self.hosts()):
                    pass  # brings an error out

            everywhere(_set_sysctls)
            everywhere(lambda host: ip_batch(_lines(devices[host.namespace]), host.namespace))
            everywhere(lambda host: ip_batch(_lines(settings[host.namespace]), host.namespace))
            everywhere(lambda host: _load(host, translations.get(host.namespace, "")))
            everywhere(self._finish_node)
        for plan in self.plans:
            if plan.region.delay:
                _lengthen(self._wires[plan.region.name], plan.region.delay)

    def _add_namespaces(self) -> None:
        self._holders = [holder.start(node.name, self.prefix) for node in self.nodes]
        ip_batch(_lines(f"netns add {host.namespace}" for host in self.hosts() if not isinstance(host, LabNode)))
        for node, process in zip(self.nodes, self._holders, strict=True):
            holder.wait_until_ready(process)
            node.pid = process.pid
        ip_batch(_lines(f"netns attach {node.namespace} {node.pid}" for node in self.nodes))

    def _join_region(
        self, plan: LabRegionPlan, router: Router, devices: dict[str, list[str]], settings: dict[str, list[str]]
    ) -> None:
        """The internet, the region's router and its nodes."""
        region = plan.region
        internet, here = self.internet.namespace, router.namespace
        if wire := self._wires.get(region.name):
            # Two ends of veth pairs and no address: a process carries frames from one to the other.
            devices[internet].append(veth(region.name, "outer", wire.namespace, region.mtu))
            devices[wire.namespace].append(veth("inner", Router.UPLINK, here, region.mtu))
            settings[wire.namespace] += ["link set inner up", "link set outer up"]
        else:
            devices[internet].append(veth(region.name, Router.UPLINK, here, region.mtu))
        settings[internet] += up(region.name, plan.uplink.interface(1))
        devices[here].append(f"link add {Router.LAN} type bridge")
        settings[here] += [
            *up(Router.UPLINK, plan.uplink.interface(2)),
            *up(Router.LAN, plan.lan.interface(1)),
            *default_routes(Router.UPLINK, plan.uplink).splitlines(),
        ]
        if region.nat is Nat.NONE:
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
                *up(LabNode.DEVICE, plan.lan.interface(plan.nodes[index].number)),
                *default_routes(LabNode.DEVICE, plan.lan).splitlines(),
            ]
            settings[node.namespace] += cni.routes(node, [other for other in nodes if other is not node])

    def _finish_node(self, host: LabHost) -> None:
        """What a node's CNI and kube-proxy do once its devices are there."""
        if not isinstance(host, LabNode):
            return
        if wanted := cni.sysctls(host):
            _write_sysctls(host, wanted)
        if host.region.masquerade:
            filters.load(host, [node for node in self.nodes if node.region is host.region])


def _named(hosts: Iterable[H], name: str) -> H:
    for host in hosts:
        if host.name == name:
            return host
    raise KeyError(name)


def _set_sysctls(host: LabHost) -> None:
    forwards = host.name == "internet" or isinstance(host, (Router, LabNode))
    _write_sysctls(host, {**_SYSCTLS, **(_FORWARDING if forwards else {})})


def _write_sysctls(host: LabHost, wanted: Mapping[str, int]) -> None:
    inside = ["nsenter", f"--net={NAMESPACES / host.namespace}", "--"]
    run([*inside, "sysctl", "-q", "-w", *(f"{key}={value}" for key, value in wanted.items())])


def _lengthen(wire: LabHost, seconds: float) -> None:
    carrier = wire.popen(
        [sys.executable, "-m", "ravenvpn.lab.delay", "inner", "outer", str(seconds)], stdout=subprocess.PIPE
    )
    assert carrier.stdout is not None  # asked for
    with carrier.stdout:
        if carrier.stdout.readline() != b"ready\n":
            raise HostError(f"{wire.name}: what should delay its packets does not run")


def _load(host: LabHost, ruleset: str) -> None:
    if ruleset:
        run([*host.enter, "nft", "-f", "-"], input=ruleset)


def _lines(commands: Iterable[str]) -> str:
    return "".join(f"{command}\n" for command in commands)
