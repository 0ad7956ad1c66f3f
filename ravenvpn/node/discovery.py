"""What planning wants to know of this host: its addresses, what IPv6 it has, path MTUs, who forwards.

Settings that we changed ourselves count as they were before us: a plan that asks for forwarding on a device because
it is off must not forget about it once it is on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, VXLAN_DEVICE, Address, Interface, Prefix
from ravenvpn.mesh.local_facts import ApiEndpoint, LocalFacts
from ravenvpn.mesh.model import DEFAULT_TUNNEL_PORT
from ravenvpn.node import rtnetlink, sysctl
from ravenvpn.node.links import LinkClient, LinkFacts
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.overhead import ETHERNET_MTU

_MAIN_TABLE = 254
# Stand for the outside: documentation addresses (RFC 5737, RFC 3849), so no region can own them.
_OUTSIDE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
_PROTOCOL_RA = 9  # RTPROT_RA: learnt from a router advertisement


@dataclass(frozen=True, slots=True)
class LocalAddress:
    device: str
    address: Interface


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`addresses` are usable ones of both families: no loopback, link-local or tentative ones, none of our devices'.

    `mtus` map a destination to the MTU of the route that our outer packets take to it. See `LocalFacts` for the rest.
    """

    addresses: tuple[LocalAddress, ...] = ()
    default_mtu: int = ETHERNET_MTU
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    ipv6: bool = True
    ipv6_disabled: bool = False
    force_forwarding: bool = True
    pod_devices: tuple[str, ...] = ()
    advertised: tuple[str, ...] = ()

    def local(self, api: tuple[ApiEndpoint, ...] = ()) -> LocalFacts:
        """The same, as planning takes it."""
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
            api=api,
        )


def look(
    netlink: LinkClient,
    pipe: NetlinkSocket,
    remembered: Mapping[str, sysctl.Remembered],
    *,
    destinations: Iterable[Address] = (),
    pods: Iterable[Prefix] = (),
    listen_port: int = DEFAULT_TUNNEL_PORT,
) -> HostFacts:
    """`destinations` are addresses of peers, `pods` the prefixes of the pods of this node."""
    links = netlink.links()
    names = {link.index: link.name for link in links}
    ipv6 = ipv6_present()
    default_mtu = way_out(pipe, links) or ETHERNET_MTU
    mtus = ((str(address), path_mtu(pipe, links, address, listen_port)) for address in destinations)
    return HostFacts(
        addresses=_addresses(netlink, names),
        default_mtu=default_mtu,
        mtus=MappingProxyType({name: mtu for name, mtu in mtus if mtu is not None and mtu != default_mtu}),
        ipv6=ipv6,
        ipv6_disabled=sysctl.read("net/ipv6/conf/all/disable_ipv6") == "1",
        force_forwarding=sysctl.read("net/ipv6/conf/all/force_forwarding") is not None,
        pod_devices=tuple(sorted(_pod_devices(pipe, names, remembered, tuple(pods)))),
        advertised=tuple(sorted(_advertised(pipe, names, remembered))) if ipv6 else (),
    )


def path_mtu(pipe: NetlinkSocket, links: Iterable[LinkFacts], destination: Address, udp_port: int = 0) -> int | None:
    """MTU of the route to `destination` for UDP from that port; None if there is none."""
    found = rtnetlink.route_to(pipe, destination, udp_port)
    if found is None:
        return None
    index, mtu = found
    return mtu or next((link.mtu for link in links if link.index == index), None)


def way_out(pipe: NetlinkSocket, links: Iterable[LinkFacts]) -> int | None:
    """MTU of the way to the outside, by IPv4 if it has a route; None if there is no way."""
    found = (path_mtu(pipe, links, address) for address in _OUTSIDE)
    return next((mtu for mtu in found if mtu is not None), None)


def ipv6_present() -> bool:
    """False where the kernel runs without IPv6 altogether (ipv6.disable=1, or not built in)."""
    return Path("/proc/sys/net/ipv6").is_dir()


def _addresses(netlink: LinkClient, names: Mapping[int, str]) -> tuple[LocalAddress, ...]:
    found = [
        LocalAddress(names[index], address)
        for index, address, _ in netlink.addresses(usable=True)
        if index in names
        and names[index] not in (TUNNEL_DEVICE, VXLAN_DEVICE)
        and not (address.is_loopback or address.is_link_local)
    ]
    return tuple(sorted(found, key=lambda item: (item.address.version, item.device, item.address.ip.packed)))


def _before_us(key: str, remembered: Mapping[str, sysctl.Remembered]) -> str | None:
    return remembered[key].original if key in remembered else sysctl.read(key)


def _pod_devices(
    pipe: NetlinkSocket,
    names: Mapping[int, str],
    remembered: Mapping[str, sysctl.Remembered],
    pods: tuple[Prefix, ...],
) -> Iterable[str]:
    """Devices with routes into the pods' prefixes (a bridge, or one device a pod) that do not forward IPv4."""
    networks = [pod for pod in pods if pod.version == 4]
    if not networks:
        return
    seen: set[str] = set()
    for prefix, index in _main_routes(pipe, socket.AF_INET):
        name = names.get(index)
        if name is None or name in seen or name in (TUNNEL_DEVICE, VXLAN_DEVICE):
            continue
        if any(prefix.version == pod.version and prefix.subnet_of(pod) for pod in networks):
            seen.add(name)
            if _before_us(f"net/ipv4/conf/{name}/forwarding", remembered) == "0":
                yield name


def _advertised(
    pipe: NetlinkSocket, names: Mapping[int, str], remembered: Mapping[str, sysctl.Remembered]
) -> Iterable[str]:
    """Devices whose routes come from advertisements that the kernel itself reads, which forwarding would end."""
    seen: set[str] = set()
    for _, index in _main_routes(pipe, socket.AF_INET6, protocol=_PROTOCOL_RA):
        name = names.get(index)
        if name is not None and name not in seen:
            seen.add(name)
            if _before_us(f"net/ipv6/conf/{name}/accept_ra", remembered) == "1":
                yield name


def _main_routes(pipe: NetlinkSocket, family: int, protocol: int = 0) -> Iterable[tuple[Prefix, int]]:
    for body in rtnetlink.dump_routes(pipe, family, table=_MAIN_TABLE, protocol=protocol):
        yield from rtnetlink.read_destination(body)
