"""Lines for `ip -batch` that make devices, addresses and routes of a lab."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from ravenvpn.lab.topology import LabNetworks
from ravenvpn.overhead import ETHERNET_MTU


@dataclass(frozen=True, slots=True)
class Wiring:
    """Lines for `ip -batch` by the namespace they run in.

    All lines in `devices` run before the first one in `settings`: a line in one namespace may make the device that a
    setting in another namespace needs.
    """

    devices: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    settings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def veth(device: str, peer: str, namespace: str, mtu: int = ETHERNET_MTU) -> str:
    """Return the line that makes a veth pair: `device` here, `peer` in another namespace, both with `mtu`.

    The peer is made directly in its namespace, so no device ever appears in the machine's own network.
    """
    return f"link add {device} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {namespace}"


def configure(device: str, addresses: tuple[IPv4Interface, IPv6Interface]) -> list[str]:
    """Return the lines that give a device its addresses and set it up."""
    v4, v6 = addresses
    return [
        f"address add {v4} dev {device}",
        # Without duplicate address detection the address is usable at once instead of after a second.
        f"address add {v6} dev {device} nodad",
        f"link set {device} up",
    ]


def default_routes(device: str, networks: LabNetworks) -> list[str]:
    """Return the lines for both default routes; the next hop is host 1 of each network."""
    v4, v6 = networks.host(1)
    # ip(8) takes "default" as IPv4 unless -6 is given; ::/0 needs no option.
    return [f"route replace default via {v4} dev {device}", f"route replace ::/0 via {v6} dev {device}"]
