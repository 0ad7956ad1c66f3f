"""The topology of a lab and the addresses of its parts. Pure values: nothing is built here.

                    internet  203.0.113.0/24, 2001:db8:ffff::/48: a /30 and a /64 for each region
                   /        \\
              router         router            NAT as the region asks
                |              |
       LAN 198.51.100.0/28   LAN 10.2.0.0/24   public without NAT, private with NAT; the same for IPv6
            /      \\           |
       cloud-1   cloud-2    factory-1          nodes, each with a podCIDR: 10.244.N.0/24, fd00:10:244:N::/64,
                                               or two blocks of each family out of it with the Calico model
        |   |       |          |
      pods …       pods       pods
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from ravenvpn.overhead import ETHERNET_MTU


class Nat(StrEnum):
    """Kind of NAT that a region's router applies to IPv4 and IPv6 alike. Names are those of RFC 3489, which users
    of NAT know better than the terms of RFC 4787."""

    NONE = "none"
    FULL_CONE = "full cone"  # endpoint-independent mapping and filtering (UDP): any host may send to a mapped port
    PORT_RESTRICTED = "port restricted"  # endpoint-independent mapping, address- and port-dependent filtering
    SYMMETRIC = "symmetric"  # address- and port-dependent mapping: another port for every destination


class Cni(StrEnum):
    """Model of how pods are attached to their node (`lab.cni`)."""

    BRIDGE = "bridge"  # one bridge and one podCIDR a node, host-gw routes: flannel with that backend
    CALICO = "calico"  # one device a pod, several address blocks a node, strict reverse path filter


class Flavour(StrEnum):
    """Program with which the CNI and kube-proxy of a region write their packet filter."""

    NFT = "nft"
    IPTABLES_NFT = "iptables-nft"
    IPTABLES_LEGACY = "iptables-legacy"


@dataclass(frozen=True, slots=True)
class Region:
    """Description of one region: a LAN behind a router."""

    name: str  # devices are named after it on the internet's side, so at most 15 characters
    nodes: int = 1
    pods: int = 1  # on each node
    nat: Nat = Nat.NONE
    gateways: int = 1  # number of nodes, counted from the first, that are listed as endpoints of the Gateway
    mtu: int = ETHERNET_MTU  # of the uplink
    lan_mtu: int = ETHERNET_MTU  # of the LAN; pods use ETHERNET_MTU in any case
    loss: float = 0.0  # share of packets lost on the uplink, 0 to 1, in each direction
    delay: float = 0.0  # seconds a packet takes over the uplink, in each direction
    cni: Cni = Cni.BRIDGE
    masquerade: bool = False  # whether nodes have the packet filter of a CNI and masquerade pods to other networks
    flavour: Flavour = Flavour.NFT  # of that packet filter
    lan: IPv4Network | None = None  # a given /24 behind NAT; regions may have the same one


class AddressPair(NamedTuple):
    """One address of each family."""

    v4: IPv4Address
    v6: IPv6Address


class LabNetworks(NamedTuple):
    """One network of each family."""

    v4: IPv4Network
    v6: IPv6Network

    def host(self, number: int) -> AddressPair:
        """Return the addresses with this host part."""
        return AddressPair(self.v4[number], self.v6[number])

    def interface(self, number: int) -> tuple[IPv4Interface, IPv6Interface]:
        """Return the addresses with this host part and the prefix length, as `ip address add` takes them."""
        v4, v6 = self.host(number)
        return IPv4Interface((v4, self.v4.prefixlen)), IPv6Interface((v6, self.v6.prefixlen))


@dataclass(frozen=True, slots=True)
class LabNodePlan:
    """One node with its networks and the names of its pods."""

    name: str
    number: int  # host part of its addresses on the LAN
    pod_cidrs: LabNetworks
    blocks: tuple[LabNetworks, ...]  # the part of `pod_cidrs` that the node uses: all, or two blocks with Calico
    pods: tuple[str, ...]

    def pod_address(self, index: int) -> AddressPair:
        """Return the addresses of the pod with this index, counted from 0.

        With a bridge the node has the first address and pods follow. With blocks, pods are placed in the blocks in
        turn, so that two pods are enough to use both.
        """
        if len(self.blocks) == 1:
            return self.pod_cidrs.host(index + 2)
        turn, block = divmod(index, len(self.blocks))
        return self.blocks[block].host(turn + 1)


@dataclass(frozen=True, slots=True)
class LabRegionPlan:
    """One region with its addresses.

    Host parts: on the uplink the internet has 1 and the router 2; on the LAN the router has 1 and nodes follow; on a
    node's bridge the node has 1 and pods follow.
    """

    region: Region
    uplink: LabNetworks
    lan: LabNetworks
    nodes: tuple[LabNodePlan, ...] = field(default=())


MAX_REGIONS = 63  # /30 networks in 203.0.113.0/24 without the first one
MAX_NODES = 254  # third octet of their podCIDRs in 10.244.0.0/16
MAX_PUBLIC_REGIONS = 16  # /28 networks in 198.51.100.0/24
MAX_PUBLIC_NODES = 13  # hosts in a /28 beside the router


def assign_addresses(regions: tuple[Region, ...]) -> tuple[LabRegionPlan, ...]:
    """Return a plan for each region. Equal regions get equal addresses.

    ValueError if two regions have one name or if addresses do not suffice.
    """
    names = [region.name for region in regions]
    if len(set(names)) != len(names):
        raise ValueError(f"two regions have the same name: {', '.join(names)}")
    if len(regions) > MAX_REGIONS:
        raise ValueError(f"{len(regions)} regions; there are addresses for {MAX_REGIONS}")
    if sum(region.nodes for region in regions) > MAX_NODES:
        raise ValueError(f"{sum(region.nodes for region in regions)} nodes; there are podCIDRs for {MAX_NODES}")
    # Ranges for documentation, RFC 5737 and RFC 3849: they exist nowhere outside, and are not private to anybody.
    uplinks = tuple(IPv4Network("203.0.113.0/24").subnets(new_prefix=30))
    public_lans = IPv4Network("198.51.100.0/24").subnets(new_prefix=28)
    plans = []
    numbers = iter(range(1, MAX_NODES + 1))  # of nodes, in all regions together
    for index, region in enumerate(regions, 1):
        if region.nat is Nat.NONE:
            if region.nodes > MAX_PUBLIC_NODES:
                raise ValueError(
                    f"{region.name}: {region.nodes} nodes; there are {MAX_PUBLIC_NODES} public addresses"
                )
            lan4 = next(public_lans, None)
            if lan4 is None:
                raise ValueError(f"there are public addresses for {MAX_PUBLIC_REGIONS} regions without NAT")
            lan6 = IPv6Network(f"2001:db8:{index:x}::/64")
        else:
            lan4 = region.lan or IPv4Network(f"10.{index}.0.0/24")
            lan6 = IPv6Network(f"fd00:{index:x}::/64")
        nodes = tuple(_plan_node(region, number, next(numbers)) for number in range(1, region.nodes + 1))
        uplink = LabNetworks(uplinks[index], IPv6Network(f"2001:db8:ffff:{index:x}::/64"))
        plans.append(LabRegionPlan(region, uplink, LabNetworks(lan4, lan6), nodes))
    return tuple(plans)


def _plan_node(region: Region, number: int, lab_number: int) -> LabNodePlan:
    """Return the plan of a node: `number` counts in its region, `lab_number` in the whole lab, both from 1."""
    name = f"{region.name}-{number}"
    cidrs = LabNetworks(IPv4Network(f"10.244.{lab_number}.0/24"), IPv6Network(f"fd00:10:244:{lab_number:x}::/64"))
    blocks: tuple[LabNetworks, ...] = (cidrs,)
    if region.cni is Cni.CALICO:
        # Calico's default block sizes, /26 and /122. The second block does not adjoin the first, so that no shorter
        # prefix covers exactly both.
        v4, v6 = list(cidrs.v4.subnets(new_prefix=26)), cidrs.v6.network_address
        blocks = tuple(LabNetworks(v4[i], IPv6Network((int(v6) + 64 * i, 122))) for i in (0, 2))
    pods = tuple(f"{name}-pod-{pod}" for pod in range(1, region.pods + 1))
    return LabNodePlan(name, number + 1, cidrs, blocks, pods)
