"""Devices, addresses and routes as lines for `ip -batch`."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

from ravenvpn.lab.topology import LabNetworks
from ravenvpn.overhead import ETHERNET_MTU


def veth(device: str, peer: str, namespace: str, mtu: int = ETHERNET_MTU) -> str:
    return f"link add {device} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {namespace}"


def up(device: str, addresses: tuple[IPv4Interface, IPv6Interface]) -> list[str]:
    v4, v6 = addresses
    return [
        f"address add {v4} dev {device}",
        f"address add {v6} dev {device} nodad",
        f"link set {device} up",
    ]


def default_routes(device: str, networks: LabNetworks) -> str:
    """Through host 1 of each network, whoever that is."""
    v4, v6 = networks.host(1)
    return f"route replace default via {v4} dev {device}\nroute replace ::/0 via {v6} dev {device}\n"
