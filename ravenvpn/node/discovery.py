"""Discover the facts of this host that planning needs: addresses, IPv6, MTUs of routes, devices that forward.

Sysctls that we changed count with their original value. Otherwise a plan that turns forwarding on because it is off
would drop that again as soon as it is on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, VXLAN_DEVICE, Address, Interface, Prefix
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT
from ravenvpn.node import rtnetlink, sysctl
from ravenvpn.node.links import LinkClient, LinkFacts
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.sysctl import SavedSysctl
from ravenvpn.overhead import ETHERNET_MTU

_MAIN_TABLE = 254  # RT_TABLE_MAIN
# Destinations outside every region: documentation addresses (RFC 5737, RFC 3849), which no region can announce.
_OUTSIDE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
_PROTOCOL_RA = 9  # RTPROT_RA: routes from router advertisements


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this host."""

    device: str
    address: Interface  # with its prefix length


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts of this host at one instant. `LocalFacts` documents those that are the same there."""

    # Usable addresses of both families. Left out: loopback, link-local and tentative ones, and those of our devices.
    addresses: tuple[LocalAddress, ...] = ()
    default_mtu: int = ETHERNET_MTU  # of the default route, bytes
    # Destination → MTU of the route that outer packets take to it, where it differs from `default_mtu`.
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    ipv6: bool = True  # the kernel has IPv6
    ipv6_disabled: bool = False  # by net.ipv6.conf.all.disable_ipv6
    force_forwarding: bool = True  # the kernel has net.ipv6.conf.*.force_forwarding
    pod_devices: tuple[str, ...] = ()  # sorted; with pods behind them, not forwarding before us
    advertised: tuple[str, ...] = ()  # sorted; with routes from router advertisements

    def local_facts(self) -> LocalFacts:
        """Return the facts as planning takes them, without API endpoints, which the cluster client adds."""
        return LocalFacts(
            addresses=frozenset(item.address.ip for item in self.addresses),
            networks=frozenset(item.address.network for item in self.addresses),
            default_mtu=self.default_mtu,
            mtus=self.mtus,
            ipv6=self.ipv6,
            ipv6_disabled=self.ipv6_disabled,
            force_forwarding=self.force_forwarding,
            pod_devices=self.pod_devices,
            advertised=self.advertised,
        )


def discover_host(
    links: LinkClient,
    netlink: NetlinkSocket,
    saved_sysctls: Mapping[str, SavedSysctl],
    *,
    destinations: Iterable[Address] = (),
    pods: Iterable[Prefix] = (),
    listen_port: int = DEFAULT_TUNNEL_PORT,
) -> HostFacts:
    """Read the facts from the kernel. Blocking; raises HostError.

    `destinations` are underlay addresses of peers, `pods` the pod prefixes of this node, `listen_port` the tunnel's
    UDP port, `saved_sysctls` the journal's entries.
    """
    devices = links.links()  # once: routes and addresses refer to devices by ifindex
    names = {link.index: link.name for link in devices}
    ipv6 = ipv6_present()
    default_mtu = default_route_mtu(netlink, devices) or ETHERNET_MTU
    mtus = ((str(address), route_mtu(netlink, devices, address, listen_port)) for address in destinations)
    return HostFacts(
        addresses=_addresses(links, names),
        default_mtu=default_mtu,
        mtus=MappingProxyType({name: mtu for name, mtu in mtus if mtu is not None and mtu != default_mtu}),
        ipv6=ipv6,
        ipv6_disabled=sysctl.read("net/ipv6/conf/all/disable_ipv6") == "1",
        force_forwarding=sysctl.read("net/ipv6/conf/all/force_forwarding") is not None,
        pod_devices=tuple(sorted(_pod_devices(netlink, names, saved_sysctls, tuple(pods)))),
        advertised=tuple(sorted(_advertised_devices(netlink, names, saved_sysctls))) if ipv6 else (),
    )


def route_mtu(
    netlink: NetlinkSocket, devices: Iterable[LinkFacts], destination: Address, udp_port: int = 0
) -> int | None:
    """Return the MTU of the route to `destination` in bytes, that of its device if the route has none; None if
    unreachable. With `udp_port` the route is that of UDP packets from that source port."""
    found = rtnetlink.lookup_route(netlink, destination, udp_port)
    if found is None:
        return None
    index, mtu = found  # the MTU is set on few routes: by an operator, or learned from ICMP
    return mtu or next((link.mtu for link in devices if link.index == index), None)


def default_route_mtu(netlink: NetlinkSocket, devices: Iterable[LinkFacts]) -> int | None:
    """Return the MTU of the default route, that of IPv4 if there is one; None without a default route."""
    found = (route_mtu(netlink, devices, address) for address in _OUTSIDE)
    return next((mtu for mtu in found if mtu is not None), None)


def ipv6_present() -> bool:
    """Return False if the kernel runs without IPv6 (ipv6.disable=1, or not built in)."""
    return Path("/proc/sys/net/ipv6").is_dir()


def _addresses(links: LinkClient, names: Mapping[int, str]) -> tuple[LocalAddress, ...]:
    """Return the usable addresses, sorted by family, device and address, so that equal facts are equal values."""
    found = [
        LocalAddress(names[index], address)
        for index, address, _ in links.addresses(usable=True)
        if index in names
        and names[index] not in (TUNNEL_DEVICE, VXLAN_DEVICE)
        and not (address.is_loopback or address.is_link_local)
    ]
    return tuple(sorted(found, key=lambda item: (item.address.version, item.device, item.address.ip.packed)))


def _original_value(key: str, saved_sysctls: Mapping[str, SavedSysctl]) -> str | None:
    return saved_sysctls[key].original if key in saved_sysctls else sysctl.read(key)


def _pod_devices(
    netlink: NetlinkSocket,
    names: Mapping[int, str],
    saved_sysctls: Mapping[str, SavedSysctl],
    pods: tuple[Prefix, ...],
) -> Iterable[str]:
    """Yield the devices with routes into pod prefixes (a bridge, or one device a pod) that do not forward IPv4."""
    # IPv4 only: in IPv6 the `forwarding` switch of one device does not make it forward (kernel document ip-sysctl).
    networks = [pod for pod in pods if pod.version == 4]
    if not networks:
        return
    seen: set[str] = set()
    for prefix, index in _main_routes(netlink, socket.AF_INET):
        name = names.get(index)
        if name is None or name in seen or name in (TUNNEL_DEVICE, VXLAN_DEVICE):
            continue
        # A route to a whole pod prefix of the node, to a part of it, or to one pod.
        if any(prefix.version == pod.version and prefix.subnet_of(pod) for pod in networks):
            seen.add(name)
            if _original_value(f"net/ipv4/conf/{name}/forwarding", saved_sysctls) == "0":
                yield name


def _advertised_devices(
    netlink: NetlinkSocket, names: Mapping[int, str], saved_sysctls: Mapping[str, SavedSysctl]
) -> Iterable[str]:
    """Yield the devices whose routes come from router advertisements that the kernel itself processes.

    With accept_ra=1 the kernel ignores them once the device forwards (kernel document ip-sysctl), so the plan sets 2.
    """
    seen: set[str] = set()
    for _, index in _main_routes(netlink, socket.AF_INET6, protocol=_PROTOCOL_RA):
        name = names.get(index)
        if name is not None and name not in seen:
            seen.add(name)
            if _original_value(f"net/ipv6/conf/{name}/accept_ra", saved_sysctls) == "1":
                yield name


def _main_routes(netlink: NetlinkSocket, family: int, protocol: int = 0) -> Iterable[tuple[Prefix, int]]:
    """Yield (prefix, ifindex) of the routes of the main table with a single next hop."""
    for body in rtnetlink.dump_routes(netlink, family, table=_MAIN_TABLE, protocol=protocol):
        yield from rtnetlink.parse_destination(body)
