"""What a lab consists of, and which address everything gets. Pure values: nothing is built here.

                    internet  203.0.113.0/24, 2001:db8:ffff::/48, a /30 and a /64 for each region
                   /        \\
              router         router            NAT as the region says
                |              |
       LAN 198.51.100.0/28   LAN 10.2.0.0/24   public without NAT, else private; IPv6 alike
            /      \\           |
       cloud-1   cloud-2    factory-1          nodes, each with a podCIDR: 10.244.N.0/24, fd00:10:244:N::/64,
                                               or with two blocks of each family out of it, as Calico gives them
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
    """What a region's router does to IPv4 and IPv6 alike; names as in RFC 3489, which NAT users still speak."""

    NONE = "none"
    FULL_CONE = "full cone"  # anyone may send to a port that was mapped once (UDP)
    PORT_RESTRICTED = "port restricted"  # one mapping per source, answers only from where it sent to
    SYMMETRIC = "symmetric"  # another mapping for every destination


class Cni(StrEnum):
    """How pods hang on their nodes (`lab.cni`)."""

    BRIDGE = "bridge"  # all on one bridge, one podCIDR a node, host-gw routes: flannel in that mode
    CALICO = "calico"  # each behind a device of its own, several blocks a node, strict reverse paths


class Flavour(StrEnum):
    """In what the CNI and kube-proxy write their packet filter."""

    NFT = "nft"
    IPTABLES_NFT = "iptables-nft"
    IPTABLES_LEGACY = "iptables-legacy"


@dataclass(frozen=True, slots=True)
class LabRegion:
    """One region: a LAN behind a router. `nodes` hosts, `pods` on each of them."""

    name: str
    nodes: int = 1
    pods: int = 1
    nat: Nat = Nat.NONE
    gateways: int = 1  # how many of the nodes, from the first, may be gateway
    mtu: int = ETHERNET_MTU  # of the uplink
    lan_mtu: int = ETHERNET_MTU  # of the LAN; pods think they have 1500 in any case
    loss: float = 0.0  # share of packets lost on the uplink, in each direction
    delay: float = 0.0  # seconds a packet takes over the uplink, in each direction
    cni: Cni = Cni.BRIDGE
    masquerade: bool = False  # whether nodes filter and masquerade pod traffic to and from elsewhere, as CNIs do
    flavour: Flavour = Flavour.NFT  # of those rules
    lan: IPv4Network | None = None  # a /24 of its own choice behind NAT; several regions may use the same


class Pair(NamedTuple):
    """An address of each family."""

    v4: IPv4Address
    v6: IPv6Address


class LabNetworks(NamedTuple):
    """A network of each family."""

    v4: IPv4Network
    v6: IPv6Network

    def host(self, number: int) -> Pair:
        return Pair(self.v4[number], self.v6[number])

    def interface(self, number: int) -> tuple[IPv4Interface, IPv6Interface]:
        """As `ip address add` wants it, with the length of the prefix."""
        v4, v6 = self.host(number)
        return IPv4Interface((v4, self.v4.prefixlen)), IPv6Interface((v6, self.v6.prefixlen))


@dataclass(frozen=True, slots=True)
class LabNodePlan:
    name: str
    number: int  # within the LAN: its host part
    pod_cidrs: LabNetworks
    blocks: tuple[LabNetworks, ...]  # what of them is the node's: all, or with Calico two blocks
    pods: tuple[str, ...]

    def pod_address(self, index: int) -> Pair:
        """Of the pod of this index. On a bridge the node itself comes first; blocks are taken in turn."""
        if len(self.blocks) == 1:
            return self.pod_cidrs.host(index + 2)
        turn, block = divmod(index, len(self.blocks))
        return self.blocks[block].host(turn + 1)


@dataclass(frozen=True, slots=True)
class LabRegionPlan:
    """A region with its addresses. The internet's side of the uplink is host 1, the router's host 2; on the LAN
    the router is host 1; on a node's bridge the node is host 1 and pods follow."""

    region: LabRegion
    uplink: LabNetworks
    lan: LabNetworks
    nodes: tuple[LabNodePlan, ...] = field(default=())


MAX_REGIONS = 63  # /30 networks in 203.0.113.0/24, the first one left out
MAX_PUBLIC_NODES = 13  # in a /28, beside the router


def lay_out(regions: tuple[LabRegion, ...]) -> tuple[LabRegionPlan, ...]:
    """Addresses for everything, the same for the same regions. ValueError if they can't be had."""
    names = [region.name for region in regions]
    if len(set(names)) != len(names):
        raise ValueError(f"two regions of one name: {', '.join(names)}")
    if len(regions) > MAX_REGIONS:
        raise ValueError(f"{len(regions)} regions, and addresses for {MAX_REGIONS}")
    if sum(region.nodes for region in regions) > 254:
        raise ValueError("pod networks are given to at most 254 nodes")
    # RFC 5737 and RFC 3849: ranges for documentation.
    uplinks = tuple(IPv4Network("203.0.113.0/24").subnets(new_prefix=30))
    public_lans = IPv4Network("198.51.100.0/24").subnets(new_prefix=28)
    plans = []
    numbers = iter(range(1, 255))  # of nodes, in all regions together
    for index, region in enumerate(regions, 1):
        if region.nat is Nat.NONE:
            if region.nodes > MAX_PUBLIC_NODES:
                raise ValueError(f"{region.name}: {region.nodes} nodes, and {MAX_PUBLIC_NODES} public addresses")
            lan4 = next(public_lans, None)
            if lan4 is None:
                raise ValueError("public addresses are there for 16 regions without NAT")
            lan6 = IPv6Network(f"2001:db8:{index:x}::/64")
        else:
            lan4 = region.lan or IPv4Network(f"10.{index}.0.0/24")
            lan6 = IPv6Network(f"fd00:{index:x}::/64")
        nodes = tuple(_node(region, number, next(numbers)) for number in range(1, region.nodes + 1))
        uplink = LabNetworks(uplinks[index], IPv6Network(f"2001:db8:ffff:{index:x}::/64"))
        plans.append(LabRegionPlan(region, uplink, LabNetworks(lan4, lan6), nodes))
    return tuple(plans)


def _node(region: LabRegion, number: int, of_all: int) -> LabNodePlan:
    name = f"{region.name}-{number}"
    cidrs = LabNetworks(IPv4Network(f"10.244.{of_all}.0/24"), IPv6Network(f"fd00:10:244:{of_all:x}::/64"))
    blocks: tuple[LabNetworks, ...] = (cidrs,)
    if region.cni is Cni.CALICO:
        # Its defaults, /26 and /122; the second is no neighbour of the first, so that no prefix holds just both.
        v4, v6 = list(cidrs.v4.subnets(new_prefix=26)), cidrs.v6.network_address
        blocks = tuple(LabNetworks(v4[i], IPv6Network((int(v6) + 64 * i, 122))) for i in (0, 2))
    pods = tuple(f"{name}-pod-{pod}" for pod in range(1, region.pods + 1))
    return LabNodePlan(name, number + 1, cidrs, blocks, pods)
